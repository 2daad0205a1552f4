"""Read and write the arrays of a cache: their metadata, the chunks of a unit, the tail basis.

With `zarr_objects` the only file that knows zarr.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from shards.documents import parse_json
from shards.errors import CacheError
from teacher_cache.record.tail_basis import TailBasis
from teacher_cache.store import layout
from teacher_cache.store.digest import UnitId
from teacher_cache.store.header import Header, check_basis, read_root
from teacher_cache.store.layout import ArrayLayout, chunk_key, selection
from teacher_cache.store.place import naming
from teacher_cache.store.unit import Arrays, cut_array, pad_array
from teacher_cache.store.zarr_objects import Objects

_RESTORE = "restore it from a copy"


class UnitArrays:
    """The open arrays of a cache, unit by unit."""

    def __init__(self, objects: Objects, header: Header) -> None:
        """Open every array; CacheError when the metadata of one is not what the header says."""
        self._objects, self._url, self._layouts = objects, objects.place.url, layout.unit_layouts(header)
        objects.expect_at_most(max(map(layout.most_object_bytes, self._layouts)))
        self._arrays = open_arrays(objects, [*self._layouts, *layout.ledger_layouts(header)])

    def read(self, unit: UnitId, num_rows: int, num_positions: int) -> Arrays:
        """The arrays of a unit as they stand; CacheError when one is missing or damaged."""
        return self._cut(sync(self._chunks(unit)), num_rows, num_positions)

    def read_beside(self, unit: UnitId, num_rows: int, num_positions: int, key: str) -> tuple[Arrays, bytes | None]:
        """The arrays of a unit and another object, asked for at the same time; None where there is no such object."""
        full, (data,) = sync(_gather([self._chunks(unit), self._objects.read_async([key])]))
        return self._cut(full, num_rows, num_positions), data

    async def _chunks(self, unit: UnitId) -> list[NDArray[Any]]:
        async def one(item: ArrayLayout) -> NDArray[Any]:
            with naming(f"{self._url}/{chunk_key(item, unit)}", "run verify-cache --repair, then cache-teacher"):
                return np.asarray(await self._arrays[item.name].async_array.getitem(selection(item, unit)))

        return await _gather([one(item) for item in self._layouts])

    def _cut(self, full: Sequence[NDArray[Any]], num_rows: int, num_positions: int) -> Arrays:
        pairs = zip(self._layouts, full, strict=True)
        return {item.name: cut_array(item, array, num_rows, num_positions) for item, array in pairs}

    def write(self, unit: UnitId, arrays: Arrays) -> None:
        """Replace the chunks of a unit."""

        async def one(item: ArrayLayout) -> None:
            chunk = pad_array(item, arrays[item.name])
            await self._arrays[item.name].async_array.setitem(selection(item, unit), chunk)

        sync(_gather([one(item) for item in self._layouts]))

    def write_shard(self, shard: int, units: Sequence[Arrays]) -> None:
        """Write the one object of a shard in each array of a packed cache.

        Args:
            units: the arrays of every unit of the shard, in the order of their views.
        """
        for item in self._layouts:
            padded = [pad_array(item, arrays[item.name]) for arrays in units]
            joined = np.stack(padded) if item.dimensions[0] == "view_block" else np.concatenate(padded)
            # Made in memory: the array library would first read the object that is about to be replaced.
            store = _blueprint([item])
            with zarr.config.set({"array.write_empty_chunks": True}):
                zarr.open_array(store, path=item.name, mode="r+", zarr_format=3)[:, shard] = joined
            key = chunk_key(item, UnitId(0, shard))
            made = sync(store.get(key, default_buffer_prototype()))
            assert made is not None
            self._objects.write(key, bytes(made.to_bytes()))


def read_basis(objects: Objects, header: Header) -> TailBasis | None:
    """The tail basis, None where the record needs none; CacheError when it is not the one the cache was made with."""
    if not header.basis_layout:
        return None
    url, key = objects.place.url, f"{layout.BASIS}/zarr.json"
    if read_root(objects, key) != {}:
        raise CacheError(f"{url}/{key}: expected a group without attributes; {_RESTORE}")
    arrays = {}
    for name, array in open_arrays(objects, layout.basis_layouts(header)).items():
        with naming(f"{url}/{name}", _RESTORE):
            arrays[name.split("/")[1]] = np.asarray(array[...])
    check_basis(header, arrays, url)
    with naming(f"{url}/{layout.BASIS}", _RESTORE):
        return TailBasis.from_arrays(arrays)


def write_basis(objects: Objects, header: Header, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays of the tail basis, whose metadata is there."""
    for name, array in open_arrays(objects, layout.basis_layouts(header)).items():
        array[...] = arrays[name.split("/")[1]]


def _blueprint(items: Iterable[ArrayLayout]) -> MemoryStore:
    """The arrays with their metadata and no chunk, in memory."""
    store = MemoryStore()
    for item in items:
        compressors: list[Any] = [Crc32cCodec()]
        if item.shuffle is not None:
            size = np.dtype(item.dtype).itemsize
            compressors.insert(0, BloscCodec(cname="zstd", clevel=5, shuffle=item.shuffle, typesize=size))
        grid: dict[str, Any] = {"shape": item.shape, "chunks": item.chunks, "dimension_names": item.dimensions}
        if item.shards is not None:
            grid["shards"] = {"shape": item.shards, "index_location": "start"}
        value: dict[str, Any] = {"dtype": item.dtype, "fill_value": item.fill, "compressors": compressors}
        zarr.create_array(store, name=item.name, zarr_format=3, **grid, **value)
    return store


def metadata_objects(header: Header) -> dict[str, bytes]:
    """The metadata of every array and group but the root's: key → JSON."""
    items = [*layout.unit_layouts(header), *layout.ledger_layouts(header), *layout.basis_layouts(header)]
    store = _blueprint(items)
    keys = [f"{item.name}/zarr.json" for item in items]
    if header.basis_layout:
        keys.append(f"{layout.BASIS}/zarr.json")
    metadata = {key: sync(store.get(key, default_buffer_prototype())) for key in keys}
    return {key: bytes(buffer.to_bytes()) for key, buffer in metadata.items() if buffer is not None}


def write_metadata(objects: Objects, header: Header) -> None:
    """Write the metadata of every array and group but the root's."""
    for key, metadata in metadata_objects(header).items():
        objects.write(key, metadata)


def open_arrays(objects: Objects, items: Sequence[ArrayLayout]) -> dict[str, zarr.Array[Any]]:
    """Arrays by name, their metadata read in one sweep; CacheError unless it is what the layout says."""
    arrays = {}
    blueprint = _blueprint(items)
    for item, stored in zip(items, objects.read([f"{item.name}/zarr.json" for item in items]), strict=True):
        where, path = f"{objects.place.url}/{item.name}/zarr.json", StorePath(objects, item.name)
        expected = zarr.open_array(blueprint, path=item.name, mode="r", zarr_format=3).metadata.to_dict()
        with naming(where, _RESTORE), zarr.config.set({"array.write_empty_chunks": True}):
            got = parse_json(stored or b"", where, error=CacheError, advice=_RESTORE)
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
