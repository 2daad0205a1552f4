"""What a feed costs the host between two batches, in processor time: the main process and its workers.

Four workers render DeiT views at 224 px, three of each decode; the loop takes the batches and runs no network. On a
GPU node the device normalises and mixes: here this is done to one pixel of each view, so that it costs about what
launching it costs. Processor time depends little on what else the machine does.
"""

import resource
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.together import make_cache, make_shards
from shards.views.mixing import prepare
from student.feed.feed import Feed

_BATCH, _WORKERS, _VIEWS, _IMAGES = 128, 4, 3, 256
_WARM = 12
"""Batches after which every worker runs and every buffer was used once."""


def host_costs(folder: Path, *, epochs: int) -> dict[str, float]:
    """Microseconds of processor time: the median over batches for the main process, the mean for the workers.

    Returns:
        "main_us_per_image" between two batches, system calls included, and "worker_us_per_view" with the start of the
        workers and their share of an image's decoding.
    """
    index = make_shards(folder / "host", _IMAGES)
    (folder / "host_cache").mkdir()
    own_s, before = [], _children_s()
    with (
        mock.patch("student.feed.batch.prepare", _prepare_one_pixel),
        make_cache(folder / "host_cache", index, _VIEWS) as cache,
        Feed(
            index,
            cache=cache,
            batch_size=_BATCH,
            repeats=_VIEWS,
            workers=_WORKERS,
            epochs=epochs,
            device="cpu",
        ) as feed,
    ):
        for epoch in range(epochs):
            began = time.process_time()
            for batch in feed.epoch(epoch):
                assert len(batch) == _BATCH, "every batch is full"
                own_s.append(time.process_time() - began)
                began = time.process_time()
    return {
        "main_us_per_image": statistics.median(own_s[_WARM:]) / _BATCH * 1e6,
        "worker_us_per_view": (_children_s() - before) / (len(own_s) * _BATCH) * 1e6,
    }


def _prepare_one_pixel(view_BHWC: Tensor, *mixing: Tensor, **normalisation: Any) -> Tensor:
    return prepare(view_BHWC[:, :1, :1], *mixing, **normalisation)


def _children_s() -> float:
    """Processor seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
