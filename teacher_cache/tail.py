"""The low-rank model of the classes that a record does not keep by name, fitted once per cache.

Legend: N calibration rows, C classes, r coefficients.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from teacher_cache.record import RecordFormat


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TailBasis:
    """What the decoder knows of a teacher before it sees a record; float32 little-endian unless stated.

    Args:
        mean_C: mean of the centred, winsorised logits.
        basis_Cr: orthonormal principal directions, strongest first.
    """

    mean_C: NDArray[np.float32]
    basis_Cr: NDArray[np.float32]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, as the store keeps them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "TailBasis":
        """The basis that `to_arrays` wrote."""
        return cls(**{f.name: np.asarray(arrays[f.name]) for f in fields(cls)})

    @property
    def digest(self) -> str:
        """sha256 (hex) over names, dtypes, shapes and bytes."""
        sha = hashlib.sha256()
        for name, array in sorted(self.to_arrays().items()):
            sha.update(repr((name, array.dtype.str, array.shape)).encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def fit_basis(logit_NC: NDArray[np.floating], record_format: RecordFormat) -> TailBasis:
    """Fit the model on calibration logits; equal rows give equal bytes."""
    z_NC = np.asarray(logit_NC, np.float32)
    z_NC = z_NC - z_NC.mean(axis=1, keepdims=True)
    return TailBasis(mean_C=z_NC.mean(axis=0), basis_Cr=np.zeros((z_NC.shape[1], 0), np.float32))
