"""Coordinates, digests and fidelity samples of units: pure arithmetic.

A unit is one shard × V consecutive views. Its digest covers the identity of the cache, the unit's coordinates, and
name, dtype, shape and bytes of every array in it, so that a chunk of another unit, field or cache is noticed as well as
a flipped bit.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.rng import stream
from teacher_cache.store.spec import CacheSpec, canonical_json

# S shards, F sampled positions of a unit.

FIDELITY_RATE = 1000
"""One view in so many keeps its full logits (fewer above 1,000 classes, so that it stays near 2 bytes per view)."""


class IndexLike(Protocol):
    """What the cache needs to know of a shard index."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def rows_S(self) -> NDArray[np.int64]: ...  # noqa: N802

    @property
    def fingerprint(self) -> str: ...

    @property
    def num_skipped(self) -> int: ...


class IndexFacts(NamedTuple):
    """The same as a value, where no index is open: of the shards of a cache, or of a store that is only weighed."""

    names: tuple[str, ...]
    rows_S: NDArray[np.int64]
    fingerprint: str
    num_skipped: int = 0


class UnitId(NamedTuple):
    """Where a unit is: a view block and a shard."""

    view_block: int
    shard: int


def array_digest(arrays: Mapping[str, NDArray[Any]], header: Any = None) -> bytes:
    """BLAKE2b, 8 bytes, over a JSON header and the name, dtype, shape and bytes of each array, in order of name."""
    names = sorted(arrays)
    shapes = [[name, _little(arrays[name]).dtype.str, list(arrays[name].shape)] for name in names]
    hasher = hashlib.blake2b(canonical_json([header, shapes]), digest_size=8)
    for name in names:
        hasher.update(np.ascontiguousarray(_little(arrays[name])).tobytes())
    return hasher.digest()


def unit_digest(identity: str, unit: UnitId, shard_name: str, arrays: Mapping[str, NDArray[Any]]) -> int:
    """The ledger entry of a unit, in [1, 2^64): 0 is kept for "not there".

    Args:
        identity: fingerprint of spec and basis, so that units of another cache are foreign.
        unit: coordinates.
        shard_name: base name of the shard.
        arrays: every array of the unit, cut to the shard's rows.
    """
    header = ["unit", identity, unit.view_block, unit.shard, shard_name]
    return int.from_bytes(array_digest(arrays, header), "little") or 1


def fidelity_count(spec: CacheSpec, rows_S: NDArray[np.int64]) -> int:
    """Positions with full logits in each unit (F); 0 where there is no error to measure.

    About one view in `FIDELITY_RATE`, counted for the longest shard, and the record's `fidelity_floor` per view block
    at least, but never more than a quarter of the views: what is measured cannot be used to fit the tail basis.
    """
    if not spec.record.entry.measurable or rows_S.size == 0:
        return 0
    views = spec.recipe.block_views * int(rows_S.max())
    share = math.ceil(views * min(1.0, 1000 / spec.record.num_classes) / FIDELITY_RATE)
    return min(max(1, views // 4), max(share, math.ceil(spec.record.fidelity_floor / len(rows_S))))


def fidelity_bytes(spec: CacheSpec, rows_S: NDArray[np.int64]) -> float:
    """Return the bytes that full logits add to a view, before compression, a mean over the cache."""
    num_kept = fidelity_count(spec, rows_S) * len(rows_S)
    return 2 * spec.record.num_classes * num_kept / max(1, spec.recipe.block_views * int(rows_S.sum()))


def fidelity_positions(spec: CacheSpec, unit: UnitId, shard_name: str, num_rows: int, count: int) -> NDArray[np.uint32]:
    """The (view in the unit, row) pairs of a unit that keep their full logits.

    A pure function of its arguments: keyed by recipe seed, shard name and view block, without replacement, sorted.

    Returns:
        (F, 2) uint32 with F = min(count, V × num_rows).
    """
    num_views = spec.recipe.block_views
    key = stream(spec.recipe.seed, "fidelity", shard_name, unit.view_block)
    cells = np.sort(key.permutation(num_views * num_rows)[:count])
    return np.stack([cells // num_rows, cells % num_rows], axis=1).astype(np.uint32)


def _little(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
