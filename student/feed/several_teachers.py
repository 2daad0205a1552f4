"""Several teachers at once: the mixture of what they say, and each of them.

Views are the same pixels for every teacher, so their caches join by construction; each compares its own digest. The
mixture is a weighted mean of probabilities at the same τ, p(τ) = Σ wᵢ·pᵢ(τ): the ensemble of Hinton et al.,
arXiv:1503.02531, section 1.

Legend: T teachers, B batch, C classes.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from shards.errors import CacheError
from shards.views.blocks import ViewBatch
from student.feed.teacher_source import TeacherAnswer, TeacherSource


def settled_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weights of `count` teachers, as parts of 1; equal where none are given. ValueError for any other number."""
    if weights is None:
        return (1.0 / count,) * count if count else ()
    good = len(weights) == count and all(0 < weight < math.inf for weight in weights)
    if not good:
        raise ValueError(f"teacher_weights: expected {count} positive numbers, one a teacher, got {tuple(weights)}")
    return tuple(weight / math.fsum(weights) for weight in weights)


def mixture(answers: Sequence[TeacherAnswer], weights: Sequence[float]) -> TeacherAnswer:
    """One answer of several: log p(τ) = log Σ wᵢ·pᵢ(τ); its first class is that of the mean at τ = 1."""

    def log_prob(temperature: float) -> Tensor:
        parts = [answer.log_prob(temperature) + math.log(w) for answer, w in zip(answers, weights, strict=True)]
        return torch.logsumexp(torch.stack(parts), 0)

    return TeacherAnswer(None, log_prob, each=tuple(zip(weights, answers, strict=True)))


class SeveralTeachers:
    """A source of answers made of several; a context manager that opens and closes them."""

    def __init__(self, sources: Sequence[TeacherSource], weights: Sequence[float], names: Sequence[str]) -> None:
        """Take one source a teacher, its weight, and what messages call it."""
        self._sources, self._weights, self._names = sources, weights, names
        self._stack = ExitStack()

    @property
    def pixels_checked(self) -> int:
        """Samples whose digest was compared, each with every cache's."""
        return min(source.pixels_checked for source in self._sources)

    @property
    def teacher_forwards(self) -> int:
        """Images answered in the loop, by each teacher."""
        return sum(source.teacher_forwards for source in self._sources)

    def __enter__(self) -> "SeveralTeachers":
        """Open them."""
        for source in self._sources:
            self._stack.enter_context(source)
        return self

    def __exit__(self, *exception: object) -> None:
        """Close them."""
        self._stack.close()

    def begin_epoch(self, epoch: int) -> None:
        """Get ready for the views of `epoch`, all of them."""
        for source in self._sources:
            source.begin_epoch(epoch)

    def answer(self, batch: ViewBatch, x_BCHW: Tensor) -> TeacherAnswer:
        """The mixture; CacheError naming the cache when the pixels are not those that its teacher saw."""
        answers: list[TeacherAnswer] = []
        for source, name in zip(self._sources, self._names, strict=True):
            try:
                answer = source.answer(batch, x_BCHW)
            except CacheError as error:
                raise CacheError(f"{name}: {error}") from error
            assert answer is not None, "every one of several is a teacher"
            answers.append(answer)
        return mixture(answers, self._weights)
