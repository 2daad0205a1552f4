"""How fast the images of an index come from where they lie: at random places, as a run reads them, not from memory."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from shards.index.shard_index import ShardIndex
from shards.index.sources import is_remote
from shards.rng import stream

_AT_ONCE = 8
_SAMPLES = 200_000  # rows drawn at most: more than any disk gives in the seconds of a measurement


def read_rate(index: ShardIndex, *, seconds: float, seed: int = 0) -> float | None:
    """Bytes/s of whole images at random places, eight reads at once; None where the shards are remote.

    The system is asked to forget the shards first, so that the disk answers and not the memory; a disk array with a
    memory of its own is not so easily made to forget.

    Errors:
        OSError when a shard cannot be read.
    """
    if any(is_remote(url) for url in index.urls):
        return None
    files = [os.open(url, os.O_RDONLY) for url in index.urls]
    try:
        for file in files:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        drawn = stream(seed, "read rate").permutation(index.num_samples)[:_SAMPLES]
        shard_of = index.first_S.searchsorted(drawn, "right") - 1
        began = time.perf_counter()
        until = began + seconds

        def read(part: int) -> int:
            count = 0
            for n, shard in zip(drawn[part::_AT_ONCE], shard_of[part::_AT_ONCE], strict=True):
                count += len(os.pread(files[shard], int(index.size_N[n]), int(index.offset_N[n])))
                if time.perf_counter() > until:
                    break
            return count

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            total = sum(pool.map(read, range(_AT_ONCE)))
        return total / max(time.perf_counter() - began, 1e-9)
    finally:
        for file in files:
            os.close(file)


def verdict(measured: float, needed: float) -> str:
    """Whether a disk is fast enough, in words."""
    if measured >= needed:
        return f"enough {measured / needed:.1f} times over"
    return f"{100 * measured / needed:.0f} % of what is needed; copy the shards to a faster disk, or make them compact"


def rate_in_words(value: float) -> str:
    for unit, name in ((1e9, "GB/s"), (1e6, "MB/s")):
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value / 1e3:,.1f} kB/s"
