"""Measure what records cost a loss: the relative error of its gradient, per loss and τ.

A record that is good for one loss may be bad for another that weighs the tail of the classes. With g the gradient of a
loss at the logits of a student before its first step, drawn within ±10⁻³, true from the full logits and read from the
records, in groups of 256 rows (a batch):

    error = mean over groups of ‖g_read − g_true‖ / ‖g_true‖      (Frobenius)

as G of `teacher_cache.record.fidelity` is for the divergence without a student.

Legend: B rows, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.rng import stream
from teacher_cache.record.fidelity import GROUP_ROWS, TEMPERATURES, LogProb, log_softmax

_UNTRAINED = 1e-3


class KnownAnswer:
    """A teacher's answer to some rows, as a loss sees it: first classes, and log p at any τ."""

    def __init__(self, hard_B: Tensor, log_prob: Callable[[float], NDArray[Any]]) -> None:
        """Wrap first classes, int64 (B,), and a decoder."""
        self.hard = self.hard_B = hard_B  # the second is the former name, which a loss of a package may read
        self._log_prob, self._decoded = log_prob, dict[float, Tensor]()

    def log_prob(self, temperature: float) -> Tensor:
        """Log p at τ, (B, C), decoded once."""
        if temperature not in self._decoded:
            self._decoded[temperature] = torch.from_numpy(self._log_prob(temperature))
        return self._decoded[temperature]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossGradient:
    """A loss to measure records for.

    Attributes:
        loss: its name.
        uses_temperature: whether it is another loss at another τ.
        gradient: (student's logits float64 (B, C), answer, τ) → ∂loss/∂logits, (B, C).
    """

    loss: str
    uses_temperature: bool
    gradient: Callable[[Tensor, KnownAnswer, float], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossError:
    """The relative error of one loss's gradient; `temperature` is None where the loss reads none."""

    loss: str
    temperature: float | None
    gradient_error: float

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def loss_errors(
    teacher_BC: NDArray[Any],
    log_prob: LogProb,
    losses: Sequence[LossGradient],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[LossError]:
    """Measure records for each loss, at each τ where it has one.

    Args:
        teacher_BC: full logits.
        log_prob: decodes a slice of the records at a τ.

    Raises:
        ValueError: no rows.
    """
    num_rows = len(teacher_BC)
    if num_rows == 0:
        raise ValueError("loss errors: expected at least one row of logits, got none")
    student_BC = _UNTRAINED * (2.0 * stream(0, "untrained student").uniforms(teacher_BC.size) - 1.0)
    student_BC = student_BC.reshape(teacher_BC.shape)
    at = [(loss, tau) for loss in losses for tau in (temperatures if loss.uses_temperature else (None,))]
    ratios: list[list[float]] = [[] for _ in at]
    for first in range(0, num_rows, GROUP_ROWS):
        rows = slice(first, min(first + GROUP_ROWS, num_rows))
        true, read = _answers(teacher_BC, log_prob, rows)
        pupil_BC = torch.from_numpy(student_BC[rows])
        for row, (loss, tau) in zip(ratios, at, strict=True):
            grads = [loss.gradient(pupil_BC, answer, 1.0 if tau is None else tau) for answer in (true, read)]
            row.append(_ratio(grads[0].double(), grads[1].double()))
    return [
        LossError(loss=loss.loss, temperature=tau, gradient_error=float(np.mean(row)))
        for row, (loss, tau) in zip(ratios, at, strict=True)
    ]


def _answers(teacher_BC: NDArray[Any], log_prob: LogProb, rows: slice) -> tuple[KnownAnswer, KnownAnswer]:
    """Return the teacher's answers to some rows, and those of the records; the first class is exact in both."""
    first_B = torch.from_numpy(np.asarray(teacher_BC[rows]).argmax(axis=1))
    true = KnownAnswer(first_B, lambda tau: log_softmax(teacher_BC[rows], tau))
    return true, KnownAnswer(first_B, lambda tau: np.asarray(log_prob(rows, tau)))


def _ratio(true_BC: Tensor, read_BC: Tensor) -> float:
    """The error of a gradient over the gradient; a record without error has none, also where the gradient is zero."""
    wrong, whole = ((read_BC - true_BC).norm().item(), true_BC.norm().item())
    return 0.0 if wrong == 0.0 else wrong / whole if whole else float("inf")
