"""Read the bytes of a sample by offset, checked against the index."""

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import google_crc32c

from shards.errors import ShardError
from shards.index.index_checks import SUFFIXES
from shards.index.remote import local_shard, require_room_for_all
from shards.index.shard_index import ShardIndex

_OPEN_SHARDS = 32


class ShardReader:
    """Reads samples of an index by (shard, row); close it, or use it in a `with`.

    It can be pickled, and used in threads and after a fork: reads name their offset (pread), so an inherited descriptor
    is shared without harm. At most `_OPEN_SHARDS` files are open; remote shards are fetched to `cache_dir` first.
    """

    def __init__(self, index: ShardIndex, cache_dir: Path | None = None) -> None:
        self.index = index
        self.cache_dir = cache_dir
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, _OpenShard] = OrderedDict()

    def with_room(self, limit_bytes: float | None = None) -> Self:
        """Return the reader itself; ShardError with the sizes for remote shards that will not all fit on the disk.

        Args:
            limit_bytes: as of `require_room_for_all`.
        """
        require_room_for_all(self.index.urls, self.index.tar_bytes_S, self.cache_dir, limit_bytes)
        return self

    def image_bytes(self, shard: int, row: int) -> bytes:
        """Read the encoded image of a sample.

        Errors:
            ShardError naming shard, key and offset when the shard is missing, has another size than in the index, or
            the bytes do not have the checksum in the index.
        """
        n = self.index.row_number(shard, row)
        offset, size = int(self.index.offset_N[n]), int(self.index.size_N[n])
        data = self._read(shard, offset, size)
        checksum = google_crc32c.value(data)
        if len(data) != size or checksum != self.index.crc32c_N[n]:
            raise ShardError(
                f"{self.index.urls[shard]}: offset {offset}: image of {self.index.key(shard, row)!r}: expected "
                f"{size} bytes with crc32c {int(self.index.crc32c_N[n]):08x}, got {len(data)} with {checksum:08x}. "
                "The shard changed after it was indexed: restore it, or run check-shards again"
            )
        return data

    def name(self, shard: int, row: int) -> str:
        """Return the sample's member name in the tar, with its suffix in lower case: what messages call it."""
        return f"{self.index.key(shard, row)}.{SUFFIXES[self.index.suffix_N[self.index.row_number(shard, row)]]}"

    def close(self) -> None:
        """Close all files; the reader opens them again when asked."""
        self._adopt()
        with self._lock:
            shards, self._shards = self._shards, OrderedDict()
            for shard in shards.values():
                shard.retire()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it was made of: a copy opens its own files."""
        return ShardReader, (self.index, self.cache_dir)

    def _adopt(self) -> None:
        """In a child of fork: the descriptors are good, but a thread that is not here may hold the lock."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.Lock()
            self._shards = OrderedDict((shard, _OpenShard(old.descriptor)) for shard, old in self._shards.items())

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer when the file ends."""
        self._adopt()
        opened = self._take(shard)
        try:
            data = os.pread(opened.descriptor, size, offset)
            while 0 < len(data) < size:
                more = os.pread(opened.descriptor, size - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            raise ShardError(f"{self.index.urls[shard]}: offset {offset}: cannot be read: {error}") from error
        finally:
            with self._lock:
                opened.release()

    def _take(self, shard: int) -> "_OpenShard":
        with self._lock:
            opened = self._shards.get(shard)
            if opened is not None:
                self._shards.move_to_end(shard)
                opened.users += 1
                return opened
        fresh = _OpenShard(self._open(shard))  # without the lock: it may take a download
        with self._lock:
            opened = self._shards.setdefault(shard, fresh)
            if opened is not fresh:
                fresh.retire()
            opened.users += 1
            while len(self._shards) > _OPEN_SHARDS:
                self._shards.popitem(last=False)[1].retire()
            return opened

    def _open(self, shard: int) -> int:
        url, expected = self.index.urls[shard], int(self.index.tar_bytes_S[shard])
        path = local_shard(url, expected, self.cache_dir)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block
        except OSError as error:
            raise ShardError(f"{url}: cannot be opened: {error}. Check the path, or run check-shards again") from error
        size = os.fstat(descriptor).st_size
        if size != expected:
            os.close(descriptor)
            raise ShardError(
                f"{url}: expected {expected} bytes as in the index, got {size}; restore the shard, or run "
                "check-shards again"
            )
        return descriptor


class _OpenShard:
    """A descriptor that is closed when it has left the reader's list and nobody reads from it any more."""

    __slots__ = ("_retired", "descriptor", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self._retired = False

    def release(self) -> None:
        """End one read; the last one of a retired shard closes it."""
        self.users -= 1
        if self._retired and not self.users:
            os.close(self.descriptor)

    def retire(self) -> None:
        """Close the shard after the reads that go on."""
        self._retired = True
        if not self.users:
            os.close(self.descriptor)
