"""Check the arrays of one unit, pad them to a chunk and cut them back.

V views of a unit, R rows of its shard, F sampled positions, C classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from teacher_cache.store.layout import FIDELITY_AT, FIDELITY_LOGIT, ArrayLayout

Arrays = dict[str, NDArray[Any]]
MAX_KEPT_LOGIT = 65_504.0
"""The largest float16: beyond it a full logit cannot be kept to measure the records by."""


def check_arrays(
    layouts: list[ArrayLayout],
    arrays: Mapping[str, NDArray[Any]],
    num_rows: int,
    positions_F2: NDArray[np.uint32],
    where: str,
) -> Arrays:
    """The arrays of a unit, complete, in their dtypes on disk; ValueError naming what does not fit.

    Args:
        layouts: the arrays of the store that hold units.
        arrays: (V, R, …) for each record field and the pixel digest; with fidelity, `fidelity_logit` (F, C).
        num_rows: R.
        positions_F2: what `fidelity_at` will hold; unused in a cache without fidelity.
        where: the unit, for messages.
    """
    complete = dict(arrays)
    names = [item.name for item in layouts]
    if FIDELITY_AT in names:
        complete[FIDELITY_AT] = positions_F2
    if set(complete) != set(names):
        wanted = sorted(set(names) - {FIDELITY_AT})
        raise ValueError(f"{where}: expected the arrays {wanted}, got {sorted(arrays)}")
    checked: Arrays = {}
    for item in layouts:
        array = complete[item.name]
        shape = _shape_of(item, num_rows, positions_F2)
        if array.shape != shape:
            raise ValueError(f"{where}: {item.name}: expected shape {shape}, got {array.shape}")
        if item.name == FIDELITY_LOGIT:
            array = _half(array, where)
        if array.dtype != np.dtype(item.dtype):
            raise ValueError(f"{where}: {item.name}: expected dtype {item.dtype}, got {array.dtype.str}")
        checked[item.name] = np.ascontiguousarray(array)
    return checked


def pad_array(item: ArrayLayout, array: NDArray[Any]) -> NDArray[Any]:
    """The full chunk of one array, padded at the end of its rows (or positions) with the fill value."""
    axis = _rows_axis(item)
    size = tuple(n for n, name in zip(item.chunks, item.dimensions, strict=True) if name not in ("shard", "view_block"))
    full = np.full(size, item.fill, np.dtype(item.dtype))
    full[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
    return full


def cut_array(item: ArrayLayout, full: NDArray[Any], num_rows: int, num_positions: int) -> NDArray[Any]:
    """The inverse of `pad_array`."""
    count = num_positions if item.dimensions[2] == "position" else num_rows
    return full[(slice(None),) * _rows_axis(item) + (slice(count),)]


def _rows_axis(item: ArrayLayout) -> int:
    return 0 if item.dimensions[2] == "position" else 1


def _shape_of(item: ArrayLayout, num_rows: int, positions_F2: NDArray[np.uint32]) -> tuple[int, ...]:
    if item.dimensions[2] == "position":
        return (len(positions_F2), *item.shape[3:])
    return (item.chunks[0], num_rows, *item.shape[3:])


def _half(logit_FC: NDArray[Any], where: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half_FC = logit_FC.astype("<f2")
    if not np.isfinite(half_FC).all():
        raise CacheError(
            f"{where}: {FIDELITY_LOGIT}: expected finite logits within ±{MAX_KEPT_LOGIT:,.0f}, got "
            f"{np.abs(logit_FC).max()}; check the teacher's weights"
        )
    return half_FC
