"""Guard a zarr store: objects of a cache are requested by name, in bounded time, and never listed."""

import asyncio
import atexit
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from typing import Any

from zarr.abc.store import RangeByteRequest
from zarr.core import sync as zarr_loop
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from shards.errors import CacheError
from teacher_cache.store.place import (
    METADATA_BYTES,
    Place,
    close_filesystem,
    read_file,
    require_bounded,
    require_readable,
    write_file,
)

_LOOKUPS_AT_ONCE = 64


class Objects(WrapperStore[Any]):
    """A zarr store whose every request ends in time or in a CacheError that names the object; listing is a bug."""

    def __init__(self, store: Any, place: Place) -> None:
        super().__init__(store)
        self.place = place
        self._most_bytes = METADATA_BYTES

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
        self._require_readable(key)
        return self._present(key, await self.place.reach(key, self._read(key, prototype, byte_range)))

    async def _read(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """An object, or a part of it; of a remote one no more than the largest that there can be, and one byte."""
        if self.place.folder is not None:
            return await self._store.get(key, prototype, byte_range)
        if byte_range is None and not hasattr(self._store.fs, "most_bytes"):  # a client that cuts nothing off by itself
            byte_range = RangeByteRequest(0, self._most_bytes + 1)
        buffer = await self._store.get(key, prototype, byte_range)
        if buffer is not None:
            require_bounded(len(buffer), self._most_bytes, f"{self.place.url}/{key}")
        return buffer

    async def set(self, key: str, value: Any) -> None:
        """Replace an object, atomically; on a local disk also durably."""
        if self.place.folder is None:
            await self.place.reach(key, self._store.set(key, value))
        else:
            await asyncio.to_thread(self.set_sync, key, value)

    # The array library reads and writes a local place without its event loop, in its versions from 3.3 on.

    @property
    def _supports_sync_io(self) -> bool:
        """Whether the synchronous twins may be used: on a local disk."""
        return self.place.folder is not None

    def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
        """Do what `get` does, on a local disk."""
        self._require_readable(key)
        with self.place.reaching(key):
            return self._present(key, self._store.get_sync(key, prototype=prototype, byte_range=byte_range))

    def set_sync(self, key: str, value: Any) -> None:
        """Do what `set` does, on a local disk."""
        assert self.place.folder is not None, "a remote place has no synchronous twin"
        self._check_writable()
        with self.place.reaching(key):
            write_file(self.place.folder / key, bytes(value.to_bytes()))

    def _require_readable(self, key: str) -> None:
        """CacheError for an object on a local disk that is no regular file, or larger than any can be."""
        if self.place.folder is not None:
            require_readable(self.place.folder / key, self._most_bytes)

    def _present(self, key: str, buffer: Any) -> Any:
        if buffer is None and "/c/" in key:
            raise CacheError(f"{self.place.url}/{key} is gone; run verify-cache --repair, then cache-teacher")
        return buffer

    async def _get_many(self, requests: Iterable[Any]) -> AsyncGenerator[tuple[str, Any], None]:
        for key, prototype, byte_range in requests:
            yield key, await self.get(key, prototype, byte_range)

    async def _set_many(self, values: Iterable[tuple[str, Any]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """The parts of some objects, in order."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def delete(self, key: str) -> None:
        """Never: what is replaced is written again."""
        raise AssertionError(f"{self.place.url}/{key}: a cache deletes nothing")

    async def delete_dir(self, prefix: str) -> None:
        """Never."""
        await self.delete(prefix)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Never: a writer replaces."""
        raise AssertionError(f"{self.place.url}/{key}: an object is written or replaced")

    async def clear(self) -> None:
        """Never."""
        await self.delete("")

    def delete_sync(self, key: str) -> None:
        """Never."""
        raise AssertionError(f"{self.place.url}/{key}: a cache deletes nothing")

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of each object, None where there is none."""
        if self.place.folder is not None:
            return [read_file(self.place.folder / key, self._most_bytes) for key in keys]
        return sync(self._read_all(keys))

    async def read_async(self, keys: Sequence[str]) -> list[bytes | None]:
        """What `read` does, inside the event loop."""
        return self.read(keys) if self.place.folder is not None else await self._read_all(keys)

    async def _read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        gate = asyncio.Semaphore(_LOOKUPS_AT_ONCE)

        async def one(key: str) -> bytes | None:
            async with gate:
                buffer = await self.place.reach(key, self._read(key, default_buffer_prototype()))
                return None if buffer is None else bytes(buffer.to_bytes())

        return list(await asyncio.gather(*map(one, keys)))

    def write(self, key: str, data: bytes) -> None:
        """Replace an object."""
        sync(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def expect_at_most(self, num_bytes: int) -> None:
        """No object is larger from now on: a larger file is refused, what a server sends beyond it is cut off."""
        self._most_bytes = max(self._most_bytes, num_bytes)
        fs = getattr(self._store, "fs", None)
        if fs is not None and hasattr(fs, "most_bytes"):
            fs.most_bytes = max(fs.most_bytes, num_bytes)

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


_LOOP_ENDS_S = 30.0


def _end_loop() -> None:
    """Stop zarr's event loop and wait for its thread; zarr waits 0.2 s, and then prints a traceback on a busy machine.

    Registered after zarr's own exit handler, it runs before it.
    """
    loop, thread = zarr_loop.loop[0], zarr_loop.iothread[0]
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_LOOP_ENDS_S)


atexit.register(_end_loop)
