"""Stage 1 against the bare teacher: images per second of `cache-teacher` ÷ those of the forward alone.

    python -m benchmarks.stage1 [--json] [--rounds 2] [--workers 1] [--cases small] [--shares]

Stage 1 does everything: reads and checks JPEGs of 500 × 375, decodes, renders the DeiT recipe at 224 with mixing and
digests, forwards, encodes 64-byte records and commits them to a Zarr store on disk. The bare forward is the teacher's
own `logits` on one prepared batch of the same size and precision, with all cores to itself.

Machines drift within seconds, so the two run in turns: after every batch of stage 1 its workers are stopped
(SIGSTOP), one bare forward is timed, and they go on. The ratio of a run is the bare forwards' time ÷ the rest of the
time, from the first forward to the commit before the last unit: what was rendered ahead when the clock started is so
rendered ahead again when it stops. The median over the rounds is printed, and the busy share: how much of stage 1's
time is inside its forwards. Starting the worker processes is not counted.

On a CPU, unlike a GPU, rendering also slows the forward. --shares measures that alone: one torch thread, no workers,
CPU seconds of the bare forwards ÷ CPU seconds of all of stage 1 for as many images.

JSON: `ratio` (RegNetY-16GF, the worse of bf16 and float32), `ratio_bf16`, `ratio_fp32`, `ratio_small_teacher`,
`busy_*`, `teacher_share_*`, and rates.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from skimage import data as photos

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.tars.writer import write_samples
from shards.views.view_recipe import ViewRecipe, recipe_named
from shards.world import World
from teacher_cache.network.heap import keep_freed_memory
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.stage1.build import build_cache
from teacher_cache.stage1.opening import cache_spec
from teacher_cache.stage1.stage1_events import BatchDone, BuildFinished, UnitCommitted, UnitStarted
from teacher_cache.store.cache import TeacherCache

CLASSES = 1000
VIEWS = 6  # of a unit, as in the recipe


class Case(NamedTuple):
    """A teacher, and how much of it to run: a unit is `rows` × 6 views, rendered in blocks of `block_size` rows."""

    name: str
    precision: str
    batch_size: int
    block_size: int
    rows: int
    units: int


CASES = {
    "fp32": Case("regnety_160", "fp32", 16, 4, 16, 1),
    "bf16": Case("regnety_160", "bf16", 16, 4, 32, 2),
    "small": Case("regnety_004", "fp32", 32, 16, 128, 2),
}


def main() -> None:
    """Measure every case and print a table, or JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shares", action="store_true", help="measure the teacher's share of the CPU as well")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated, of " + ", ".join(CASES))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    print(f"{cores} cores, {torch.get_num_threads()} torch threads, {options.workers} rendering workers")
    figures: dict[str, float] = {}
    for label in options.cases.split(","):
        if options.shares:
            figures[f"teacher_share_{label}"] = share = teacher_share(CASES[label])
            print(
                f"{CASES[label].name} {CASES[label].precision}: {100 * share:.1f} % of the CPU is the teacher's",
                flush=True,
            )
        torch.set_num_threads(cores)
        ratio, busy, bare = measure(CASES[label], options.rounds, options.workers)
        figures |= {f"ratio_{label}": ratio, f"busy_{label}": busy, f"bare_{label}_per_s": bare}
        print(
            f"{CASES[label].name} {CASES[label].precision}: stage 1 ÷ bare forward = {ratio:.3f}, "
            f"{100 * busy:.1f} % of the time in the forward; bare {bare:.2f} images/s",
            flush=True,
        )
    if options.json:
        large = [figures[f"ratio_{label}"] for label in ("fp32", "bf16") if f"ratio_{label}" in figures]
        figures |= {"ratio": min(large)} if large else {}
        figures |= {"ratio_small_teacher": figures.pop("ratio_small")} if "ratio_small" in figures else {}
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def measure(case: Case, rounds: int, workers: int) -> tuple[float, float, float]:
    """Medians over the rounds: the ratio, the busy share, and images/s of the bare forward."""
    torch.manual_seed(0)
    keep_freed_memory()
    teacher = load_teacher(
        case.name, num_classes=CLASSES, precision=case.precision, options=TeacherOptions(pretrained=False)
    )
    recipe = recipe_named("deit", block_size=case.block_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = photo_shards(folder / "shards", case.rows)
        image_BCHW = torch.randn((case.batch_size, 3, 224, 224)).contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            teacher.logits(image_BCHW)
        runs = []
        for number in range(rounds):
            num_views = VIEWS * (case.units + 1)
            cache = new_cache(folder / f"cache{number}.zarr", index, teacher, recipe, num_views=num_views)
            runs.append(in_turns(cache, index, teacher, image_BCHW, workers, case.units))
    ratios, busy, seconds = (statistics.median(values) for values in zip(*runs, strict=True))
    return ratios, busy, case.batch_size / seconds


def in_turns(
    cache: TeacherCache, index: ShardIndex, teacher: Teacher, image_BCHW: torch.Tensor, workers: int, units: int
) -> tuple[float, float, float]:
    """The first units of stage 1, a bare forward after every batch: ratio, busy share, seconds of a bare forward."""
    began = ended = bare = inside = 0.0
    num_batches = committed = 0
    forward = teacher.logits

    def timed(image_BCHW: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        start = time.perf_counter()
        logit_BC = forward(image_BCHW)
        inside += time.perf_counter() - start
        return logit_BC

    teacher.logits = timed  # type: ignore[method-assign]
    with ShardReader(index) as reader:
        for event in build_cache(
            cache,
            index,
            teacher,
            reader=reader,
            world=World(),
            workers=workers,
            batch_size=len(image_BCHW),
            should_stop=lambda: committed == units,  # noqa: B023 - the count as it stands
        ):
            if isinstance(event, UnitStarted):
                began = began or time.perf_counter()
            elif isinstance(event, BatchDone):
                pause = time.perf_counter()
                with stopped(rendering_workers()):
                    forward(image_BCHW)
                bare += time.perf_counter() - pause
                num_batches += 1
            elif isinstance(event, UnitCommitted):
                ended, committed = time.perf_counter(), committed + 1
            elif isinstance(event, BuildFinished):
                assert event.missing_units <= 1, "the last one is dropped, unless it was through already"
    teacher.logits = forward  # type: ignore[method-assign]
    stage1 = ended - began - bare
    return bare / stage1, inside / stage1, bare / num_batches


def rendering_workers() -> list[int]:
    """Process ids of the workers: the children of this process (Linux)."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that do nothing inside the `with`."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def teacher_share(case: Case) -> float:
    """CPU seconds of bare forwards ÷ those of stage 1 for as many images, in one thread, in turns batch by batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    teacher = load_teacher(
        case.name, num_classes=CLASSES, precision=case.precision, options=TeacherOptions(pretrained=False)
    )
    image_BCHW = torch.randn((case.batch_size, 3, 224, 224)).contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as name:
        index = photo_shards(Path(name) / "shards", case.rows)
        cache = new_cache(
            Path(name) / "cache.zarr", index, teacher, recipe_named("deit", block_size=case.block_size), num_views=VIEWS
        )
        teacher.logits(image_BCHW)
        bare, began = 0.0, time.process_time()
        with ShardReader(index) as reader:
            for event in build_cache(
                cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=case.batch_size
            ):
                if isinstance(event, BatchDone):
                    # This thread's own seconds: the writer's thread, which may be encoding, belongs to stage 1.
                    before = time.thread_time()
                    teacher.logits(image_BCHW)
                    bare += time.thread_time() - before
        return bare / (time.process_time() - began - bare)


def photo_shards(folder: Path, count: int) -> ShardIndex:
    """One shard of photos of scikit-image as JPEGs of ImageNet's usual size."""
    names = ("astronaut", "coffee", "chelsea", "rocket")
    pictures = [cv2.resize(getattr(photos, name)(), (500, 375), interpolation=cv2.INTER_AREA) for name in names]
    encoded = [
        cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        for picture in pictures
    ]
    samples = ((f"photo{n:04d}", n % CLASSES, "jpg", encoded[n % len(encoded)]) for n in range(count))
    return write_samples(samples, folder, samples_per_shard=count, num_classes=CLASSES)


def new_cache(url: Path | str, index: ShardIndex, teacher: Teacher, recipe: ViewRecipe, num_views: int) -> TeacherCache:
    """An empty cache of 64-byte records; its basis comes from random logits, which cost the codec the same."""
    record = RecordFormat.chosen("lowrank", CLASSES, num_bytes=64)
    spec = cache_spec(index, teacher, recipe, record)
    basis = fit_basis(np.random.default_rng(0).normal(size=(600, CLASSES)).astype(np.float32), record)
    return TeacherCache.create(url, spec, index, basis, num_views=num_views)


if __name__ == "__main__":
    main()
