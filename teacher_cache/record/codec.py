"""Teacher logits to records and back: one door for every kind of record.

Encoding is NumPy (stage 1 writes from the host), decoding is torch on any device (stage 2 decodes a batch beside the
student). A record knows nothing of τ and λ.

Legend: B rows of a batch, C classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_cache.record.kinds.record_kind import KindCodec
from teacher_cache.record.largest_logits import require_finite
from teacher_cache.record.record_format import RecordFormat, require_temperature
from teacher_cache.record.tail_basis import TailBasis


class RecordCodec:
    """Encodes logits into the fields of a record format and decodes them for any τ.

    Args:
        record_format: what to keep.
        basis: fitted by `fit_basis` for kinds that need one; None for the others.

    Raises:
        ValueError: a basis is missing, superfluous, or was fitted for another format.
    """

    def __init__(self, record_format: RecordFormat, basis: TailBasis | None = None) -> None:
        self.record_format = record_format
        self._codec = _codec_of(record_format, basis)

    def encode(self, logit_BC: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """The record of each row.

        Args:
            logit_BC: (B, C) teacher logits; computed in float32.

        Returns:
            The arrays named by `record_format.fields()`, each with B rows.

        Raises:
            ValueError: the shape is not (B, C).
            CacheError: a row holds NaN or infinity; the message names the first such row.
        """
        logit_BC = np.asarray(logit_BC)
        if logit_BC.ndim != 2 or logit_BC.shape[1] != self.record_format.num_classes:
            raise ValueError(f"logits: expected (B, {self.record_format.num_classes}), got {logit_BC.shape}")
        require_finite(logit_BC)
        with torch.autocast("cpu", enabled=False):
            return self._codec.encode(logit_BC.astype(np.float32, copy=False))

    def log_prob(self, record: Mapping[str, Tensor], temperature: float) -> Tensor:
        """Log softmax of the teacher at τ, (B, C) float32, on the device of the record; the same inside any autocast.

        Args:
            record: the fields as tensors with B rows; integer fields in any integer dtype that holds them.
            temperature: τ > 0.

        Raises:
            ValueError: τ is no finite number above 0, or the kind holds no probabilities.
        """
        require_temperature(temperature)
        # Autocast would round the matrix products of a decoder, and break those that mix its result with float32.
        with torch.autocast(next(iter(record.values())).device.type, enabled=False):
            return self._codec.log_prob(record, temperature)

    @property
    def num_clamped(self) -> int:
        """Rows encoded so far with a value beyond the ranges that the calibration set; the record holds the limit."""
        return self._codec.num_clamped

    def hard_label(self, record: Mapping[str, Tensor]) -> Tensor:
        """The teacher's first class, (B,) int64: the first index of the largest logit, as it was when encoded."""
        return record["class_index"][:, 0].to(torch.int64)


def _codec_of(record_format: RecordFormat, basis: TailBasis | None) -> KindCodec:
    if record_format.needs_basis and basis is None:
        raise ValueError(f"record kind {record_format.kind!r} needs a tail basis: fit one with fit_basis")
    if not record_format.needs_basis and basis is not None:
        raise ValueError(f"record kind {record_format.kind!r} takes no tail basis")
    return record_format.entry.codec(record_format.shape, basis)
