"""The cache as a Zarr v3 hierarchy: create, open, read and commit units, grow. The only file that knows zarr.

The ledger alone says what is there: `unit_digest` holds one entry per unit in an object of its own, so that two writers
never share one. `ledger` is a snapshot of all entries that shows a reader the coverage in one request; it is never the
proof of a unit. Every object is asked for by name: nothing is ever listed. docs/cache-format.md has the whole format.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath, WrapperStore

from shards.errors import CacheError
from teacher_cache.record.codec import TailBasis
from teacher_cache.store import header as root
from teacher_cache.store import layout
from teacher_cache.store.cache import CacheUnits, chunk_key
from teacher_cache.store.digest import IndexLike, UnitId
from teacher_cache.store.layout import ArrayLayout, selection
from teacher_cache.store.place import DEFAULT_TIMEOUT_S, Place, close_filesystem, flush, naming, read_file
from teacher_cache.store.spec import CacheSpec, require_equal
from teacher_cache.store.unit import Arrays, cut_array, pad_array

_LOOKUPS_AT_ONCE = 64
_RESTORE = "restore it from a copy"


class Objects(WrapperStore[Any]):
    """A zarr store whose every request ends in time or in a CacheError that names the object; listing is a bug."""

    def __init__(self, store: Any, place: Place) -> None:
        """Guard the store of a place."""
        super().__init__(store)
        self.place = place

    @classmethod
    def at(cls, place: Place, *, writable: bool) -> "Objects":
        """The objects of a place; no request is made yet."""
        if place.folder is not None:
            return cls(LocalStore(place.folder, read_only=not writable), place)
        fs, path = place.filesystem()
        return cls(FsspecStore(fs, path=path, read_only=not writable), place)

    def _with_store(self, store: Any) -> "Objects":
        return Objects(store, self.place)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The object's buffer, or None when there is none; an absent chunk is an error, never the fill value."""
        buffer = await self.place.reach(key, self._store.get(key, prototype, byte_range))
        if buffer is None and "/c/" in key:
            raise CacheError(f"{self.place.url}/{key} is gone; run verify-cache --repair, then cache-teacher")
        return buffer

    async def set(self, key: str, value: Any) -> None:
        """Replace an object, atomically; on a local disk also durably."""
        await self.place.reach(key, self._set(key, value))

    async def _set(self, key: str, value: Any) -> None:
        await self._store.set(key, value)
        if self.place.folder is not None:
            await asyncio.to_thread(flush, self.place.folder / key)

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of each object, None where there is none."""
        if self.place.folder is not None:
            return [read_file(self.place.folder / key) for key in keys]
        return sync(self._read_all(keys))

    async def _read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        gate = asyncio.Semaphore(_LOOKUPS_AT_ONCE)

        async def one(key: str) -> bytes | None:
            async with gate:
                buffer = await self.place.reach(key, self._store.get(key, default_buffer_prototype()))
                return None if buffer is None else bytes(buffer.to_bytes())

        return list(await asyncio.gather(*map(one, keys)))

    def write(self, key: str, data: bytes) -> None:
        """Replace an object."""
        sync(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def close_session(self) -> None:
        """Close the network session of a remote place."""
        if self.place.folder is None:
            sync(close_filesystem(self._store.fs))

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Never: objects are asked for by name."""
        raise AssertionError(f"{self.place.url}/{prefix}: a cache is never listed")

    list_dir = list_prefix

    def list(self) -> AsyncIterator[str]:
        """Never."""
        return self.list_prefix("")


