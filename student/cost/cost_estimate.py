"""Estimate storage and hours of a cache and its students, and from how many students on the cache pays off.

Everything follows from four throughputs, which are given or reckoned, and from counts. For N
samples, E epochs, V views, G GPUs; t teacher forwards and s student training images per second and GPU; r views per
second that all cores render in training, and u in stage 1, where one decode serves the views of a unit:

    stage 1           N·V / min(G·t, u)                once
    without a cache   N·E / min(G / (1/t + 1/s), r)    every time: the teacher in the loop
    from the cache    N·E / min(G·s, r)                every time
    break-even        stage 1 / (without − from)       students

Rendering is the ceiling that no GPU lifts: where r is the smaller, the cache saves forwards and energy but not hours,
and the lines say so.
"""

import math
from dataclasses import dataclass, replace

from shards.text.figures import byte_size, count

_STEP_FORWARDS = 3
"""A training step costs about three forwards: forward, and twice as much backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Throughputs in images per second.

    Args:
        teacher: forwards of one GPU. student: training images of one GPU, step included.
        views: views one CPU core renders for training, decode included (one view per decode).
        unit_views: the same when a decode serves the views of a unit, as in stage 1; not below `views`.
        source: where the numbers are from, in words.

    Raises:
        ValueError: naming the rate that is not a positive number.
    """

    teacher: float
    student: float
    views: float
    unit_views: float
    source: str

    def __post_init__(self) -> None:
        for name in ("teacher", "student", "views", "unit_views"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"cost: {name} must be a positive number of images per second, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Rates that are known, and the arithmetic for the others.

    Args:
        teacher_gmacs: 10⁹ multiply-accumulates of one forward. tflops: of one GPU, 10¹² operations per second.
        teacher, student, views, unit_views: as of `Rates`; None where arithmetic gives it.
    """

    teacher_gmacs: float
    tflops: float
    views: float
    unit_views: float
    teacher: float | None = None
    student: float | None = None

    def rates(self, student_gmacs: float) -> Rates:
        """Return the rates; a multiply-accumulate is two operations, a training step three forwards."""
        per_second = self.tflops * 1e12 / 2e9
        source = (
            f"arithmetic at {self.tflops:g} sustained TFLOP/s per GPU (teacher {self.teacher_gmacs:g}, student "
            f"{student_gmacs:g} GMACs, a step = {_STEP_FORWARDS} forwards)"
        )
        known = {"teacher": self.teacher, "student": self.student}
        words = ", ".join(f"{name} {rate:g}" for name, rate in known.items() if rate is not None)
        return Rates(
            teacher=per_second / self.teacher_gmacs if self.teacher is None else self.teacher,
            student=per_second / (_STEP_FORWARDS * student_gmacs) if self.student is None else self.student,
            views=self.views,
            unit_views=self.unit_views,
            source=f"{source}; given: {words}" if words else source,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is planned.

    Args:
        num_samples: N, of the training set. num_views: V. bytes_per_view: on disk.
        epochs: E of every student (each shows N images, repeats included). num_students: runs that share the cache.
        num_gpus: G of the whole machine or cluster. num_cores: CPU cores that render, over all of it.
        together: students on each rendered batch.
        num_teachers: caches that teach together, made one after the other; bytes are those of all.

    Raises:
        ValueError: naming the field and its range.
    """

    num_samples: int
    num_views: int
    bytes_per_view: float
    epochs: int
    num_students: int
    num_gpus: int
    num_cores: int
    together: int = 1
    num_teachers: int = 1

    def __post_init__(self) -> None:
        counts = ("num_samples", "num_views", "epochs", "num_students", "num_gpus", "num_cores", "together")
        for name in (*counts, "num_teachers"):
            if getattr(self, name) < 1:
                raise ValueError(f"cost: {name} must be at least 1, got {getattr(self, name)}")
        if self.bytes_per_view <= 0:
            raise ValueError(f"cost: bytes_per_view must be positive, got {self.bytes_per_view}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The prediction; hours of the whole machine, students one after another (or `together` at a time)."""

    storage_bytes: float
    teacher_hours: float
    cached_hours: float
    """Of one student from the cache."""
    online_hours: float
    """Of one student with the teacher in the loop."""
    sweep_hours: float
    """Stage 1 and all students from the cache."""
    sweep_online_hours: float
    """All students, each with the teacher in the loop."""
    break_even: float
    """Students after which the cache has paid for itself in hours; infinite when the hours are no fewer."""
    forwards_spent: int
    forwards_break_even: float
    decode_share: float
    """Rendering rate ÷ what the GPUs could take, training from the cache: below 1 the decoders are the bound."""
    stage1_decode_share: float
    lines: tuple[str, ...] = ()


def cost(job: Job, rates: Rates) -> Cost:
    """Predict storage, hours and break-even; `lines` say every number and every assumption."""
    images, views = job.num_samples * job.epochs, job.num_samples * job.num_views
    teachers = job.num_teachers
    render, render_unit = job.num_cores * rates.views, job.num_cores * rates.unit_views
    gpu_cached, gpu_teacher = job.num_gpus * rates.student, job.num_gpus * rates.teacher
    gpu_online = job.num_gpus / (teachers / rates.teacher + 1 / rates.student)
    teacher_hours = _hours(teachers * views, min(gpu_teacher, render_unit))
    cached, online = _hours(images, min(gpu_cached, render)), _hours(images, min(gpu_online, render))
    passes = -(-job.num_students // job.together)
    sweep = teacher_hours + _sweep_hours(images, job.num_students, passes, gpu_cached, render)
    saved = online - cached
    bare = Cost(
        storage_bytes=views * job.bytes_per_view,
        teacher_hours=teacher_hours,
        cached_hours=cached,
        online_hours=online,
        sweep_hours=sweep,
        sweep_online_hours=job.num_students * online,
        break_even=teacher_hours / saved if saved > 1e-12 * online else math.inf,
        forwards_spent=teachers * views,
        forwards_break_even=views / images,
        decode_share=render / gpu_cached,
        stage1_decode_share=render_unit / gpu_teacher,
    )
    return replace(bare, lines=tuple(_lines(job, rates, bare)))


def _hours(images: float, per_second: float) -> float:
    return images / per_second / 3600


def _sweep_hours(images: float, students: int, passes: int, gpu: float, render: float) -> float:
    """Students share rendering within a pass and not their steps; the slower of the two bounds the whole."""
    return max(_hours(images * students, gpu), _hours(images * passes, render))


def _lines(job: Job, rates: Rates, value: Cost) -> list[str]:
    def bound(share: float) -> str:
        if share >= 1:
            return f"the GPUs are the bound; rendering could feed {share:.1f} × as much"
        cores = math.ceil(job.num_cores / share)
        return (
            f"rendering is the bound: it feeds {100 * share:.0f} % of what the GPUs could take; add cores: {cores} do"
        )

    lines = [
        f"assumed: {rates.source}",
        f"assumed: one GPU: {rates.teacher:,.1f} teacher forwards/s, {rates.student:,.1f} student training images/s",
        f"assumed: one core: {rates.views:,.0f} views/s in training, {rates.unit_views:,.0f} in stage 1: a decode "
        "serves the views of a unit",
        f"assumed: {count(job.num_gpus, 'GPU')} and {count(job.num_cores, 'core')} scale without loss; rendering "
        "overlaps computing; evaluation, start-up and the join (a few per cent) are left out",
        f"assumed: {count(job.num_samples, 'sample')} × {count(job.epochs, 'epoch')} per student, "
        f"{count(job.num_views, 'view')} cached, {count(job.num_students, 'student')}"
        + (f", {job.together} on each rendered batch" if job.together > 1 else ""),
        *_several(job.num_teachers),
        f"storage: {byte_size(value.storage_bytes)} ({job.bytes_per_view:.1f} bytes per view)",
        f"stage 1, once: {count(value.forwards_spent, 'forward')}, {value.teacher_hours:,.1f} h; "
        + bound(value.stage1_decode_share),
        f"one student: {value.cached_hours:,.1f} h from the cache, {value.online_hours:,.1f} h with the teacher in the "
        f"loop ({value.online_hours / value.cached_hours:.2f} ×); from the cache " + bound(value.decode_share),
        f"all students: {value.sweep_hours:,.1f} h with stage 1, {value.sweep_online_hours:,.1f} h one by one with the "
        "teacher in the loop",
    ]
    return [*lines, _break_even_line(value)]


def _several(teachers: int) -> list[str]:
    assumption = f"assumed: {count(teachers, 'teacher')} of the same cost, each with a stage 1 of its own"
    return [assumption] if teachers > 1 else []


def _break_even_line(value: Cost) -> str:
    forwards = f"{value.forwards_break_even:.2f} students in forwards"
    if math.isinf(value.break_even):
        return f"break-even: {forwards}; never in hours, as rendering bounds both: the cache saves GPU work, not time"
    return f"break-even: {forwards}, {value.break_even:.2f} in hours"
