"""Get the teacher's answers to a batch from the records of a cache, from a network in the loop, or from several.

A source turns a batch into a `TeacherAnswer`, which gives the first class and log p at any τ. All code before it
(order, views, mixing) and after it (losses, trainer) is the same, so "cached equals online" (law 9) depends on this
file alone.
With record kind "dense" both take the same log-softmax of the same float32 logits.

Several teachers answer with a weighted mean of probabilities at the same τ, p(τ) = Σ wᵢ·pᵢ(τ): the ensemble of Hinton
et al., arXiv:1503.02531, section 1. Their views are the same pixels, and each compares its own digest.

Legend: B batch, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import CacheError, RunError
from shards.views.blocks import ViewBatch
from student.feed.feed_options import is_whole
from student.feed.pixel_check import PixelCheck
from student.feed.slab import SlabLoader
from student.feed.teaching import Teaching
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.largest_logits import FINITE_ADVICE
from teacher_cache.record.record_format import RecordFormat, require_temperature
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.layout import PIXEL_DIGEST
from teacher_cache.store.libraries import rendering_remedy

_ALIGN = 64  # bytes; a multiple of every type's size
NO_PROBABILITIES = (
    "log_prob: expected a cache of the teacher's probabilities, this one stores no probabilities, first classes only "
    "(record kind hard): read batch.teacher.hard and train with hard, or make a cache of another kind"
)


class Top(NamedTuple):
    """Classes, int64 (B, k), likeliest first, and their log p at τ = 1, float32 (B, k)."""

    class_BK: Tensor
    log_prob_BK: Tensor


class TeacherAnswer:
    """The teacher's answer to a batch; each τ is decoded once, however many students ask for it.

    Every tensor that it returns is the caller's own: a loop may change it in place, and the next read is as before.
    """

    def __init__(
        self,
        hard_B: Tensor | None,
        log_prob: Callable[[float], Tensor] | None = None,
        *,
        named_BK: Tensor | None = None,
        each: "Sequence[tuple[float, TeacherAnswer]]" = (),
    ) -> None:
        """Wrap first classes, a decoder, or both.

        Args:
            hard_B: the first classes, int64 (B,); None: those of the largest log p at τ = 1.
            log_prob: τ → log p, float32 (B, C); None where only first classes are known.
            named_BK: int64 (B, K), the K likeliest classes in order where the record names them; None: the first.
            each: weight and answer of every teacher, where they are several.
        """
        self._hard_B = hard_B
        self._log_prob = log_prob
        self._named_BK = named_BK
        self._each = tuple(each)
        self._decoded: dict[float, Tensor] = {}

    @property
    def hard(self) -> Tensor:
        """The teacher's first class, int64 (B,): always exact; of several teachers, that of their mean at τ = 1."""
        if self._hard_B is None:
            self._hard_B = first_class(self._decoded_at(1.0))
        return self._hard_B.clone()

    @property
    def each(self) -> "tuple[tuple[float, TeacherAnswer], ...]":
        """Weight and answer of each teacher; the weights are parts of 1."""
        return self._each or ((1.0, self),)

    def top(self, k: int) -> "Top":
        """The k likeliest classes, likeliest first, with log p at τ = 1.

        Errors:
            ValueError for k outside [1, C], and where only first classes are known.
        """
        log_prob_BC = self._decoded_at(1.0)
        if not is_whole(k) or not 1 <= k <= log_prob_BC.shape[1]:
            raise ValueError(f"top: expected k in [1, {log_prob_BC.shape[1]}], got {k!r:.60}")
        class_BK = self.hard[:, None] if self._named_BK is None else self._named_BK[:, :k].clone()
        if k > class_BK.shape[1]:
            # Classes that tie come in the order of their index, whatever the device's sort does.
            others_BC = log_prob_BC.scatter(1, class_BK, -torch.inf).sort(dim=1, descending=True, stable=True).indices
            class_BK = torch.cat([class_BK, others_BC[:, : k - class_BK.shape[1]]], 1)
        return Top(class_BK, log_prob_BC.gather(1, class_BK))

    def log_prob(self, temperature: float) -> Tensor:
        """Log p at τ, float32 (B, C).

        Errors:
            ValueError for a τ that is no finite number above 0, and where only first classes are known, as of records
            of kind "hard".
        """
        require_temperature(temperature)
        return self._decoded_at(temperature).clone()

    def _decoded_at(self, temperature: float) -> Tensor:
        """Return log p at τ as it is kept for the next read."""
        if self._log_prob is None:
            raise ValueError(NO_PROBABILITIES)
        if temperature not in self._decoded:
            self._decoded[temperature] = self._log_prob(temperature)
        return self._decoded[temperature]


