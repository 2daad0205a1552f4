"""The student: steps and memory per precision; the feed as it runs; what a compiler makes of it; kernels."""

import itertools
import time
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import batches_of, feed_of, trainer
from student.learn.trainer import Trainer
from student.recipe.settings import Precision
from student.sweep.memory import memory_need

_KEPT = 4  # batches that are used in turn
_TOP = 8
_WARM_UP, _PROFILED = 3, 5  # steps


def student(bench: Bench) -> dict[str, Any]:
    """DeiT-Ti from the cache, batches kept on the device: rate, loss and memory for each precision."""
    model, precisions = bench.sizes.students[0][1], bench.sizes.precisions
    figures: dict[str, Any] = {}
    batches = _kept_batches(bench)
    for precision in precisions:
        bench.clock.reset_peak()
        learner = trainer(bench, model, precision)
        scale, numbers = learner.scaler.get_scale(), itertools.count()
        one = lambda learner=learner, numbers=numbers: _step(learner, batches, next(numbers))  # noqa: E731
        bench.clock.seconds(one, _WARM_UP)
        learner.interval_metrics()
        step_s = bench.clock.seconds(one, bench.sizes.steps)
        peak_gb = bench.clock.peak_gb()
        figures[precision] = {
            "step_s": step_s,
            "images_per_s": bench.sizes.student_batch / step_s,
            "loss": learner.interval_metrics()["loss"],
            "peak_gb": peak_gb,
            "loss_scale": learner.scaler.get_scale(),
            "loss_scale_at_start": scale,
        } | _memory(bench, model, precision, peak_gb)
    first = figures["fp32"]["loss"]
    gaps = {name: abs(figures[name]["loss"] / first - 1) for name in precisions[1:]}
    wrong = [f"{name}: the loss differs from fp32's by {gap:.1%}" for name, gap in gaps.items() if not gap < 0.05]
    return figures | {"loss_differs": gaps, "wrong": wrong}


def kernels(bench: Bench) -> dict[str, Any]:
    """Launches and busy share of a step, and where the time goes; on a CPU operations stand for kernels.

    The last section in a process: a profiler that has run makes every later launch slower.
    """
    batches, learner = _kept_batches(bench), trainer(bench, bench.sizes.students[0][1], bench.sizes.precision)
    numbers = itertools.count()
    bench.clock.seconds(lambda: _step(learner, batches, next(numbers)), _WARM_UP)
    step_s = bench.clock.seconds(lambda: _step(learner, batches, next(numbers)), bench.sizes.steps)
    on_gpu = bench.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        bench.clock.seconds(lambda: _step(learner, batches, next(numbers)), _PROFILED)
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [
        row
        for row in profile.key_averages()
        if row.device_type.name == ("CUDA" if on_gpu else "CPU") and getattr(row, spent) > 0
    ]
    busy_s = sum(getattr(row, spent) for row in rows) / 1e6 / _PROFILED
    rows.sort(key=lambda row: -getattr(row, spent))
    return {
        "launches_per_step": sum(row.count for row in rows) / _PROFILED,
        "busy_s": busy_s,
        "step_s": step_s,
        "kernels_over_wall": busy_s / step_s,
        "top": {row.key[:90]: getattr(row, spent) / 1e6 / _PROFILED / busy_s for row in rows[:_TOP]},
    }


def _kept_batches(bench: Bench) -> list[Any]:
    with feed_of(bench, bench.device) as source:
        return list(batches_of(source, _KEPT))


def feed(bench: Bench) -> dict[str, Any]:
    """A feed and a student as they run: how long the device waits between steps, and for what.

    On a GPU the clock is the device's own: an event before a step and one after it.
    """
    learner = trainer(bench, bench.sizes.students[0][1], bench.sizes.precision)
    marks: list[tuple[Any, Any]] = []
    with feed_of(bench, bench.device) as source:
        began, waited, until = 0.0, 0.0, float("inf")
        for step, batch in enumerate(batches_of(source, 10**6), start=1):
            start = _mark(bench.device)
            learner.feed(batch.images, batch.labels, batch.answer, step=step - 1)
            marks.append((start, _mark(bench.device)))
            if step == _KEPT:
                bench.clock.wait()
                marks.clear()
                began, waited = time.perf_counter(), source.waited_s
                until = began + 4 * bench.sizes.seconds
            if step > 2 * _KEPT and time.perf_counter() > until:
                break
        bench.clock.wait()
        seconds, waited = time.perf_counter() - began, source.waited_s - waited
    busy = sum(_between(start, end) for start, end in marks)
    idle = sum(_between(end, start) for (_, end), (start, _) in pairwise(marks))
    return {
        "workers": bench.workers,
        "images_per_s": len(marks) * bench.sizes.student_batch / seconds,
        "step_s": busy / len(marks),
        "between_steps_share": idle / max(busy + idle, 1e-9),
        "waited_for_views_share": waited / seconds,
    }


def compiled(bench: Bench) -> dict[str, Any]:
    """The student with --compile: seconds until it is compiled, steps against eager, graphs."""
    from torch._dynamo.utils import counters

    model = bench.sizes.students[0][1]
    batches = _kept_batches(bench)
    eager = trainer(bench, model, bench.sizes.precision)
    with mock.patch.object(torch, "compile", partial(torch.compile, backend=bench.sizes.backend)):
        learner = trainer(bench, model, bench.sizes.precision, compile=True)
    counters.clear()
    figures: dict[str, Any] = {"first_step_s": bench.clock.seconds(lambda: _step(learner, batches, 0))}
    step_s = {}
    for name, one in (("eager", eager), ("compiled", learner)):
        bench.clock.seconds(partial(_step, one, batches, 1), 2)
        step_s[name] = bench.clock.seconds(partial(_step, one, batches, 2), bench.sizes.steps)
    figures |= {"training_graphs": counters["stats"]["unique_graphs"], **{f"{n}_s": s for n, s in step_s.items()}}
    figures |= {
        "eager_over_compiled": step_s["eager"] / step_s["compiled"],
        "breaks": sum(counters["graph_break"].values()),
    }
    one_graph = figures["training_graphs"] == 1 and not figures["breaks"]
    return figures | {"wrong": [] if one_graph else [f"{figures['training_graphs']} graphs, expected 1"]}


def _step(learner: Trainer, batches: list[Any], step: int) -> None:
    batch = batches[step % len(batches)]
    learner.feed(batch.images, batch.labels, batch.answer, step=step)


def _memory(bench: Bench, model: str, precision: Precision, peak_gb: float | None) -> dict[str, float]:
    """What the check before a run counts, beside what was used."""
    need = memory_need(
        bench.sizes.recipe(model), num_classes=bench.sizes.num_classes, num_students=1, precision=precision
    )
    figures = {"counted_gb": need.total / 1e9}
    return figures | ({"counted_over_peak": need.total / 1e9 / peak_gb} if peak_gb else {})


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    """Seconds from one mark to another."""
    return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3)
