"""The join of views with records: what an epoch needs in memory, one gather per batch, every pixel digest compared.

A slab holds the records of all shards for the consecutive views of a super-epoch. It is loaded in the main process, the
next one in a thread while this one is used. At ImageNet's size a view at 64 bytes is 82 MB.

Legend: S shards, N samples of the index, V views of the slab, B a batch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from student.feed.loader import LoadedBatch

PIXEL_DIGEST = "pixel_digest"


class Units(Protocol):
    """What the join needs of a cache; `teacher_cache.store.TeacherCache` is one."""

    views_per_unit: int
    """Consecutive views of a unit."""
    rows_S: NDArray[np.int64]
    """Samples per shard."""

    @property
    def row_fields(self) -> tuple[str, ...]:
        """The arrays of a unit that have one entry per view and row: the record and the pixel digest."""

    def read_unit(self, view_block: int, shard: int) -> dict[str, NDArray[Any]]:
        """The arrays of a unit, (views, rows, …) each, checked against the ledger."""


class RecordSlab:
    """The records of all samples for some consecutive views of one view block.

    Attributes:
        views: the views it holds.
    """

    def __init__(self, views: range, first_S: NDArray[np.int64], fields: dict[str, NDArray[Any]]) -> None:
        """Wrap loaded fields, (V, N, …) each, among them "pixel_digest"."""
        self.views = views
        self._first_S = first_S
        self._fields = fields

    @classmethod
    def load(cls, cache: Units, views: range, *, threads: int = 4) -> "RecordSlab":
        """Read every shard's unit of the view block and keep the views asked for.

        Raises:
            CacheError: from the store, for a unit that is missing, damaged or foreign.
        """
        view_block, offset = divmod(views.start, cache.views_per_unit)
        assert offset + len(views) <= cache.views_per_unit, "a slab lies in one view block"
        first_S = np.concatenate(([0], np.cumsum(cache.rows_S)))
        fields: dict[str, NDArray[Any]] = {}
        with ThreadPoolExecutor(threads, thread_name_prefix="slab") as pool:
            units = pool.map(lambda shard: cache.read_unit(view_block, shard), range(len(cache.rows_S)))
            for shard, unit in enumerate(units):
                lo, hi = int(first_S[shard]), int(first_S[shard + 1])
                for name in cache.row_fields:
                    values = unit[name]
                    if name not in fields:
                        fields[name] = np.empty((len(views), int(first_S[-1]), *values.shape[2:]), values.dtype)
                    fields[name][:, lo:hi] = values[offset : offset + len(views)]
        return cls(views, first_S, fields)

    @property
    def num_bytes(self) -> int:
        """Memory of the records."""
        return sum(values.nbytes for values in self._fields.values())

    def gather(self, batch: LoadedBatch) -> dict[str, NDArray[Any]]:
        """The fields of the batch's records, B rows each, in the batch's order."""
        view_B = batch.view_B - self.views.start
        assert view_B.min() >= 0 and view_B.max() < len(self.views), "the slab of another epoch"
        row_B = self._first_S[batch.shard_B] + batch.row_B
        return {name: values[view_B, row_B] for name, values in self._fields.items()}


def require_same_pixels(
    batch: LoadedBatch, digest_B: NDArray[np.uint32], *, name_of: Callable[[int, int], tuple[str, str]]
) -> int:
    """Compare the digest of every view with its record's; returns how many were compared (all of them).

    Args:
        batch: what the student is about to see.
        digest_B: uint32, the digests stage 1 stored.
        name_of: (shard, row) to the names of shard and sample, for the message.

    Raises:
        CacheError: naming shard, key and view of the first mismatch and how many there are (law 1).
    """
    wrong_B = np.flatnonzero(batch.pixel_digest_B != digest_B)
    if len(wrong_B):
        raise PixelMismatchError(batch, digest_B, wrong_B, name_of)
    return len(digest_B)


class PixelMismatchError(CacheError):
    """The student's pixels are not those the teacher saw."""

    def __init__(
        self,
        batch: LoadedBatch,
        digest_B: NDArray[np.uint32],
        wrong_B: NDArray[np.int64],
        name_of: Callable[[int, int], tuple[str, str]],
    ) -> None:
        """Describe the first mismatch."""
        first = int(wrong_B[0])
        shard_name, key = name_of(int(batch.shard_B[first]), int(batch.row_B[first]))
        self.num_mismatched = len(wrong_B)
        super().__init__(
            f"pixels of shard {shard_name}, key {key}, view {int(batch.view_B[first])} are not those the teacher saw: "
            f"expected digest {int(digest_B[first]):08x}, got {int(batch.pixel_digest_B[first]):08x} "
            f"({len(wrong_B)} of {len(digest_B)} samples of this batch differ). Another image library or machine "
            "renders these views differently: install the versions the cache was made with, or make the cache here"
        )


class SlabLoader:
    """Gives the slab of each epoch and loads the next one in a thread meanwhile; use as a context manager."""

    def __init__(self, cache: Units, schedule: Sequence[range]) -> None:
        """Take the views of each epoch of the run, in order."""
        self._cache = cache
        self._schedule = schedule
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="slab-ahead")
        self._ahead: tuple[range, Any] | None = None
        self._slab: RecordSlab | None = None

    def __enter__(self) -> "SlabLoader":
        """Nothing is loaded before `epoch`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what is being loaded."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def epoch(self, epoch: int) -> RecordSlab:
        """The slab of `epoch`; CacheError as the store raised it."""
        views = self._schedule[epoch]
        if self._slab is None or self._slab.views != views:
            self._slab = None  # at most two slabs in memory
            if self._ahead is not None and self._ahead[0] == views:
                self._slab = self._ahead[1].result()
            else:
                self._slab = RecordSlab.load(self._cache, views)
            self._ahead = None
        following = next((later for later in self._schedule[epoch + 1 :] if later != views), None)
        if following is not None and self._ahead is None:
            self._ahead = (following, self._pool.submit(RecordSlab.load, self._cache, following))
        return self._slab
