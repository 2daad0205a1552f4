"""Measure how fast a disk gives the images of an index: at random places, as a run reads them, not from memory."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shards.index.shard_index import ShardIndex
from shards.index.sources import is_remote
from shards.rng import stream

_AT_ONCE = 8
_OPEN_SHARDS = 24
"""At most so many shards are opened, spread over the set: one file system answers for all, and open files are few."""
_SAMPLES = 200_000  # rows drawn at most: more than any disk gives in the seconds of a measurement


def read_rate(index: ShardIndex, *, seconds: float) -> float | None:
    """Measure bytes/s of whole images at random places in some of the shards, eight at once; None for remote ones.

    The system is asked to forget the shards first, so that the disk answers and not the memory; a disk array with a
    memory of its own is not so easily made to forget.

    Errors:
        OSError when a shard cannot be read.
    """
    if any(is_remote(url) for url in index.urls):
        return None
    shards = [int(shard) for shard in stream(0, "read rate shards").permutation(index.num_shards)[:_OPEN_SHARDS]]
    files: dict[int, int] = {}
    try:
        for shard in shards:
            file = files[shard] = os.open(index.urls[shard], os.O_RDONLY | os.O_CLOEXEC)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        rows = np.concatenate([np.arange(index.first_S[shard], index.first_S[shard + 1]) for shard in shards])
        drawn = rows[stream(0, "read rate").permutation(len(rows))[:_SAMPLES]]
        shard_of = index.first_S.searchsorted(drawn, "right") - 1
        began = time.perf_counter()
        until = began + seconds

        def read(part: int) -> int:
            count = 0
            for n, shard in zip(drawn[part::_AT_ONCE], shard_of[part::_AT_ONCE], strict=True):
                count += len(os.pread(files[int(shard)], int(index.size_N[n]), int(index.offset_N[n])))
                if time.perf_counter() > until:
                    break
            return count

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            total = sum(pool.map(read, range(_AT_ONCE)))
        return total / max(time.perf_counter() - began, 1e-9)
    finally:
        for file in files.values():
            os.close(file)


def verdict(measured: float, needed: float) -> str:
    """Say whether a disk is fast enough."""
    if measured >= needed:
        return f"enough {measured / needed:.1f} times over"
    return f"{100 * measured / needed:.0f} % of what is needed; copy the shards to a faster disk, or make them compact"


def rate_in_words(value: float) -> str:
    for unit, name in ((1e9, "GB/s"), (1e6, "MB/s")):
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value / 1e3:,.1f} kB/s"
