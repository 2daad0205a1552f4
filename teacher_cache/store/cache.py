"""A teacher cache: create, open, read and commit units, grow.

The ledger alone says what is there: `unit_digest` holds one entry per unit in an object of its own, so that two writers
never share one. `ledger` is a snapshot of all entries that shows a reader the coverage in one request; it is never the
proof of a unit. docs/cache-format.md has the whole format.

V views of a unit, R rows of its shard, B view blocks, S shards, F sampled positions, C classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from teacher_cache.record.codec import TailBasis
from teacher_cache.store import layout
from teacher_cache.store.commit import commit
from teacher_cache.store.digest import IndexLike, UnitId, fidelity_positions, unit_digest
from teacher_cache.store.header import (
    Header,
    header_from_attributes,
    make_header,
    read_root,
    require_views,
    write_root,
)
from teacher_cache.store.layout import chunk_key
from teacher_cache.store.ledger import UNIT_DIGEST, Ledger, entry_key
from teacher_cache.store.place import DEFAULT_TIMEOUT_S, Place
from teacher_cache.store.spec import CacheSpec, require_equal
from teacher_cache.store.unit import Arrays, check_arrays
from teacher_cache.store.zarr_arrays import UnitArrays, read_basis, write_basis, write_metadata
from teacher_cache.store.zarr_objects import Objects


class TeacherCache:
    """An open cache; use with `with`. A writable one renews the ledger's snapshot when it is left without error.

    Attributes:
        url, writable: where it is, and whether units may be committed. folder: on a local disk; None when remote.
        spec: what it was made for. basis: the tail basis, or None.
        num_views, views_per_unit: views it has room for, and V.
        num_view_blocks, num_shards, rows_S, shard_names: B, S, and the shards.
        made_with: library versions that made it. layouts: the arrays that hold units.
        entries: the ledger. objects: the named objects of the cache.
    """

    def __init__(self, objects: Objects, header: Header, *, writable: bool) -> None:
        """Use `create` or `open`."""
        self.url, self.folder = objects.place.url, objects.place.folder
        self.writable, self.objects = writable, objects
        self.adopt(header)
        self.entries = Ledger(objects, self.url, (self.num_view_blocks, self.num_shards), trust_snapshot=not writable)
        self.changed = False
        self.basis = read_basis(objects, header)

    @classmethod
    def create(
        cls,
        url: str | Path,
        spec: CacheSpec,
        index: IndexLike,
        basis: TailBasis | None = None,
        *,
        num_views: int,
        made_with: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Self:
        """Make an empty cache, or open the one of the same spec that is there; one process should create.

        Args:
            url: a folder or an object store.
            spec, index, basis: what it is for; the basis where the record kind needs one.
            num_views: a multiple of V; a cache that is there and has fewer views grows.
            made_with: provenance, of a copy; None takes the libraries installed here.
            timeout_s: longest wait for one object of a remote place.

        Errors:
            ValueError for arguments that do not fit each other, CacheError for a cache of another spec.
        """
        basis_arrays = {} if basis is None else dict(basis.to_arrays())
        header = make_header(spec, index, num_views, basis_arrays, made_with)
        objects = Objects.at(Place.parse(url, writable=True, timeout_s=timeout_s), writable=True)
        if read_root(objects, objects.place.url) is not None:
            objects.close_session()
            cache = cls.open(url, writable=True, expect=spec, timeout_s=timeout_s)
            cache.grow(max(num_views, cache.num_views))
            return cache
        write_metadata(objects, header)
        write_basis(objects, header, basis_arrays)
        cache = cls(objects, header, writable=True)
        cache.entries.save()
        write_root(objects, header)  # last: until here there is no cache
        return cache

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        writable: bool = False,
        expect: CacheSpec | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Self:
        """Open a cache.

        Args:
            url: folder, s3://, gs:// or, to read, https://.
            writable: whether units will be committed.
            expect: refuse the cache (CacheError naming each field) unless it has this spec.
            timeout_s: longest wait for one object of a remote place.

        Errors:
            CacheError when there is no cache, it is damaged, of another spec, or cannot be reached.
        """
        place = Place.parse(url, writable=writable, timeout_s=timeout_s)
        objects = Objects.at(place, writable=writable)
        try:
            attributes = read_root(objects, place.url)
            if attributes is None:
                raise CacheError(f"{place.url}: no cache here (no zarr.json); make one with cache-teacher")
            header = header_from_attributes(attributes, place.url)
            if expect is not None:
                require_equal(expect, header.spec, place.url)
            return cls(objects, header, writable=writable)
        except BaseException:
            objects.close_session()
            raise

    @classmethod
    def exists(cls, url: str | Path, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Whether there is a finished cache; CacheError when its root is damaged or cannot be reached."""
        place = Place.parse(url, writable=False, timeout_s=timeout_s)
        objects = Objects.at(place, writable=False)
        try:
            return read_root(objects, place.url) is not None
        finally:
            objects.close_session()

    def adopt(self, header: Header) -> None:
        """Take over what a header says; again when the cache has grown."""
        self.header, self.spec = header, header.spec
        self.num_views, self.views_per_unit = header.num_views, header.spec.recipe.block_views
        self.num_view_blocks, self.num_shards = header.num_view_blocks, len(header.rows_S)
        self.rows_S, self.shard_names, self.made_with = header.rows_S, header.shard_names, header.made_with
        self.layouts = layout.unit_layouts(header)
        self._arrays = UnitArrays(self.objects, header)

    @property
    def identity(self) -> str:
        """Fingerprint of spec and basis: what its units are of."""
        return self.header.identity

    @property
    def row_fields(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and shape of one entry of the arrays that have one per view and row: record and pixel digest."""
        layouts = (item for item in self.layouts if item.dimensions[0] == "view")
        return {item.name: (np.dtype(item.dtype), tuple(item.shape[3:])) for item in layouts}

    def describe(self, unit: UnitId) -> str:
        """The unit in words, for messages."""
        first = unit.view_block * self.views_per_unit
        return (
            f"{self.url}: unit (view block {unit.view_block}: views {first} to {first + self.views_per_unit - 1}, "
            f"shard {unit.shard}: {self.shard_names[unit.shard]})"
        )

    def ledger(self) -> NDArray[np.uint64]:
        """The entry of every unit, (B, S) uint64; 0 where there is none.

        A reader starts from the snapshot, a writer from the entries themselves; what is not known to be there is
        looked up at every call, so that the work of other processes is seen.

        Errors:
            CacheError when the snapshot or (for a reader) an entry is damaged.
        """
        return self.entries.refresh()

    def missing(self) -> list[tuple[int, int]]:
        """The units that are not in the ledger, as (view block, shard), view block first."""
        return [(int(b), int(s)) for b, s in np.argwhere(self.ledger() == 0)]

    def is_committed(self, view_block: int, shard: int) -> bool:
        """Whether a unit is in the ledger by now: one request. A writer takes a damaged entry for none."""
        _, entry = next(self.entries.look_up([self._unit(view_block, shard)]))
        if isinstance(entry, CacheError) and not self.writable:
            raise entry
        return not isinstance(entry, CacheError) and entry != 0

    def fidelity_positions(self, view_block: int, shard: int) -> NDArray[np.uint32]:
        """The (view in the unit, row) pairs whose full logits are kept, (F, 2) uint32; F = 0 for exact records."""
        unit = self._unit(view_block, shard)
        count = next((i.shape[2] for i in self.layouts if i.name == layout.FIDELITY_AT), 0)
        name, num_rows = self.shard_names[shard], int(self.rows_S[shard])
        return fidelity_positions(self.spec, unit, name, num_rows, count)

    def read_unit(self, view_block: int, shard: int) -> Arrays:
        """The arrays of a unit, checked against the ledger.

        Returns:
            name → (V, R, …) for each record field and `pixel_digest`; with fidelity also `fidelity_at` (F, 2) uint32
            and `fidelity_logit` (F, C) float16.

        Errors:
            CacheError when the unit is not in the ledger, or anything of it is missing, damaged or foreign.
        """
        unit = self._unit(view_block, shard)
        try:
            entry = self.read_entry(unit)
            arrays = self.read_arrays(unit) if entry else {}
        except CacheError as error:
            raise CacheError(f"{self.describe(unit)}: {error}") from error
        if entry == 0:
            raise CacheError(f"{self.describe(unit)} is not in the ledger; run cache-teacher to compute it")
        got = self._digest(unit, arrays)
        if got != entry:
            raise CacheError(
                f"{self.describe(unit)}: expected digest {entry:016x} (from the ledger), got {got:016x}; "
                "run verify-cache --repair, then cache-teacher"
            )
        return arrays

    def commit_unit(self, view_block: int, shard: int, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Put a unit into the cache, all or nothing; see `teacher_cache.store.commit` for the order of the writes.

        Args:
            view_block, shard: coordinates.
            arrays: (V, R, …) for each record field and `pixel_digest`; with fidelity also `fidelity_logit` (F, C), the
                teacher's logits at `fidelity_positions`, in that order, float32.

        Returns:
            True if this call wrote it, False if a valid unit of another writer stands.

        Errors:
            ValueError when the arrays do not fit, CacheError naming the unit when it cannot be written.
        """
        unit = self._unit(view_block, shard)
        where = self.describe(unit)
        positions_F2 = self.fidelity_positions(view_block, shard)
        num_rows = int(self.rows_S[shard])
        checked = check_arrays(self.layouts, arrays, num_rows, positions_F2, where)
        try:
            written = commit(self, unit, checked, lambda stored: self._digest(unit, stored), where)
        except CacheError as error:
            raise error if str(error).startswith(where) else CacheError(f"{where}: {error}") from error
        self.changed = True
        return written

    def invalidate(self, view_block: int, shard: int) -> None:
        """Take a unit out of the ledger, so that stage 1 computes it again."""
        self.write_entry(self._unit(view_block, shard), 0)
        self.changed = True

    def unit_bytes(self, view_block: int, shard: int) -> dict[str, int]:
        """Bytes on disk of each object of a unit, ledger entry included."""
        unit = self._unit(view_block, shard)
        keys = {item.name: chunk_key(item, unit) for item in self.layouts}
        keys[UNIT_DIGEST] = entry_key(unit)
        stored = self.objects.read(list(keys.values()))
        return {name: len(data or b"") for name, data in zip(keys, stored, strict=True)}

    # What `teacher_cache.store.commit` needs: the objects of a unit.

    def read_entry(self, unit: UnitId) -> int:
        """The ledger entry, 0 when absent; CacheError when damaged."""
        return self.entries.entry(unit)

    def write_entry(self, unit: UnitId, digest: int) -> None:
        """Replace the ledger entry."""
        self.entries.write(unit, digest)

    def read_arrays(self, unit: UnitId) -> Arrays:
        """The arrays of a unit as they stand; CacheError when one is missing or damaged."""
        return self._arrays.read(unit, int(self.rows_S[unit.shard]), len(self.fidelity_positions(*unit)))

    def write_arrays(self, unit: UnitId, arrays: Arrays) -> None:
        """Replace the chunks of a unit."""
        self._arrays.write(unit, arrays)

    def grow(self, num_views: int) -> None:
        """Make room for more views; old units stay. ValueError for fewer views or parts of a view block."""
        require_views(self.spec, num_views)
        if num_views < self.num_views:
            raise ValueError(f"num_views: {self.url} has {self.num_views} views and cannot shrink to {num_views}")
        if num_views == self.num_views:
            return
        header = replace(self.header, num_views=num_views)
        write_metadata(self.objects, header)
        entries = self.entries.grown((header.num_view_blocks, self.num_shards))
        self.adopt(header)
        self.entries = entries
        entries.save()
        write_root(self.objects, header)  # last: until here the cache has its old number of views

    def __enter__(self) -> Self:
        """The cache itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Renew the snapshot if it is not what the entries say, unless leaving by an error, and close."""
        try:
            if kind is None and self.writable and (self.changed or self.entries.snapshot_problem() is not None):
                self.entries.save()
        finally:
            self.close()

    def close(self) -> None:
        """Close the network session of a remote place; `with` does it."""
        self.objects.close_session()

    def _unit(self, view_block: int, shard: int) -> UnitId:
        for name, value, bound in (
            ("view block", view_block, self.num_view_blocks),
            ("shard", shard, self.num_shards),
        ):
            if not 0 <= value < bound:
                raise ValueError(f"{self.url}: expected a {name} in [0, {bound}), got {value}")
        return UnitId(int(view_block), int(shard))

    def _digest(self, unit: UnitId, arrays: Arrays) -> int:
        return unit_digest(self.header.identity, unit, self.shard_names[unit.shard], arrays)


def spec_at(url: str | Path) -> CacheSpec | None:
    """What the cache at a place was made for; None when there is none. CacheError when its root is damaged."""
    if not TeacherCache.exists(url):
        return None
    with TeacherCache.open(url) as cache:
        return cache.spec
