"""Record which units are committed: one entry per unit is the truth, a snapshot of all entries its quick summary.

An entry is an object of its own, so that two writers never share one; the snapshot is rewritten by every stage 1
process when it ends. The snapshot can be behind the entries but is never taken as proof: reading a unit asks for its
entry, and what the snapshot does not name is looked up. Both are arrays with the codecs `bytes` and `crc32c`, which are
spelled out here, so that tens of thousands of entries are read in one sweep.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError, UnreachableError
from teacher_cache.store.digest import UnitId

if TYPE_CHECKING:
    from teacher_cache.store.zarr_objects import Objects

# B view blocks, S shards.

UNIT_DIGEST = "unit_digest"
LEDGER = "ledger"
LEDGER_BLOCKS = 64
"""View blocks in one chunk of the snapshot; fixed, because a cache may grow."""

UNKNOWN = 2**64 - 1
"""Fill of the snapshot: says nothing about a unit."""

_REPAIR = "run verify-cache --repair where the cache is writable, then cache-teacher"


def entry_key(unit: UnitId) -> str:
    """The object that holds the entry of a unit."""
    return f"{UNIT_DIGEST}/c/{unit.view_block}/{unit.shard}"


def encode_values(values: NDArray[np.uint64]) -> bytes:
    """A chunk of uint64: little-endian bytes, then their crc32c."""
    raw = values.astype("<u8").tobytes()
    checksum: int = google_crc32c.value(raw)
    return raw + checksum.to_bytes(4, "little")


def decode_values(chunk: bytes, count: int, where: str) -> NDArray[np.uint64]:
    """The inverse of `encode_values`; CacheError naming `where` when the chunk is damaged."""
    raw, checksum = chunk[:-4], chunk[-4:]
    if len(chunk) != 8 * count + 4 or google_crc32c.value(raw).to_bytes(4, "little") != checksum:
        raise CacheError(
            f"{where} is damaged: expected {count} × 8 bytes and their crc32c, got {len(chunk)} bytes that do not fit; "
            + _REPAIR
        )
    return np.frombuffer(raw, "<u8").astype(np.uint64)


class Ledger:
    """The entries of one cache, as far as they are known, and where to ask for the others.

    Args:
        objects: the objects of the cache.
        shape: (B, S).
        trust_snapshot: start from the snapshot (readers) instead of from nothing (writers).
        packed: the snapshot is all there is.

    Attributes:
        changed: whether an entry was written since the snapshot was last saved.
    """

    def __init__(
        self, objects: "Objects", shape: tuple[int, int], *, trust_snapshot: bool, packed: bool = False
    ) -> None:
        self._packed = packed
        self._objects, self._url, self._shape = objects, objects.place.url, shape
        self._trust_snapshot = trust_snapshot
        self._known_BS = np.zeros(shape, np.uint64)
        self._started, self.changed = not trust_snapshot, False

    def entry(self, unit: UnitId) -> int:
        """The entry of a unit as it stands, 0 when it is not there; CacheError when it is damaged."""
        entry = next(self.look_up([unit]))[1]
        if isinstance(entry, CacheError):
            raise entry
        return entry

    def holds(self, unit: UnitId) -> bool:
        """Whether a unit has an entry by now: one request. A writer takes a damaged entry for none."""
        entry = next(self.look_up([unit]))[1]
        if isinstance(entry, CacheError) and self._trust_snapshot:
            raise entry
        return not isinstance(entry, CacheError) and entry != 0

    def write(self, unit: UnitId, digest: int) -> None:
        """Replace the entry of a unit; 0 takes it out."""
        if not self._packed:
            self._objects.write(entry_key(unit), encode_values(np.array([digest], np.uint64)))
        self._known_BS[unit] = digest
        self.changed = True

    def refresh(self) -> NDArray[np.uint64]:
        """The entry of every unit, (B, S) uint64; those not known to be there are looked up.

        Errors:
            CacheError when the snapshot is damaged or gone, or an entry that a reader looks up is damaged. For a writer
            such an entry is not there: it is about to be replaced.
        """
        self._start()
        units = [UnitId(int(block), int(shard)) for block, shard in np.argwhere(self._known_BS == 0)]
        for unit, entry in self.look_up(units):
            if not isinstance(entry, CacheError):
                self._known_BS[unit] = entry
            elif self._trust_snapshot:
                raise entry
        return self._known_BS.copy()

    def _start(self) -> None:
        """Read the snapshot, once."""
        if not self._started:
            self._known_BS, self._started = self.snapshot(), True

    def look_up(self, units: Sequence[UnitId]) -> Iterator[tuple[UnitId, int | CacheError]]:
        """The entries of some units as they stand: 0 when it is not there, the error when it is damaged."""
        if self._packed:
            self._start()
            yield from ((unit, int(self._known_BS[unit])) for unit in units)
            return
        keys = [entry_key(unit) for unit in units]
        for unit, key, chunk in zip(units, keys, self._objects.read(keys), strict=True):
            try:
                yield unit, 0 if chunk is None else int(decode_values(chunk, 1, f"{self._url}/{key}")[0])
            except CacheError as error:
                yield unit, error

    def snapshot(self) -> NDArray[np.uint64]:
        """The ledger as last saved, (B, S) uint64, 0 where it says nothing; CacheError when it is damaged or gone."""
        num_blocks, num_shards = self._shape
        chunks = []
        for key in self._snapshot_keys():
            where = f"{self._url}/{key}"
            chunk = self._objects.read([key])[0]
            if chunk is None:
                raise CacheError(f"{where}: the snapshot of the ledger is gone; {_REPAIR}")
            chunks.append(decode_values(chunk, LEDGER_BLOCKS * num_shards, where).reshape(-1, num_shards))
        saved_BS = np.concatenate(chunks)[:num_blocks]
        return np.where(saved_BS == np.uint64(UNKNOWN), np.uint64(0), saved_BS)

    def snapshot_problem(self) -> str | None:
        """Say what is wrong with the snapshot; "" when it only lags behind the entries, None when it is as they are."""
        try:
            saved_BS = self.snapshot()
        except UnreachableError:
            raise
        except CacheError as error:
            return str(error)
        known_BS = self.refresh()
        if np.array_equal(saved_BS, known_BS):
            return None
        wrong = np.argwhere((saved_BS != 0) & (saved_BS != known_BS))
        return f"{self._url}: the snapshot of the ledger names {len(wrong)} units otherwise" if len(wrong) else ""

    def save(self) -> None:
        """Rewrite the snapshot from what is there now."""
        saved_BS = self.refresh()
        for n, key in enumerate(self._snapshot_keys()):
            full_BS = np.full((LEDGER_BLOCKS, self._shape[1]), UNKNOWN, np.uint64)
            part_BS = saved_BS[n * LEDGER_BLOCKS : (n + 1) * LEDGER_BLOCKS]
            full_BS[: len(part_BS)] = part_BS
            self._objects.write(key, encode_values(full_BS))
        self.changed = False

    def grown(self, shape: tuple[int, int]) -> "Ledger":
        """The ledger of the same cache with more view blocks; what is known stays known."""
        ledger = Ledger(self._objects, shape, trust_snapshot=self._trust_snapshot)
        ledger._known_BS[: self._shape[0]] = self._known_BS
        ledger._started, ledger.changed = self._started, self.changed
        return ledger

    def _snapshot_keys(self) -> list[str]:
        return [f"{LEDGER}/c/{n}/0" for n in range(-(-self._shape[0] // LEDGER_BLOCKS))]
