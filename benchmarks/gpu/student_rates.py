"""The student's step without a teacher, from the cache, with the teacher in the loop; and the idle time of a feed."""

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import material
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import Sizes
from shards.index.shard_index import ShardIndex
from shards.world import World
from student.feed.answers import OnlineTeacher, TeacherSource
from student.feed.batch import ready
from student.feed.feed import Feed
from student.feed.feed_options import FeedOptions
from student.feed.order import Position
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import Precision, TrainSettings

_BATCHES = 4  # kept in memory and used in turn
_ENOUGH_S = 30.0


def students(folder: Path, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int) -> dict[str, Any]:
    """Per student: seconds of a step of each kind, in turns, their ratios, and peak memory; in bf16."""
    figures: dict[str, Any] = {"batch": sizes.student_batch, "precision": "bf16"}
    teacher = material.teacher(sizes, sizes.teacher, "bf16", clock.device)
    with _feed(folder, index, sizes, clock, workers) as feed:
        loaded = [feed._stream.batch(Position(0, step, 0)) for step in range(min(_BATCHES, feed.order.steps))]
        feed._stream.close()
        feed._source.begin_epoch(0)
        sources: dict[str, TeacherSource] = {
            "plain": TeacherSource(),
            "cached": feed._source,
            "online": OnlineTeacher(teacher),
        }
        for name, model in sizes.students:
            if clock.left_s < _ENOUGH_S:
                figures[name] = {"left_out": "no time left"}
                continue
            figures[name] = _steps(sizes, model, loaded, sources, clock)
    x_BCHW = ready(loaded[0], sizes.views, TeacherSource(), clock.device)[0]
    teacher_s = clock.median_s(lambda: teacher.logits(x_BCHW), sizes.seconds)
    for name, _ in sizes.students:
        if "plain_s" in figures[name]:
            plain_s = figures[name]["plain_s"]
            bound = (teacher_s + plain_s) / plain_s
            figures[name] |= {"bound": bound, "speedup_over_bound": figures[name]["speedup"] / bound}
    return figures | {"teacher_s": teacher_s}


def _steps(
    sizes: Sizes, model: str, loaded: list[Any], sources: dict[str, TeacherSource], clock: Clock
) -> dict[str, Any]:
    times: dict[str, list[float]] = {kind: [] for kind in sources}
    trainers: dict[str, Trainer] = {}
    peaks, counter = {}, iter(range(10**9))

    def step(kind: str) -> None:
        n = next(counter)
        trainers[kind].feed(*ready(loaded[n % len(loaded)], sizes.views, sources[kind], clock.device), step=n)

    for kind in sources:
        clock.reset_peak()
        trainers[kind] = _trainer(sizes, model, "none" if kind == "plain" else "soft", "bf16", clock.device)
        clock.seconds(lambda kind=kind: step(kind), 2)  # type: ignore[misc]
        peaks[kind] = clock.peak_gb()
    for _ in range(sizes.rounds):
        for kind in sources:
            times[kind].append(clock.seconds(lambda kind=kind: step(kind), sizes.steps))  # type: ignore[misc]
    rounds = list(zip(*(times[kind] for kind in ("plain", "cached", "online")), strict=True))
    return {
        **{f"{kind}_s": statistics.median(values) for kind, values in times.items()},
        "cached_over_plain": statistics.median(cached / plain for plain, cached, _ in rounds),
        "speedup": statistics.median(online / cached for _, cached, online in rounds),
        "images_per_s_cached": sizes.student_batch / statistics.median(times["cached"]),
        "peak_gb": peaks,
    }


def precisions(folder: Path, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int) -> dict[str, Any]:
    """The same steps in fp32, bf16 and fp16 with its loss scale: losses, steps that were skipped, seconds."""
    figures: dict[str, Any] = {}
    names: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    with _feed(folder, index, sizes, clock, workers) as feed:
        batches = list(feed.epoch(0))[:_BATCHES]
        for precision in names:
            trainer = _trainer(sizes, sizes.students[0][1], "soft", precision, clock.device)
            losses, scales = [], [trainer.scaler.get_scale()]
            began = time.perf_counter()
            for n in range(2 * sizes.compare_steps):
                batch = batches[n % len(batches)]
                trainer.feed(batch.images, batch.labels, batch.answer, step=n)
                losses.append(trainer.interval_metrics()["loss"])
                scales.append(trainer.scaler.get_scale())
            clock.wait()
            figures[precision] = {
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "loss_scale": scales[-1],
                "steps_skipped": sum(after < before for before, after in pairwise(scales)),
                "s_per_step": (time.perf_counter() - began) / len(losses),
            }
    for precision in names[1:]:
        change = abs(figures[precision]["last_loss"] / figures["fp32"]["last_loss"] - 1)
        figures[precision]["loss_differs"] = change
    return figures


def overlap(folder: Path, sizes: Sizes, index: ShardIndex, clock: Clock, workers: int) -> dict[str, Any]:
    """A feed and a student as they run: how long the device waits between steps, and for what.

    On a GPU the clock is the device's own: an event before the copy of a batch and one after the update.
    """
    model = sizes.students[0][1]
    trainer = _trainer(sizes, model, "soft", "bf16", clock.device)
    marks: list[tuple[Any, Any]] = []
    with _feed(folder, index, sizes, clock, workers) as feed:
        n, began, until = 0, 0.0, 0.0
        waited = 0.0
        for epoch in range(10**6):
            for batch in feed.epoch(epoch):
                start = _mark(clock.device)
                trainer.feed(batch.images, batch.labels, batch.answer, step=n)
                marks.append((start, _mark(clock.device)))
                n += 1
                if n == _BATCHES:
                    clock.wait()
                    marks.clear()
                    began, waited = time.perf_counter(), feed.waited_s
                    until = began + 4 * sizes.seconds
            if n > 2 * _BATCHES and time.perf_counter() > until:
                break
        clock.wait()
        seconds = time.perf_counter() - began
        waited = feed.waited_s - waited
    idle = sum(_between(end, start) for (_, end), (start, _) in pairwise(marks))
    busy = sum(_between(start, end) for start, end in marks)
    return {
        "workers": workers,
        "images_per_s": len(marks) * sizes.student_batch / seconds,
        "step_s": busy / len(marks),
        "between_steps_s": idle / max(len(marks) - 1, 1),
        "between_steps_share": idle / max(busy + idle, 1e-9),
        "waited_for_views_share": waited / seconds,
        "pinned": clock.device.type == "cuda",
    }


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Seconds from one mark to another."""
    return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3)


def _feed(folder: Path, index: ShardIndex, sizes: Sizes, clock: Clock, workers: int) -> Feed:
    return Feed(
        index,
        cache=folder / "free.zarr",
        batch_size=sizes.student_batch,
        repeats=1,
        device=clock.device,
        workers=workers,
        options=FeedOptions(rank=0, world_size=1, scratch=folder),
    )


def _trainer(sizes: Sizes, model: str, distill: str, precision: Precision, device: torch.device) -> Trainer:
    settings = TrainSettings(precision=precision, device=device.type, log_every=50)
    return Trainer(
        sizes.recipe(model, distill=distill),
        settings,
        num_classes=sizes.num_classes,
        steps_per_epoch=100,
        group=ProcessGroup(World(), device),
    )
