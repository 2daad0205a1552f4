"""Keep the records that an epoch needs in one file per machine: one process reads and checks them, all map it.

A slab holds the records of all shards for some consecutive views of one view block. A unit is read once for all its
views that the run still needs, so an epoch that needs three of six views costs no second reading. The next slab
is prepared while this one is used, by a process of its own where it is large: on disk, not in memory. At ImageNet's
size a view at 64 bytes is 82 MB.

Legend: S shards, N samples of the index, V views of the slab, B a batch.
"""

import mmap
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import RunError
from shards.pool.worker_process import close_in_workers
from shards.text.figures import byte_size
from shards.views.blocks import ViewBatch
from student.feed.node_file import SEAL_BYTES, NodeFile, held_file, one_at_a_time, scratch_folder, shared_file
from student.feed.slab_process import SlabOrder, filled_apart

if TYPE_CHECKING:
    from teacher_cache.store.cache import TeacherCache

_ALIGN = 64
_THREADS = 4
APART_BYTES = 1 << 26
"""What is smaller is read in less time than a process takes to start."""
_CAN_SHARE = Path("/proc/self/fd").exists()


class _Column(NamedTuple):
    """The place of a field in the file: (V, N, …) from `offset` on."""

    name: str
    dtype: np.dtype[Any]
    tail: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample in one view."""
        return self.dtype.itemsize * int(np.prod(self.tail, dtype=np.int64))


class RecordSlab:
    """The mapped records of all samples for some consecutive views of one view block; close it after use.

    Attributes:
        views: the views it holds.
    """

    def __init__(self, cache: "TeacherCache", views: range, file: NodeFile) -> None:
        self.views, self._file, self._first_S = views, file, _first_rows(cache)
        self._map = mmap.mmap(file.descriptor, _num_bytes(cache, len(views)), prot=mmap.PROT_READ)
        self._fields: dict[str, NDArray[Any]] = {}
        for column in _columns(cache, len(views)):
            shape = (len(views), int(self._first_S[-1]), *column.tail)
            flat = np.frombuffer(
                self._map, column.dtype, count=int(np.prod(shape, dtype=np.int64)), offset=column.offset
            )
            self._fields[column.name] = flat.reshape(shape)
        close_in_workers(self)

    @classmethod
    def load(
        cls, cache: "TeacherCache", views: range, *, scratch: Path | None = None, threads: int = _THREADS
    ) -> "RecordSlab":
        """Map the slab of some views if a process of this machine has it, else read the unit of every shard.

        Args:
            views: consecutive, in one view block.
            scratch: a folder on a local disk for the slab's file; None is the system's (TMPDIR).
            threads: units read at once.

        Errors:
            CacheError: from the store, for a unit that is missing, damaged or foreign.
            RunError: when `scratch` has no room.
        """
        view_block, offset = divmod(views.start, cache.views_per_unit)
        assert offset + len(views) <= cache.views_per_unit, "a slab lies in one view block"
        first_S, columns, folder = _first_rows(cache), _columns(cache, len(views)), scratch_folder(scratch)

        def fill(descriptor: int) -> None:
            _reserve(descriptor, _num_bytes(cache, len(views)), folder)

            def copy_unit(shard: int) -> None:
                unit = cache.read_unit(view_block, shard)
                for column in columns:
                    values = unit[column.name][offset : offset + len(views)]
                    for view in range(len(views)):
                        row = view * int(first_S[-1]) + int(first_S[shard])
                        os.pwrite(descriptor, values[view].tobytes(), column.offset + row * column.row_bytes)

            _each(copy_unit, len(cache.rows_S), threads)

        return cls(cache, views, shared_file(folder, _key(cache, views), fill))

    @classmethod
    def load_most(
        cls, cache: "TeacherCache", views: range, least: range, *, scratch: Path | None = None, ahead: bool = False
    ) -> "RecordSlab":
        """Load the slab of `views`, or of `least` among them where `views` take more than half the room of the disk.

        One process of the machine decides; the others take what it has made, whatever room that has left.

        Args:
            ahead: this process has other work meanwhile: another one fills a slab of more than APART_BYTES.

        Args, errors: as `load`.
        """
        folder = scratch_folder(scratch)
        with one_at_a_time(folder, f"views of {_key(cache, views)}"):
            for held in (views, least):
                if (file := held_file(folder, _key(cache, held))) is not None:
                    return cls(cache, held, file)
            needed = _num_bytes(cache, len(views))
            room = needed <= shutil.disk_usage(folder).free // 2
            slab_views = views if room else least
            apart = ahead and _CAN_SHARE and needed * len(slab_views) > APART_BYTES * len(views)
            with filled_apart(SlabOrder.of(cache.url, slab_views, scratch)) if apart else nullcontext():
                return cls.load(cache, slab_views, scratch=scratch)

    @property
    def num_bytes(self) -> int:
        """Size of the records."""
        return sum(values.nbytes for values in self._fields.values())

    def gather(self, batch: ViewBatch) -> dict[str, NDArray[Any]]:
        """Return the fields of the batch's records, B rows each, in the batch's order."""
        view_B = batch.view_B - self.views.start
        assert view_B.min() >= 0 and view_B.max() < len(self.views), "the slab of another epoch"
        row_B = self._first_S[batch.shard_B] + batch.row_B
        return {name: values[view_B, row_B] for name, values in self._fields.items()}

    def close(self) -> None:
        """Unmap the slab; other processes keep theirs."""
        self._fields.clear()
        self._map.close()
        self._file.close()


class SlabLoader:
    """Loads the slab of each epoch and has the next one prepared meanwhile; close it after use."""

    def __init__(self, cache: "TeacherCache", schedule: Sequence[range], *, scratch: Path | None = None) -> None:
        """Take the views of each epoch of the run, in order; `scratch` as `RecordSlab.load`."""
        self._cache, self._schedule, self._scratch = cache, schedule, scratch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="slab-ahead")
        self._ahead: Future[RecordSlab] | None = None
        self._slab: RecordSlab | None = None

    def __enter__(self) -> "SlabLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the slab in use, and the one that is being prepared."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            if not ahead.cancelled() and ahead.exception() is None:
                ahead.result().close()
        self._drop()

    def epoch(self, epoch: int) -> RecordSlab:
        """Return the slab that holds the views of `epoch`; CacheError as the store raises it."""
        views = self._schedule[epoch]
        if self._slab is None or not _holds(self._slab.views, views):
            self._drop()
            self._slab = self._taken_ahead(views) or self._load(epoch, ahead=False)
        held = self._slab.views
        following = next(
            (e for e in range(epoch + 1, len(self._schedule)) if not _holds(held, self._schedule[e])), None
        )
        if following is not None and self._ahead is None:
            self._ahead = self._pool.submit(self._load, following, ahead=True)
        return self._slab

    def _taken_ahead(self, views: range) -> RecordSlab | None:
        """Return the prepared slab if it holds these views, else close it."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        slab = ahead.result()
        if _holds(slab.views, views):
            return slab
        slab.close()
        return None

    def _load(self, epoch: int, *, ahead: bool) -> RecordSlab:
        """Load all views of the epoch's view block that the run still needs; the epoch's own where the disk is full."""
        per_unit, own = self._cache.views_per_unit, self._schedule[epoch]
        needed = [views for views in self._schedule[epoch:] if views.start // per_unit == own.start // per_unit]
        span = range(min(views.start for views in needed), max(views.stop for views in needed))
        return RecordSlab.load_most(self._cache, span, own, scratch=self._scratch, ahead=ahead)

    def _drop(self) -> None:
        if self._slab is not None:
            self._slab.close()
            self._slab = None


def _holds(slab: range, views: range) -> bool:
    return slab.start <= views.start and views.stop <= slab.stop


def _key(cache: "TeacherCache", views: range) -> str:
    """Return the text that decides the content of a slab."""
    return f"{cache.url} {cache.header.identity} {views.start // cache.views_per_unit} {views.start} {views.stop}"


def _first_rows(cache: "TeacherCache") -> NDArray[np.int64]:
    """Return where each shard's rows begin in a view of the slab, and where the last ones end, int64 (S + 1,)."""
    return np.concatenate(([0], np.cumsum(cache.rows_S)))


def _columns(cache: "TeacherCache", num_views: int) -> list[_Column]:
    """Lay the fields out one behind the other, each aligned."""
    columns: list[_Column] = []
    offset, num_rows = SEAL_BYTES, int(cache.rows_S.sum())
    for name, (dtype, tail) in cache.row_fields.items():
        column = _Column(name, dtype, tail, offset)
        columns.append(column)
        offset += -(-num_views * num_rows * column.row_bytes // _ALIGN) * _ALIGN
    return columns


def _num_bytes(cache: "TeacherCache", num_views: int) -> int:
    last = _columns(cache, num_views)[-1]
    return last.offset + num_views * int(cache.rows_S.sum()) * last.row_bytes


def _reserve(descriptor: int, num_bytes: int, folder: Path) -> None:
    """Reserve the room at once, so that a full disk is an error here and not a signal when a page is touched."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, num_bytes)
        else:  # macOS
            _fill(descriptor, num_bytes)
    except OSError as error:
        raise RunError(
            f"{folder}: {byte_size(num_bytes)} for the records of an epoch do not fit ({error}); make room, or "
            "choose another folder by --scratch"
        ) from error


def _fill(descriptor: int, num_bytes: int) -> None:
    zeros = bytes(1 << 20)
    for start in range(0, num_bytes, len(zeros)):
        os.pwrite(descriptor, zeros[: num_bytes - start], start)


def _each(call: Callable[[int], None], count: int, threads: int) -> None:
    """Call a function with 0 … count − 1 in threads; the first error ends it."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="slab")
    try:
        for _ in pool.map(call, range(count)):
            pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