class TeacherCache(CacheUnits):
    """An open cache; use with `with`. A writable one renews the ledger's snapshot when it is left without error.

    Attributes:
        basis: the tail basis, or None.
        folder: where it is on a local disk, None when remote. The others are those of `CacheUnits`.
    """

    def __init__(self, objects: Objects, header: root.Header, *, writable: bool) -> None:
        """Use `create` or `open`."""
        super().__init__(objects, header, objects.place.url, writable=writable)
        self._objects, self.folder = objects, objects.place.folder
        self.open_arrays()
        self.basis = self._read_basis()

    @classmethod
    def create(
        cls,
        url: str | Path,
        spec: CacheSpec,
        index: IndexLike,
        basis: TailBasis | None = None,
        *,
        num_views: int,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Self:
        """Make an empty cache, or open the one of the same spec that is there; one process should create.

        Args:
            url: folder, s3:// or gs://.
            spec, index, basis: what it is for; the basis where the record kind needs one.
            num_views: a multiple of V; a cache that is there and has fewer views grows.
            timeout_s: longest wait for one object of a remote place.

        Errors:
            ValueError for arguments that do not fit each other, CacheError for a cache of another spec.
        """
        basis_arrays = {} if basis is None else dict(basis.to_arrays())
        header = root.make_header(spec, index, num_views, basis_arrays)
        objects = Objects.at(Place.parse(url, writable=True, timeout_s=timeout_s), writable=True)
        if root.read_root(objects, objects.place.url) is not None:
            objects.close_session()
            cache = cls.open(url, writable=True, expect=spec, timeout_s=timeout_s)
            cache.grow(max(num_views, cache.num_views))
            return cache
        _write_metadata(objects, header)
        for name, array in _open_arrays(objects, layout.basis_layouts(header)).items():
            array[...] = basis_arrays[name.split("/")[1]]
        cache = cls(objects, header, writable=True)
        cache.entries.save()
        root.write_root(objects, header)  # last: until here there is no cache
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
            attributes = root.read_root(objects, place.url)
            if attributes is None:
                raise CacheError(f"{place.url}: no cache here (no zarr.json); make one with cache-teacher")
            header = root.header_from_attributes(attributes, place.url)
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
            return root.read_root(objects, place.url) is not None
        finally:
            objects.close_session()

    def close(self) -> None:
        """Close the network session of a remote place; `with` does it."""
        self._objects.close_session()

    def write_metadata(self, header: root.Header) -> None:
        """Write the metadata of every array, as the header has them."""
        _write_metadata(self._objects, header)

    def open_arrays(self) -> None:
        """Open every array anew; CacheError when the metadata of one is not what the header says."""
        self._arrays = _open_arrays(self._objects, [*self.layouts, *layout.ledger_layouts(self.header)])

    def read_arrays(self, unit: UnitId) -> Arrays:
        """The arrays of a unit as they stand; CacheError when one is missing or damaged."""

        async def one(item: ArrayLayout) -> NDArray[Any]:
            with naming(f"{self.url}/{chunk_key(item, unit)}", "run verify-cache --repair, then cache-teacher"):
                return np.asarray(await self._arrays[item.name].async_array.getitem(selection(item, unit)))

        num_rows, num_positions = int(self.rows_S[unit.shard]), len(self.fidelity_positions(*unit))
        full = sync(_gather([one(item) for item in self.layouts]))
        pairs = zip(self.layouts, full, strict=True)
        return {item.name: cut_array(item, array, num_rows, num_positions) for item, array in pairs}

    def write_arrays(self, unit: UnitId, arrays: Arrays) -> None:
        """Replace the chunks of a unit."""

        async def one(item: ArrayLayout) -> None:
            chunk = pad_array(item, arrays[item.name])
            await self._arrays[item.name].async_array.setitem(selection(item, unit), chunk)

        sync(_gather([one(item) for item in self.layouts]))

    def _read_basis(self) -> TailBasis | None:
        if not self.header.basis_layout:
            return None
        key = f"{layout.BASIS}/zarr.json"
        if root.read_root(self._objects, self.url, key) != {}:
            raise CacheError(f"{self.url}/{key}: expected a group without attributes; {_RESTORE}")
        arrays = {}
        for name, array in _open_arrays(self._objects, layout.basis_layouts(self.header)).items():
            with naming(f"{self.url}/{name}", _RESTORE):
                arrays[name.split("/")[1]] = np.asarray(array[...])
        root.check_basis(self.header, arrays, self.url)
        return TailBasis.from_arrays(arrays)


def _blueprint(items: Iterable[ArrayLayout]) -> MemoryStore:
    """The arrays with their metadata and no chunk, in memory."""
    store = MemoryStore()
    for item in items:
        compressors: list[Any] = [Crc32cCodec()]
        if item.shuffle is not None:
            size = np.dtype(item.dtype).itemsize
            compressors.insert(0, BloscCodec(cname="zstd", clevel=5, shuffle=item.shuffle, typesize=size))
        grid: dict[str, Any] = {"shape": item.shape, "chunks": item.chunks, "dimension_names": item.dimensions}
        value: dict[str, Any] = {"dtype": item.dtype, "fill_value": item.fill, "compressors": compressors}
        zarr.create_array(store, name=item.name, zarr_format=3, **grid, **value)
    return store


def _write_metadata(objects: Objects, header: root.Header) -> None:
    """Write the metadata of every array and group but the root's."""
    items = [*layout.unit_layouts(header), *layout.ledger_layouts(header), *layout.basis_layouts(header)]
    store = _blueprint(items)
    keys = [f"{item.name}/zarr.json" for item in items]
    if header.basis_layout:
        keys.append(f"{layout.BASIS}/zarr.json")
    for key in keys:
        found = sync(store.get(key, default_buffer_prototype()))
        assert found is not None
        objects.write(key, bytes(found.to_bytes()))


def _open_arrays(objects: Objects, items: Sequence[ArrayLayout]) -> dict[str, zarr.Array[Any]]:
    """Arrays by name, their metadata read in one sweep; CacheError unless it is what the layout says."""
    arrays = {}
    blueprint = _blueprint(items)
    for item, stored in zip(items, objects.read([f"{item.name}/zarr.json" for item in items]), strict=True):
        where, path = f"{objects.place.url}/{item.name}/zarr.json", StorePath(objects, item.name)
        expected = zarr.open_array(blueprint, path=item.name, mode="r", zarr_format=3).metadata.to_dict()
        with naming(where, _RESTORE), zarr.config.set({"array.write_empty_chunks": True}):
            got = json.loads(stored or b"")
            parsed = zarr.Array.from_dict(path, got).metadata.to_dict()
            layout.require_same_metadata(expected, {**got, **parsed}, where)
            arrays[item.name] = zarr.Array.from_dict(path, expected)
    return arrays


async def _gather(work: Iterable[Any]) -> list[Any]:
    """The results of all, in order; every one has ended before the first error is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
