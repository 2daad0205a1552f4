"""Combine the answers of several teachers: a table of values, as the losses are. This file imports no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from student.learn.losses.distill_loss import Answer, DistillLoss

if TYPE_CHECKING:
    from torch import Tensor


class Answers(Answer, Protocol):
    """What teachers say: together, as one answer, and each."""

    @property
    def each(self) -> "Sequence[tuple[float, Answer]]":
        """Weight and answer of each teacher; the weights are parts of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A way to learn from several teachers.

    Attributes:
        name: as on the command line and in recipes. title: in a sentence.
        compute: (loss, student's logits (B, C), answers, recipe) → the loss; of one teacher, that loss of that teacher.
    """

    name: str
    title: str
    compute: Callable[[DistillLoss, "Tensor", Answers, Any], "Tensor"]


def _of_the_mean(loss: DistillLoss, logit_BC: "Tensor", answers: Answers, recipe: Any) -> "Tensor":
    return loss.compute(logit_BC, answers, recipe)


def _mean_of_each(loss: DistillLoss, logit_BC: "Tensor", answers: Answers, recipe: Any) -> "Tensor":
    first, *others = [weight * loss.compute(logit_BC, answer, recipe) for weight, answer in answers.each]
    return sum(others, start=first)


MEAN = "mean"
COMBINATIONS: dict[str, Combination] = {
    entry.name: entry
    for entry in (
        Combination(name=MEAN, title="the mean of their probabilities", compute=_of_the_mean),
        Combination(name="kl-each", title="one loss a teacher, weighted", compute=_mean_of_each),
    )
}


def combination_named(name: str) -> Combination:
    """The combination of that name; ValueError with what there is."""
    if name not in COMBINATIONS:
        raise ValueError(f"combine: expected one of {', '.join(COMBINATIONS)}, got {name!r}")
    return COMBINATIONS[name]
