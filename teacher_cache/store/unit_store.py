"""Read, check and commit the units of a cache: their arrays, the ledger, and the order of writes of a commit.

A commit is all or nothing under kill -9 and many writers: data chunks, read back, ledger entry, read back. Of several
writers the last one to write anything reads back what stands in the end, and writes again if that is a mixture.

V views of a unit, R rows of its shard, F sampled positions, C classes.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError, UnreachableError
from teacher_cache.store import layout
from teacher_cache.store.digest import UnitId, fidelity_positions, unit_digest
from teacher_cache.store.header import Header
from teacher_cache.store.layout import chunk_key
from teacher_cache.store.ledger import UNIT_DIGEST, Ledger, decode_values, entry_key
from teacher_cache.store.unit import Arrays, check_arrays
from teacher_cache.store.zarr_arrays import UnitArrays
from teacher_cache.store.zarr_objects import Objects

_ATTEMPTS = 8
_PAUSE_S = 0.01
_T = TypeVar("_T")


class UnitStore:
    """The units of an open cache.

    Attributes:
        layouts: the arrays that hold units.
        ledger: which units are committed.
    """

    def __init__(self, objects: Objects, header: Header, ledger: Ledger) -> None:
        """Open the arrays of the units; CacheError when the metadata of one is not what the header says."""
        self._objects, self._header, self.ledger = objects, header, ledger
        self.layouts = layout.unit_layouts(header)
        self._arrays = UnitArrays(objects, header)

    def unit_id(self, view_block: int, shard: int) -> UnitId:
        """The unit at some coordinates; ValueError outside the cache."""
        for name, value, bound in (
            ("view block", view_block, self._header.num_view_blocks),
            ("shard", shard, len(self._header.rows_S)),
        ):
            if not 0 <= value < bound:
                raise ValueError(f"{self._objects.place.url}: expected a {name} in [0, {bound}), got {value}")
        return UnitId(int(view_block), int(shard))

    def describe(self, unit: UnitId) -> str:
        """The unit in words, for messages."""
        per_unit = self._header.spec.recipe.block_views
        first = unit.view_block * per_unit
        return (
            f"{self._objects.place.url}: unit (view block {unit.view_block}: views {first} to {first + per_unit - 1}, "
            f"shard {unit.shard}: {self._header.shard_names[unit.shard]})"
        )

    def fidelity_positions(self, unit: UnitId) -> NDArray[np.uint32]:
        """The (view in the unit, row) pairs whose full logits are stored, (F, 2) uint32; F = 0 for exact records."""
        count = next((item.shape[2] for item in self.layouts if item.name == layout.FIDELITY_AT), 0)
        name = self._header.shard_names[unit.shard]
        return fidelity_positions(self._header.spec, unit, name, self._num_rows(unit), count)

    def read(self, unit: UnitId) -> Arrays:
        """The arrays of a unit, checked against its ledger entry; CacheError as `TeacherCache.read_unit`."""
        try:
            entry = self.read_entry(unit)
            arrays = self.read_arrays(unit) if entry else {}
        except CacheError as error:
            raise type(error)(f"{self.describe(unit)}: {error}") from error
        if entry == 0:
            raise CacheError(f"{self.describe(unit)} is not in the ledger; run cache-teacher to compute it")
        got = self.digest(unit, arrays)
        if got != entry:
            raise CacheError(
                f"{self.describe(unit)}: expected digest {entry:016x} (from the ledger), got {got:016x}; "
                "run verify-cache --repair, then cache-teacher"
            )
        return arrays

    def check(self, unit: UnitId, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """The arrays of a unit in their dtypes on disk, `fidelity_at` added; ValueError naming what does not fit."""
        positions_F2 = self.fidelity_positions(unit)
        return check_arrays(self.layouts, arrays, self._num_rows(unit), positions_F2, self.describe(unit))

    def commit(self, unit: UnitId, arrays: Arrays) -> bool:
        """Write a unit so that at any moment it is either whole in the ledger or not in it.

        Args:
            arrays: as `check` returns them.

        Returns:
            True if this call wrote the unit, False if another writer's valid unit stands.

        Errors:
            CacheError when it cannot be written, or is still a mixture after several attempts.
        """
        digest = self.digest(unit, arrays)
        if self._entry_or_none(unit) != 0:
            if self._whole_entry(unit):
                return False
            self.write_entry(unit, 0)  # what stands is not whole: from here on it is not in the ledger either
        for attempt in range(_ATTEMPTS):
            if attempt:
                # Two writers in lockstep would undo each other for ever; unequal pauses part them.
                time.sleep(_PAUSE_S * 2**attempt * (1 + secrets.randbelow(1000) / 1000))
            self.write_arrays(unit, arrays)
            if self._stored_digest(unit) != digest:
                continue
            self.write_entry(unit, digest)
            if whole := self._whole_entry(unit):
                return whole == digest
        raise CacheError(
            f"what is read back is not what was written, {_ATTEMPTS} times; another process keeps writing this unit "
            "with other records, or the disk is failing; stop the other writer and run cache-teacher again"
        )

    def num_bytes(self, unit: UnitId) -> dict[str, int]:
        """Bytes on disk of each object of a unit, ledger entry included; in a packed cache its share of each object."""
        keys = {item.name: chunk_key(item, unit) for item in self.layouts}
        if not self._header.packed:
            keys[UNIT_DIGEST] = entry_key(unit)
        share = self._header.num_view_blocks if self._header.packed else 1
        stored = self._objects.read(list(keys.values()))
        return {name: -(-len(data or b"") // share) for name, data in zip(keys, stored, strict=True)}

    def read_entry(self, unit: UnitId) -> int:
        """The ledger entry, 0 when absent; CacheError when damaged."""
        return self.ledger.entry(unit)

    def write_entry(self, unit: UnitId, digest: int) -> None:
        """Replace the ledger entry, atomically."""
        self.ledger.write(unit, digest)

    def read_arrays(self, unit: UnitId) -> Arrays:
        """The arrays of a unit as they stand; CacheError when one is missing or damaged."""
        return self._arrays.read(unit, self._num_rows(unit), len(self.fidelity_positions(unit)))

    def read_with_entry(self, unit: UnitId) -> tuple[int, Arrays]:
        """The ledger entry and the arrays of a unit, asked for at the same time; CacheError as of both."""
        rows, positions, key = self._num_rows(unit), len(self.fidelity_positions(unit)), entry_key(unit)
        arrays, chunk = self._arrays.read_beside(unit, rows, positions, key)
        where = f"{self._objects.place.url}/{key}"
        return 0 if chunk is None else int(decode_values(chunk, 1, where)[0]), arrays

    def write_arrays(self, unit: UnitId, arrays: Arrays) -> None:
        """Replace the chunks of a unit, each atomically, in no order."""
        self._arrays.write(unit, arrays)

    def write_shard(self, shard: int, units: Sequence[Arrays]) -> None:
        """Write all units of a shard of a packed cache, read them back, and enter them into the ledger.

        Errors:
            CacheError when what is read back is not what was written.
        """
        self._arrays.write_shard(shard, units)
        for block, arrays in enumerate(units):
            unit = UnitId(block, shard)
            digest = self.digest(unit, arrays)
            if self._stored_digest(unit) != digest:
                raise CacheError(
                    f"{self.describe(unit)}: what is read back is not what was written; the disk is failing, or "
                    "another process writes here"
                )
            self.write_entry(unit, digest)

    def digest(self, unit: UnitId, arrays: Arrays) -> int:
        """Return the ledger's entry for a unit with these arrays."""
        return unit_digest(self._header.identity, unit, self._header.shard_names[unit.shard], arrays)

    def _num_rows(self, unit: UnitId) -> int:
        return int(self._header.rows_S[unit.shard])

    def _entry_or_none(self, unit: UnitId) -> int | None:
        return unless_damaged(lambda: self.read_entry(unit))

    def _stored_digest(self, unit: UnitId) -> int | None:
        return unless_damaged(lambda: self.digest(unit, self.read_arrays(unit)))

    def _whole_entry(self, unit: UnitId) -> int:
        """The entry of a unit whose stored arrays are what it says; 0 where they are not, or anything is damaged."""
        entry, arrays = unless_damaged(lambda: self.read_with_entry(unit)) or (0, {})
        return entry if entry and self.digest(unit, arrays) == entry else 0


def unless_damaged(read: Callable[[], _T]) -> _T | None:
    """What is read; None where that is damaged, as it is replaced next. UnreachableError where it may be whole."""
    try:
        return read()
    except UnreachableError:
        raise
    except CacheError:
        return None
