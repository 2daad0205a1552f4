"""Records that keep one class, or all of them: "hard", "dense8" and "dense".

Legend: B rows of a batch, C classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.record.kinds.record_kind import RecordShape

_LEVELS = 255
_POWER = 1.5
_MAX_RANGE = 1e30


class _OneClass:
    """What names one class and clamps nothing."""

    num_clamped = 0

    def __init__(self, shape: RecordShape) -> None:
        self._index_dtype = shape.index_dtype


class HardCodec(_OneClass):
    """The first class only: two bytes, enough for hard distillation."""

    def encode(self, logit_BC: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """class_index (B, 1): the first of the largest logits."""
        return {"class_index": first_class(logit_BC, self._index_dtype)}

    def log_prob(self, record: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Refused: a hard record holds no probabilities."""
        raise ValueError(
            "record kind 'hard' holds the teacher's first class only, so there is no soft target at any τ; "
            "train with the hard loss, or make a cache with kind 'lowrank'"
        )


class DenseCodec(_OneClass):
    """All logits as float32: lossless."""

    def encode(self, logit_BC: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """class_index (B, 1) and logit (B, C) float32 as they are."""
        logit_BC = np.ascontiguousarray(logit_BC, "<f4")
        return {"class_index": first_class(logit_BC, self._index_dtype), "logit": logit_BC}

    def log_prob(self, record: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Exactly torch.log_softmax(logit / τ, -1): the same operations as with the teacher in the loop."""
        return torch.log_softmax(record["logit"] / temperature, dim=-1)


class Dense8Codec(_OneClass):
    """All logits in 8 bits: the distance d to the row's maximum as range·(code/255)^1.5, range float32 per row.

    The exponent makes the steps near the maximum finer, where a softmax at small τ looks; code 0 belongs to the first
    class alone, so ties do not move it.
    """

    def encode(self, logit_BC: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """class_index (B, 1), logit_range (B,) float32, logit (B, C) uint8."""
        index_B1 = first_class(logit_BC, self._index_dtype)
        # float64: the distance of two float32 logits can exceed float32.
        distance_BC = logit_BC.max(axis=1, keepdims=True).astype(np.float64) - logit_BC
        # Beyond this a probability is zero at any τ that means anything; dividing by a small τ stays finite.
        range_B1 = np.minimum(distance_BC.max(axis=1, keepdims=True), _MAX_RANGE)
        ratio_BC = np.minimum(distance_BC / np.where(range_B1 > 0, range_B1, 1.0), 1.0)
        code_BC = np.maximum(np.rint(_LEVELS * ratio_BC ** (1 / _POWER)), 1.0).astype(np.uint8)
        np.put_along_axis(code_BC, index_B1.astype(np.int64), 0, axis=1)
        return {"class_index": index_B1, "logit_range": range_B1[:, 0].astype("<f4"), "logit": code_BC}

    def log_prob(self, record: Mapping[str, Tensor], temperature: float) -> Tensor:
        """log softmax of minus the decoded distances over τ, (B, C) float32."""
        ratio_BC = (record["logit"].to(torch.float32) / _LEVELS) ** _POWER
        return torch.log_softmax(ratio_BC * (record["logit_range"].to(torch.float32) / -temperature)[:, None], dim=-1)


def first_class(logit_BC: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """The first index of each row's maximum, (B, 1): the definition of the hard label, ties included."""
    index_B1: NDArray[np.generic] = logit_BC.argmax(axis=1)[:, None].astype(dtype)
    return index_B1
