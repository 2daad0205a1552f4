"""Measure how far decoded records are from the teacher, per τ: KL, gradient error and loss bias.

With q the teacher's softmax at τ, q̂ the record's, s the student's and F the student's last features, in groups of 256
rows (a batch):

    KL    KL(q ‖ q̂) per row, nats: Σ q·log(q/q̂) − q + q̂, which the rounding of Σ q̂ in float32 cannot make negative
    G     mean over groups of ‖(q̂ − q)ᵀ F‖ / ‖(s − q)ᵀ F‖ (Frobenius): relative error of the gradient of the last layer
    bias  (mean KL(q̂ ‖ s) − mean KL(q ‖ s)) / mean KL(q ‖ s): by how much the distillation loss reads wrong

Where no student is at hand, s is uniform (a student before its first step) and the features of different rows are
orthogonal, so ‖·ᵀ F‖ is the Frobenius norm of the rows: errors that all rows share then weigh less than in training.

Legend: B rows, C classes, D features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.record.codec import RecordCodec

TEMPERATURES = (0.5, 1.0, 2.0, 3.0, 4.0, 8.0)
GROUP_ROWS = 256
_VIEWS_OF_P99 = 100
"""From fewer views a 99th percentile is the largest value, and not stated."""

LogProb = Callable[[slice, float], NDArray[np.floating[Any]]]
"""(rows, τ) → log softmax of the records of those rows at τ, (rows, C)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The errors of a set of records at one τ.

    Attributes:
        temperature: τ.
        kl, kl_p99: mean and 99th percentile over rows of KL(q ‖ q̂), nats; infinite where q̂ is 0 and q is not.
        gradient_error: G.
        bias: relative bias of the distillation loss; infinite for the same reason as KL; nan if the loss is 0.
        num_views: how many views they were measured on; 0: unknown.
    """

    temperature: float
    kl: float
    kl_p99: float
    gradient_error: float
    bias: float
    num_views: int = 0

    def to_json(self) -> dict[str, float]:
        """The errors as plain numbers; the number of views is one for all rows and stands beside them."""
        return {name: value for name, value in asdict(self).items() if name != "num_views"}

    @property
    def words(self) -> tuple[str, str, str]:
        """G, KL and its 99th percentile with the digits that the number of views carries."""
        kl_p99 = in_digits(self.kl_p99, self.num_views) if self.num_views >= _VIEWS_OF_P99 else "–"
        return in_digits(self.gradient_error, self.num_views), in_digits(self.kl, self.num_views), kl_p99


def in_digits(value: float, num_views: int) -> str:
    """A mean over so many views: one significant digit, two from 100 views on, three from 10,000.

    Errors of views spread about as widely as they are large, so a mean of n is known to about 1/√n of itself.
    """
    digits = 1 + min(2, int(math.log10(max(num_views, 1)) / 2))
    return f"{value:.{digits}g}"


def fidelity(
    teacher_BC: NDArray[Any],
    log_prob: LogProb,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    student_BC: NDArray[Any] | None = None,
    feature_BD: NDArray[Any] | None = None,
) -> list[Fidelity]:
    """Measure records against the full logits they were made from.

    Args:
        teacher_BC: full logits.
        log_prob: decodes a slice of the records at a τ.
        temperatures: one result each.
        student_BC: logits of a student on the same views; None for a uniform one.
        feature_BD: its last features; None for orthogonal ones.

    Raises:
        ValueError: no rows, or the arrays disagree in rows or classes.
    """
    num_rows = len(teacher_BC)
    if num_rows == 0:
        raise ValueError("fidelity: expected at least one row of logits, got none")
    if student_BC is not None and student_BC.shape != teacher_BC.shape:
        raise ValueError(f"fidelity: student logits expected {teacher_BC.shape}, got {student_BC.shape}")
    if feature_BD is not None and (feature_BD.ndim != 2 or len(feature_BD) != num_rows):
        raise ValueError(f"fidelity: features expected ({num_rows}, D), got {feature_BD.shape}")
    groups = [slice(i, min(i + GROUP_ROWS, num_rows)) for i in range(0, num_rows, GROUP_ROWS)]
    return [_at(t, groups, teacher_BC, log_prob, student_BC, feature_BD) for t in temperatures]


def record_fidelity(codec: RecordCodec, record: Mapping[str, NDArray[Any]], teacher_BC: NDArray[Any]) -> list[Fidelity]:
    """Measure encoded records, as the store holds them, against the full logits they were made from."""
    return fidelity(teacher_BC, decoder_of(codec, record))


def decoder_of(codec: RecordCodec, record: Mapping[str, NDArray[Any]]) -> LogProb:
    """The decoder of encoded records, as the store holds them."""

    def log_prob(rows: slice, temperature: float) -> NDArray[np.float32]:
        part = {name: torch.from_numpy(signed(values[rows])) for name, values in record.items()}
        decoded: NDArray[np.float32] = codec.log_prob(part, temperature).numpy()
        return decoded

    return log_prob


def log_softmax(logit_BC: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """log softmax(logit / τ) in float64."""
    z_BC = np.asarray(logit_BC, np.float64) / temperature
    z_BC = z_BC - z_BC.max(axis=1, keepdims=True)
    return np.asarray(z_BC - np.log(np.exp(z_BC).sum(axis=1, keepdims=True)))


def _at(
    temperature: float,
    groups: list[slice],
    teacher_BC: NDArray[Any],
    log_prob: LogProb,
    student_BC: NDArray[Any] | None,
    feature_BD: NDArray[Any] | None,
) -> Fidelity:
    kl, ratio, loss, true_loss = [], [], 0.0, 0.0
    for rows in groups:
        log_q_BC = log_softmax(teacher_BC[rows], temperature)
        log_r_BC = np.asarray(log_prob(rows, temperature), np.float64)
        if student_BC is None:
            log_s_BC = np.full_like(log_q_BC, -np.log(log_q_BC.shape[1]))
        else:
            log_s_BC = log_softmax(student_BC[rows], temperature)
        kl.append(_divergence(log_q_BC, log_r_BC))
        true_loss += float(_divergence(log_q_BC, log_s_BC).sum())
        loss += float(_divergence(log_r_BC, log_s_BC).sum())
        feature = None if feature_BD is None else np.asarray(feature_BD[rows], np.float64)
        q_BC = np.exp(log_q_BC)
        wrong, whole = _norm(np.exp(log_r_BC) - q_BC, feature), _norm(np.exp(log_s_BC) - q_BC, feature)
        # A record without error has none, also where the student already agrees with the teacher.
        ratio.append(0.0 if wrong == 0.0 else wrong / whole if whole else float("inf"))
    kl_B = np.concatenate(kl)
    return Fidelity(
        temperature=float(temperature),
        kl=float(kl_B.mean()),
        # An order statistic: interpolation next to an infinite row would be nan.
        kl_p99=float(np.quantile(kl_B, 0.99, method="higher")),
        gradient_error=float(np.mean(ratio)),
        bias=(loss - true_loss) / true_loss if true_loss else float("nan"),
        num_views=len(teacher_BC),
    )


def _divergence(log_q_BC: NDArray[np.float64], log_r_BC: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(q ‖ r) per row; a class with q = 0 adds nothing, one with r = 0 and q > 0 makes it infinite."""
    q_BC = np.exp(log_q_BC)
    term_BC = np.subtract(log_q_BC, log_r_BC, where=q_BC > 0, out=np.zeros_like(q_BC))
    # Each term with − q + r is at least 0, whether or not r sums to 1; only its own rounding is cut off.
    return np.asarray((q_BC * term_BC - q_BC + np.exp(log_r_BC)).clip(min=0.0).sum(axis=1))


def _norm(error_BC: NDArray[np.float64], feature_BD: NDArray[np.float64] | None) -> float:
    return float(np.linalg.norm(error_BC if feature_BD is None else error_BC.T @ feature_BD))


def signed(values: NDArray[Any]) -> NDArray[Any]:
    """The values in a dtype that torch computes with: it has few operations on unsigned integers wider than a byte."""
    return values.astype(np.int64) if values.dtype.kind == "u" and values.dtype.itemsize > 1 else values
