"""Create, open, read, commit to and grow a teacher cache.

The ledger alone says what is there: `unit_digest` holds one entry per unit in an object of its own, so that two writers
never share one. `ledger` is a snapshot of all entries that shows a reader the coverage in one request; it is never the
proof of a unit. docs/dev/cache-format.md has the whole format.

V views of a unit, R rows of its shard, B view blocks, S shards, F sampled positions, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from shards.text.figures import count
from teacher_cache.record.tail_basis import TailBasis
from teacher_cache.store.digest import IndexLike, UnitId
from teacher_cache.store.header import (
    Header,
    header_from_attributes,
    make_header,
    no_cache,
    read_root,
    require_whole_units,
    write_root,
)
from teacher_cache.store.ledger import Ledger
from teacher_cache.store.place import DEFAULT_TIMEOUT_S, Place
from teacher_cache.store.spec import CacheSpec, require_equal
from teacher_cache.store.unit import Arrays
from teacher_cache.store.unit_store import UnitStore
from teacher_cache.store.zarr_arrays import read_basis, write_basis, write_metadata
from teacher_cache.store.zarr_objects import Objects


class TeacherCache:
    """An open cache; use with `with`. A writable one renews the ledger's snapshot when it is left without error.

    Attributes:
        url, writable: where it is, and whether units may be committed. folder: on a local disk; None when remote.
        header: what its root says. units: its units and their ledger. basis: the tail basis, or None.
        objects: the named objects of the cache.
    """

    def __init__(self, objects: Objects, header: Header, *, writable: bool) -> None:
        self.url, self.folder = objects.place.url, objects.place.folder
        self.writable, self.objects, self.header = writable, objects, header
        shape = header.num_view_blocks, len(header.rows_S)
        ledger = Ledger(objects, shape, trust_snapshot=not writable, packed=header.packed)
        self.units = UnitStore(objects, header, ledger)
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
        class_names: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Self:
        """Make an empty cache, or open the one of the same spec that is there; one process should create.

        Args:
            url: a folder or an object store.
            spec, index, basis: what it is for; the basis where the record kind needs one.
            num_views: a multiple of V; a cache that is there and has fewer views grows.
            made_with: provenance, of a copy; None takes the libraries installed here.
            class_names: of the answers, where teacher and shards both say them.
            timeout_s: longest wait for one object of a remote place.

        Errors:
            ValueError for arguments that do not fit each other, CacheError for a cache of another spec.
        """
        basis_arrays = {} if basis is None else dict(basis.to_arrays())
        header = make_header(spec, index, num_views, basis_arrays, made_with, class_names)
        objects = Objects.at(Place.parse(url, writable=True, timeout_s=timeout_s), writable=True)
        if read_root(objects) is not None:
            objects.close_session()
            cache = cls.open(url, writable=True, expect=spec, timeout_s=timeout_s)
            cache.grow(max(num_views, cache.num_views))
            return cache
        write_metadata(objects, header)
        write_basis(objects, header, basis_arrays)
        cache = cls(objects, header, writable=True)
        cache.units.ledger.save()
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
            attributes = read_root(objects)
            if attributes is None:
                raise no_cache(place)
            header = header_from_attributes(attributes, place.url)
            if expect is not None:
                require_equal(expect, header.spec, place.url)
            if writable and header.packed:
                raise CacheError(
                    f"{place.url}: this cache is packed, so it cannot be extended or repaired; copy it with copy-cache "
                    "(without --pack) to another place, and work there"
                )
            return cls(objects, header, writable=writable)
        except BaseException:
            objects.close_session()
            raise

    @classmethod
    def exists(cls, url: str | Path) -> bool:
        """Whether there is a finished cache; CacheError when its root is damaged or cannot be reached."""
        place = Place.parse(url, writable=False)
        objects = Objects.at(place, writable=False)
        try:
            return read_root(objects) is not None
        finally:
            objects.close_session()

    @property
    def spec(self) -> CacheSpec:
        """The spec that it was made for."""
        return self.header.spec

    @property
    def num_views(self) -> int:
        """Views it has room for."""
        return self.header.num_views

    @property
    def views_per_unit(self) -> int:
        """V."""
        return self.header.spec.recipe.block_views

    @property
    def num_view_blocks(self) -> int:
        """B."""
        return self.header.num_view_blocks

    @property
    def num_shards(self) -> int:
        """S."""
        return len(self.header.rows_S)

    @property
    def rows_S(self) -> NDArray[np.int64]:  # noqa: N802 - the shape is part of the name
        """Samples of each shard, (S,) int64."""
        return self.header.rows_S

    @property
    def row_fields(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and shape of one entry of the arrays that have one per view and row: record and pixel digest."""
        layouts = (item for item in self.units.layouts if item.dimensions[0] == "view")
        return {item.name: (np.dtype(item.dtype), tuple(item.shape[3:])) for item in layouts}

    def describe(self, unit: UnitId) -> str:
        """The unit in words, for messages."""
        return self.units.describe(unit)

    def ledger(self) -> NDArray[np.uint64]:
        """The entry of every unit, (B, S) uint64; 0 where there is none.

        A reader starts from the snapshot, a writer from the entries themselves; units without a known entry are
        looked up at every call, so that the work of other processes is seen.

        Errors:
            CacheError when the snapshot or (for a reader) an entry is damaged.
        """
        return self.units.ledger.refresh()

    def missing(self) -> list[tuple[int, int]]:
        """The units that are not in the ledger, as (view block, shard), view block first."""
        return [(int(b), int(s)) for b, s in np.argwhere(self.ledger() == 0)]

    def is_committed(self, view_block: int, shard: int) -> bool:
        """Whether a unit is in the ledger by now: one request. A writer takes a damaged entry for none."""
        return self.units.ledger.holds(self.units.unit_id(view_block, shard))

    def fidelity_positions(self, view_block: int, shard: int) -> NDArray[np.uint32]:
        """The (view in the unit, row) pairs whose full logits are stored, (F, 2) uint32; F = 0 for exact records."""
        return self.units.fidelity_positions(self.units.unit_id(view_block, shard))

    def read_unit(self, view_block: int, shard: int) -> Arrays:
        """The arrays of a unit, checked against the ledger.

        Returns:
            name → (V, R, …) for each record field and `pixel_digest`; with fidelity also `fidelity_at` (F, 2) uint32
            and `fidelity_logit` (F, C) float16.

        Errors:
            CacheError when the unit is not in the ledger, or anything of it is missing, damaged or foreign.
        """
        return self.units.read(self.units.unit_id(view_block, shard))

    def commit_unit(self, view_block: int, shard: int, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Put a unit into the cache, all or nothing; see `teacher_cache.store.unit_store` for the order of the writes.

        Args:
            view_block, shard: coordinates.
            arrays: (V, R, …) for each record field and `pixel_digest`; with fidelity also `fidelity_logit` (F, C), the
                teacher's logits at `fidelity_positions`, in that order, float32.

        Returns:
            True if this call wrote it, False if a valid unit of another writer stands.

        Errors:
            ValueError when the arrays do not fit, CacheError naming the unit when it cannot be written.
        """
        unit = self.units.unit_id(view_block, shard)
        checked = self.units.check(unit, arrays)
        try:
            return self.units.commit(unit, checked)
        except CacheError as error:
            raise type(error)(f"{self.describe(unit)}: {error}") from error

    def invalidate(self, view_block: int, shard: int) -> None:
        """Take a unit out of the ledger, so that stage 1 computes it again."""
        self.units.write_entry(self.units.unit_id(view_block, shard), 0)

    def unit_bytes(self, view_block: int, shard: int) -> dict[str, int]:
        """Bytes on disk of each object of a unit, ledger entry included."""
        return self.units.num_bytes(self.units.unit_id(view_block, shard))

    def grow(self, num_views: int) -> None:
        """Make room for more views; old units stay. ValueError for fewer views or parts of a view block."""
        require_whole_units(self.spec.recipe, num_views, self.num_shards)
        if num_views < self.num_views:
            raise ValueError(
                f"num_views: {self.url} has {count(self.num_views, 'view')} and cannot shrink to {num_views}"
            )
        if num_views == self.num_views:
            return
        header = replace(self.header, num_views=num_views)
        write_metadata(self.objects, header)
        ledger = self.units.ledger.grown((header.num_view_blocks, self.num_shards))
        self.header, self.units = header, UnitStore(self.objects, header, ledger)
        ledger.save()
        write_root(self.objects, header)  # last: until here the cache has its old number of views

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Renew the snapshot if it is not what the entries say, unless leaving by an error, and close."""
        try:
            ledger = self.units.ledger
            if kind is None and self.writable and (ledger.changed or ledger.snapshot_problem() is not None):
                ledger.save()
        finally:
            self.close()

    def close(self) -> None:
        """Close the network session of a remote place; `with` does it."""
        self.objects.close_session()
