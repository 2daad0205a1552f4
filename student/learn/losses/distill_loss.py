"""Define a loss against the teacher: how it is computed, and what everything around it must know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Answer(Protocol):
    """The teacher's answer to a batch, as a loss sees it."""

    @property
    def hard(self) -> "Tensor":
        """First class of each row, int64 (B,)."""

    def log_prob(self, temperature: float) -> "Tensor":
        """Log p at τ, float32 (B, C); ValueError where only the first classes are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillLoss:
    """A loss against the teacher.

    Attributes:
        name: as on the command line, in recipes and in the names of cells.
        title: in a sentence: "soft distillation".
        compute: (student's logits (B, C), answer, recipe) → the loss, a mean over the batch; at least float32.
        fields: fields of a student recipe that it reads beside λ. Those among them that a grid varies are its axes.
        needs_probabilities: whether it asks for log p; records that hold first classes only cannot serve it.
        published: λ and the fields that its authors train with, as (field, value): what a user gets who asks for the
            loss and says no more.
    """

    name: str
    title: str
    compute: Callable[["Tensor", Answer, Any], "Tensor"]
    fields: tuple[str, ...] = ()
    needs_probabilities: bool = True
    published: tuple[tuple[str, Any], ...] = ()

    @property
    def uses_temperature(self) -> bool:
        """Whether τ is one of its fields: then it is an axis of a grid, and a word of a report."""
        return "temperature" in self.fields


def full(logit_BC: "Tensor") -> "Tensor":
    """At least float32, whatever the autocast: in bf16 a log-softmax has three digits."""
    import torch

    return logit_BC if logit_BC.dtype == torch.float64 else logit_BC.float()
