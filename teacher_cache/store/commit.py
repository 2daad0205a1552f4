"""Committing one unit: the order of writes that makes it all or nothing under kill -9 and many writers.

The protocol knows nothing of the store; it works on the entry and the arrays of a unit.
"""

import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from shards.errors import CacheError
from teacher_cache.store.digest import UnitId

Arrays = dict[str, NDArray[Any]]
_ATTEMPTS = 8
_PAUSE_S = 0.01


class UnitObjects(Protocol):
    """The objects of units, as the commit sees them."""

    def read_entry(self, unit: UnitId) -> int:
        """The ledger entry, 0 when absent; CacheError when damaged."""

    def write_entry(self, unit: UnitId, digest: int) -> None:
        """Replace the ledger entry, atomically."""

    def read_arrays(self, unit: UnitId) -> Arrays:
        """The arrays of the unit; CacheError when one is damaged."""

    def write_arrays(self, unit: UnitId, arrays: Arrays) -> None:
        """Replace the chunks of the unit, each atomically, in no order."""


def commit(objects: UnitObjects, unit: UnitId, arrays: Arrays, digest_of: Callable[[Arrays], int], where: str) -> bool:
    """Write a unit so that at any moment it is either whole in the ledger or not in it.

    Data chunks, read back, ledger entry, read back. Of several writers the last one to write anything reads back what
    stands in the end, and writes again if that is a mixture; a unit that is already whole is left alone.

    Returns:
        True if this call wrote the unit, False if another writer's valid unit stands.

    Errors:
        CacheError when it cannot be written, or is still a mixture after several attempts.
    """
    digest = digest_of(arrays)
    if _entry_or_none(objects, unit) != 0:
        if _is_whole(objects, unit, digest_of):
            return False
        objects.write_entry(unit, 0)  # what stands is not whole: from here on it is not in the ledger either
    for attempt in range(_ATTEMPTS):
        if attempt:
            # Two writers in lockstep would undo each other for ever; unequal pauses part them.
            time.sleep(_PAUSE_S * 2**attempt * (1 + secrets.randbelow(1000) / 1000))
        objects.write_arrays(unit, arrays)
        if _digest_on_disk(objects, unit, digest_of) != digest:
            continue
        objects.write_entry(unit, digest)
        if _is_whole(objects, unit, digest_of):
            return objects.read_entry(unit) == digest
    raise CacheError(
        f"{where}: what is read back is not what was written, {_ATTEMPTS} times; another process keeps writing "
        "this unit with other records, or the disk is failing; stop the other writer and run cache-teacher again"
    )


def _entry_or_none(objects: UnitObjects, unit: UnitId) -> int | None:
    try:
        return objects.read_entry(unit)
    except CacheError:
        return None  # damaged: it is about to be replaced


def _digest_on_disk(objects: UnitObjects, unit: UnitId, digest_of: Callable[[Arrays], int]) -> int | None:
    try:
        return digest_of(objects.read_arrays(unit))
    except CacheError:
        return None  # damaged: it is about to be replaced


def _is_whole(objects: UnitObjects, unit: UnitId, digest_of: Callable[[Arrays], int]) -> bool:
    entry = _entry_or_none(objects, unit)
    return bool(entry) and _digest_on_disk(objects, unit, digest_of) == entry
