"""Code the k largest logits in k codes of at most 8 bits: the largest, then the gaps from each to the next.

Code 0 is the largest centred logit in even steps; code j ≥ 1 is the gap below the j-th largest, limit·(code/count)²:
fine steps for small gaps, where the probabilities are. A gap is measured from the *decoded* logit above it, so errors
do not add up. The first gap has code 1 at least, so the runner-up never ties with the first class.

Legend: B rows, N calibration rows, K = k codes.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_HEADROOM = 2.0
_GAP_STEP = 0.1
_MAX_COUNT = 254


class LevelCode(NamedTuple):
    """Limits (largest decodable value) and counts (largest code) of the k codes, float32 and uint8."""

    limit_K: NDArray[np.float32]
    count_K: NDArray[np.uint8]


def fit_levels(top_NK: NDArray[np.float32]) -> LevelCode:
    """Limits of twice what the calibration rows need, and as many steps as keep one near .1 at the median gap.

    Args:
        top_NK: (N, k) the largest centred logits, descending.
    """
    gap_NK = np.concatenate([top_NK[:, :1], top_NK[:, :-1] - top_NK[:, 1:]], axis=1).astype(np.float64)
    limit_K = np.maximum(_HEADROOM * gap_NK.max(axis=0), 0.1)
    # d/dc of limit·(c/count)² at a gap g is 2·sqrt(limit·g) / count.
    count_K = np.rint(2 * np.sqrt(limit_K * np.median(gap_NK, axis=0)) / _GAP_STEP)
    count_K[0] = _MAX_COUNT
    return LevelCode(limit_K.astype(np.float32), np.clip(count_K, 7, _MAX_COUNT).astype(np.uint8))


def encode_levels(top_BK: NDArray[np.float32], code: LevelCode) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Codes (B, k) uint8, and the rows (B,) whose values lie beyond a limit and were clamped."""
    level_BK = np.empty(top_BK.shape, np.uint8)
    count_K, limit_K = code.count_K.astype(np.float32), code.limit_K
    ratio_B = top_BK[:, 0] / limit_K[0]
    clamped_B = ratio_B > 1.0 + 0.5 / count_K[0]
    level_BK[:, 0] = np.rint(np.minimum(ratio_B, 1.0) * count_K[0])
    above_B = level_BK[:, 0] / count_K[0] * limit_K[0]
    # The gap of the first class is coded exactly as it is: only differences to it matter for the others.
    above_B = above_B.astype(np.float32)
    offset_B = above_B - top_BK[:, 0]
    for j in range(1, top_BK.shape[1]):
        ratio_B = np.maximum((above_B - offset_B - top_BK[:, j]) / limit_K[j], 0.0)
        clamped_B |= ratio_B > (1.0 + 0.5 / count_K[j]) ** 2
        level_BK[:, j] = np.maximum(np.rint(np.sqrt(np.minimum(ratio_B, 1.0)) * count_K[j]), j == 1)
        above_B = above_B - (level_BK[:, j] / count_K[j]) ** 2 * limit_K[j]
    return level_BK, clamped_B


def decode_levels(level_BK: Tensor, limit_K: Tensor, count_K: Tensor) -> Tensor:
    """The k largest centred logits, (B, k) float32, descending."""
    ratio_BK = level_BK.to(torch.float32) / count_K
    step_BK = torch.cat([ratio_BK[:, :1], -ratio_BK[:, 1:].square()], dim=1) * limit_K
    return step_BK.cumsum(dim=1)
