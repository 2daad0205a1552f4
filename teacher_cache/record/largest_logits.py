"""The largest logits of each row: which classes a record keeps by name, and the edge below which the others lie.

Legend: B rows, C classes, K = k kept classes.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import CacheError


def centred(logit_BC: NDArray[Any]) -> NDArray[np.float32]:
    """Logits with mean zero over the classes, float32; the mean is taken in float64, as logits may be huge."""
    mean_B1 = logit_BC.mean(axis=1, keepdims=True, dtype=np.float64)
    with np.errstate(over="ignore"):  # infinity at the ends of float32 is for `clip_wild_rows`
        return np.asarray(logit_BC - mean_B1.astype(np.float32), np.float32)


_HIGH = 1e4
"""No softmax at any τ of use tells a first class so far ahead from one further ahead."""


class LargestLogits(NamedTuple):
    """The k largest logits of each row, descending, and the edge below which the others lie.

    Args:
        class_BK: int64.
        top_BK: float32.
        edge_B1: float32, the (k+1)-th largest logit.
    """

    class_BK: NDArray[np.int64]
    top_BK: NDArray[np.float32]
    edge_B1: NDArray[np.float32]


def clip_wild_rows(z_BC: NDArray[np.float32], largest: LargestLogits, low: float) -> NDArray[np.bool_]:
    """Bring rows with logits far beyond any calibrated range into it, in place; returns which rows (B,).

    A masked class at −10,000 would drag the mean, and with it every other class, and the squares of a wild row
    overflow: cut at `low` and at `_HIGH`, and centre again. The order of the classes stays as ranked.
    """
    wild_B = np.asarray((z_BC.min(axis=1) < low) | (largest.top_BK[:, 0] > _HIGH))
    if wild_B.any():
        z_WC = np.maximum(centred(np.clip(z_BC[wild_B], low, _HIGH)), low)
        again = largest_logits(z_WC, largest.top_BK.shape[1])
        z_BC[wild_B], largest.top_BK[wild_B], largest.edge_B1[wild_B] = z_WC, again.top_BK, again.edge_B1
    return wild_B


def largest_logits(z_BC: NDArray[np.float32], k: int) -> LargestLogits:
    """The k < C largest logits and the edge.

    The first class is the first index of the maximum, also when `topk` prefers another of several equal ones.
    """
    value_BL, class_BL = (part.numpy() for part in torch.topk(torch.from_numpy(z_BC), k + 1, dim=1))
    class_BK = np.ascontiguousarray(class_BL[:, :k])
    first_B = z_BC.argmax(axis=1)
    moved_B = np.flatnonzero(class_BK[:, 0] != first_B)
    for row in moved_B:  # ties only: rare
        known = np.flatnonzero(class_BK[row] == first_B[row])
        class_BK[row, known] = class_BK[row, 0]
        class_BK[row, 0] = first_B[row]
    return LargestLogits(class_BK, np.ascontiguousarray(value_BL[:, :k]), np.ascontiguousarray(value_BL[:, k:]))


FINITE_ADVICE = "check the teacher's weights, or its precision (fp16 overflows at 65,504: use bf16 or fp32)"
"""What helps where logits are not finite."""


def require_finite(logit_BC: NDArray[Any]) -> None:
    """Refuse rows with NaN or infinity, also such as overflow float32 (CacheError naming the first row)."""
    with np.errstate(over="ignore"):
        finite_B = np.asarray(np.isfinite(logit_BC.astype(np.float32, copy=False)).all(axis=1))
    if not finite_B.all():
        row = int(np.flatnonzero(~finite_B)[0])
        column = int(np.flatnonzero(~np.isfinite(logit_BC[row].astype(np.float64)))[:1].sum())
        raise CacheError(
            f"teacher logits of row {row} are not finite (class {column}: {logit_BC[row, column]}; "
            f"{int((~finite_B).sum())} of {len(finite_B)} rows): expected finite float32; {FINITE_ADVICE}"
        )