def answer_from_logits(logit_BC: Tensor) -> TeacherAnswer:
    """Return full logits (B, C) as an answer; of tied first classes the one with the lowest index counts."""
    logit_BC = logit_BC.float()
    codec = RecordCodec(RecordFormat.chosen("dense", logit_BC.shape[1]))
    return TeacherAnswer(first_class(logit_BC), partial(codec.log_prob, {"logit": logit_BC}))


def first_class(value_BC: Tensor) -> Tensor:
    """Return the lowest index of each row's maximum, int64 (B,), however the device breaks ties."""
    classes = torch.arange(value_BC.shape[1], device=value_BC.device)
    first = value_BC == value_BC.amax(-1, keepdim=True)
    return torch.where(first, classes, value_BC.shape[1] - 1).amin(-1)


class TeacherSource:
    """A source of answers, and the source without a teacher; a context manager that lives as long as the run.

    Attributes:
        pixels_checked: samples whose digest was compared so far.
        teacher_forwards: images that a teacher in the loop has answered so far.
        num_not_finite: for how many of them a logit was NaN or infinite, a float64 scalar on the device, which nobody
            waits for; None without a teacher in the loop. See `require_finite_answers`.
    """

    pixels_checked = 0
    teacher_forwards = 0
    num_not_finite: Tensor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the source."""

    def begin_epoch(self, epoch: int) -> None:
        """Load what the views of `epoch` need."""

    def answer(self, batch: ViewBatch, x_BCHW: Tensor) -> TeacherAnswer | None:
        """Return the teacher's answer to a batch, on the device of `x_BCHW`; None when there is no teacher."""
        return None


class OnlineTeacher(TeacherSource):
    """A teacher in the loop: it answers to the same tensor as the student."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._wrong = self.num_not_finite = torch.zeros((), dtype=torch.float64, device=teacher.device)

    def answer(self, batch: ViewBatch, x_BCHW: Tensor) -> TeacherAnswer:
        """Return the answer of one forward pass of the teacher; a logit that is not finite is counted."""
        logit_BC = self._teacher.logits(x_BCHW)
        self.teacher_forwards += len(logit_BC)
        self._wrong += (~logit_BC.isfinite().all(-1)).sum()
        return answer_from_logits(logit_BC)


class CachedTeacher(TeacherSource):
    """The records of a cache: one gather per batch, with the pixel digest of every sample compared (law 1)."""

    def __init__(
        self,
        cache: TeacherCache,
        schedule: Sequence[range],
        *,
        name_of: Callable[[int, int], tuple[str, str]],
        scratch: Path | None = None,
    ) -> None:
        """Take an open cache and the views of each epoch.

        Args:
            name_of: (shard, row) to the names of shard and sample, for messages.
            scratch: a folder on a local disk for the epoch's records; None is the system's (TMPDIR).
        """
        self._pixels = PixelCheck(name_of, rendering_remedy(cache.header.made_with))
        self._slabs = SlabLoader(cache, schedule, scratch=scratch)
        self._codec = RecordCodec(cache.spec.record, cache.basis)
        self._fields = [field.name for field in cache.spec.record.fields()]
        self._soft = cache.spec.record.entry.soft

    @property
    def pixels_checked(self) -> int:  # type: ignore[override]  # counted, not kept
        """Samples whose digest was compared so far."""
        return self._pixels.checked

    def __exit__(self, *exception: object) -> None:
        self._slabs.close()

    def begin_epoch(self, epoch: int) -> None:
        """Load the records of the epoch's views, or take over what was loaded ahead; CacheError from the store."""
        self._slab = self._slabs.epoch(epoch)

    def answer(self, batch: ViewBatch, x_BCHW: Tensor) -> TeacherAnswer:
        """Gather the records, compare digests, and decode on the device; CacheError on a mismatch."""
        record = self._slab.gather(batch)
        self._pixels.compare(batch, record[PIXEL_DIGEST])
        fields = fields_on({name: record[name] for name in self._fields}, x_BCHW.device)
        return TeacherAnswer(
            self._codec.hard_label(fields),
            partial(self._codec.log_prob, fields) if self._soft else None,
            named_BK=fields["class_index"].to(torch.int64),
        )


