"""Stage 1 beside the bare forward of its teacher, and beside what the CPU could render if the teacher cost nothing."""

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import material
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import Sizes
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.world import World
from teacher_cache.network.teacher import Teacher
from teacher_cache.stage1.build import build_cache
from teacher_cache.stage1.stage1_events import BatchDone
from teacher_cache.store.cache import TeacherCache

_WARM_UP = 2  # batches: the workers start, the writer's thread starts
_COMPILE_S = 150.0  # a compilation is not begun with less of the budget left


def rendering(folder: Path, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int) -> dict[str, Any]:
    """Views/s of stage 1 with a teacher that costs nothing; makes the cache that the students use."""
    teacher = material.free_teacher(sizes, clock.device)
    with material.new_cache(folder / "free.zarr", sizes, index, teacher, "lowrank", sizes.num_views) as cache:
        rate = _rate(cache, index, teacher, max(sizes.teacher_batches), workers, float("inf"))
    return {"workers": workers, "views_per_s": rate, "views_per_s_per_worker": rate / max(workers, 1)}


def stage1(folder: Path, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int) -> dict[str, Any]:
    """Images/s of the bare forward per precision and batch; stage 1 in the first precision with the fastest batch."""
    figures: dict[str, Any] = {}
    for precision in sizes.precisions:
        teacher = material.teacher(sizes, sizes.teacher, precision, clock.device)
        bare = {str(batch): _bare(teacher, sizes, batch, clock) for batch in sizes.teacher_batches}
        figures[precision] = {"bare": bare}
        if precision == sizes.precisions[0]:
            best = max(sizes.teacher_batches, key=lambda batch: bare[str(batch)]["images_per_s"])
            figures[precision] |= _against(folder / "eager.zarr", teacher, best, sizes, index, clock, workers)
    return figures


def compiled(folder: Path, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int) -> dict[str, Any]:
    """The same with --compile, at one batch; seconds of the compilation, and what it changes in the logits."""
    if not sizes.compiled or clock.left_s < _COMPILE_S:
        return {"left_out": "tiny sizes" if not sizes.compiled else f"less than {_COMPILE_S:g} s left"}
    batch = sorted(sizes.teacher_batches)[len(sizes.teacher_batches) // 2]
    image_BCHW = _images(sizes, batch, clock.device)
    plain_BC = material.teacher(sizes, sizes.teacher, sizes.precisions[0], clock.device).logits(image_BCHW)
    teacher = material.teacher(sizes, sizes.teacher, sizes.precisions[0], clock.device, compiled=True)
    figures: dict[str, Any] = {"compile_s": clock.seconds(lambda: teacher.logits(image_BCHW))}
    figures["largest_change_of_a_logit"] = float((teacher.logits(image_BCHW) - plain_BC).abs().max())
    figures |= {"bare": {str(batch): _bare(teacher, sizes, batch, clock)}}
    return figures | _against(folder / "compiled.zarr", teacher, batch, sizes, index, clock, workers)


def _against(
    url: Path, teacher: Teacher, batch: int, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int
) -> dict[str, Any]:
    """Stage 1 and its ratio to the bare forward, timed before and after it."""
    before = _bare(teacher, sizes, batch, clock)["images_per_s"]
    with material.new_cache(url, sizes, index, teacher, "lowrank", sizes.stage1_views) as cache:
        rate = _rate(cache, index, teacher, batch, workers, sizes.stage1_s)
    after = _bare(teacher, sizes, batch, clock)["images_per_s"]
    return {"batch": batch, "stage1_images_per_s": rate, "ratio": rate / ((before + after) / 2)}


def _bare(teacher: Teacher, sizes: Sizes, batch: int, clock: Clock) -> dict[str, Any]:
    """Images/s of the forward on one prepared batch, and its peak memory."""
    clock.reset_peak()
    image_BCHW = _images(sizes, batch, clock.device)
    seconds = clock.median_s(lambda: teacher.logits(image_BCHW), sizes.seconds)
    return {"images_per_s": batch / seconds, "peak_gb": clock.peak_gb()}


def _images(sizes: Sizes, batch: int, device: torch.device) -> torch.Tensor:
    shape = (batch, 3, sizes.views.size, sizes.views.size)
    return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)


def _rate(cache: TeacherCache, index: ShardIndex, teacher: Teacher, batch: int, workers: int, seconds: float) -> float:
    """Images/s of stage 1, from the end of a few first batches for `seconds` or to the end of the cache."""
    ends: list[float] = []
    with ShardReader(index) as reader:
        for event in build_cache(
            cache,
            index,
            teacher,
            reader=reader,
            world=World(),
            workers=workers,
            batch_size=batch,
            should_stop=lambda: len(ends) > _WARM_UP and ends[-1] - ends[_WARM_UP - 1] > seconds,
        ):
            if isinstance(event, BatchDone):
                ends.append(time.perf_counter())
    if len(ends) <= _WARM_UP:
        raise ValueError(f"stage 1 made {len(ends)} batches of {batch}, too few to be timed; use a smaller batch")
    return batch * (len(ends) - _WARM_UP) / (ends[-1] - ends[_WARM_UP - 1])