def fields_on(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Copy the fields of a batch to a device in one copy that nobody waits for.

    To a GPU through page-locked memory, which torch keeps and reuses: copies from other memory block until they are
    done.
    """
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    ends = list(accumulate(-(-array.nbytes // _ALIGN) * _ALIGN for array in dense.values()))
    starts = dict(zip(dense, [0, *ends], strict=False))
    packed = torch.empty(ends[-1], dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    for name, array in dense.items():
        packed.numpy()[starts[name] : starts[name] + array.nbytes] = array.reshape(-1).view(np.uint8)
    moved_X = packed.to(device, non_blocking=True)
    return {
        name: moved_X[starts[name] : starts[name] + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for name, array in dense.items()
    }


def mixture(answers: Sequence[TeacherAnswer], weights: Sequence[float]) -> TeacherAnswer:
    """Return the weighted mean of several answers, log p(τ) = log Σ wᵢ·pᵢ(τ), and the first class of it at τ = 1."""
    weighted = tuple(zip(weights, answers, strict=True))
    return TeacherAnswer(None, partial(_mixed, weighted), each=weighted)


def _mixed(weighted: Sequence[tuple[float, TeacherAnswer]], temperature: float) -> Tensor:
    parts = [answer.log_prob(temperature) + math.log(weight) for weight, answer in weighted]
    return torch.logsumexp(torch.stack(parts), 0)


class SeveralTeachers(TeacherSource):
    """A source of answers made of several; a context manager that opens and closes them."""

    def __init__(self, sources: Sequence[TeacherSource], weights: Sequence[float], names: Sequence[str]) -> None:
        """Take one source a teacher, its weight, and what messages call it."""
        self._sources, self._weights, self._names = sources, weights, names
        self._stack = ExitStack()

    @property
    def pixels_checked(self) -> int:  # type: ignore[override]  # counted, not kept
        """Samples whose digest was compared, each with every cache's."""
        return min(source.pixels_checked for source in self._sources)

    @property
    def teacher_forwards(self) -> int:  # type: ignore[override]  # counted, not kept
        """Images answered in the loop, by each teacher."""
        return sum(source.teacher_forwards for source in self._sources)

    @property
    def num_not_finite(self) -> Tensor | None:  # type: ignore[override]  # counted, not kept
        """Answers in the loop with a logit that is not finite, of all teachers."""
        counts = [source.num_not_finite for source in self._sources if source.num_not_finite is not None]
        return torch.stack(counts).sum() if counts else None

    def __enter__(self) -> Self:
        for source in self._sources:
            self._stack.enter_context(source)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def begin_epoch(self, epoch: int) -> None:
        """Make every source ready for the views of `epoch`."""
        for source in self._sources:
            source.begin_epoch(epoch)

    def answer(self, batch: ViewBatch, x_BCHW: Tensor) -> TeacherAnswer:
        """Return the mixture; CacheError naming the cache when its teacher saw other pixels."""
        answers: list[TeacherAnswer] = []
        for source, name in zip(self._sources, self._names, strict=True):
            try:
                answer = source.answer(batch, x_BCHW)
            except CacheError as error:
                raise type(error)(f"{name}: {error}") from error
            assert answer is not None, "every one of several is a teacher"
            answers.append(answer)
        return mixture(answers, self._weights)


def require_finite_answers(num_not_finite: Tensor | None) -> None:
    """RunError where a teacher in the loop gave NaN or infinity; waits for the device (law 13).

    Not every loss shows it: the first class of such logits is a class like any other.
    """
    if num_not_finite is not None and (count := int(num_not_finite.item())):
        raise RunError(
            f"teacher in the loop: for {count:,} of its answers so far a logit was NaN or infinite, expected finite "
            f"numbers; {FINITE_ADVICE}. Use nothing that was learnt from them: go on from what was saved before"
        )


def source_of(
    teaching: Teaching,
    schedule: Sequence[range],
    *,
    name_of: Callable[[int, int], tuple[str, str]],
    scratch: Path | None = None,
) -> TeacherSource:
    """Return the source of answers of open caches or loaded teachers; arguments as of `CachedTeacher`."""
    sources: list[TeacherSource] = [OnlineTeacher(teacher) for teacher in teaching.teachers]
    sources += [CachedTeacher(cache, schedule, name_of=name_of, scratch=scratch) for cache in teaching.open_caches]
    if len(sources) > 1:
        return SeveralTeachers(sources, teaching.weights, teaching.names)
    return sources[0] if sources else TeacherSource()
