"""The four throughputs of a cost estimate, measured here for a few seconds each, on one device and one core."""

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.rng import stream
from shards.views.blocks import render_block
from shards.views.mixing import num_blocks
from shards.views.view import render_views
from shards.views.view_recipe import ViewRecipe, recipe_named
from shards.world import World
from student.cost.cost_estimate import Rates
from student.feed.batch import Batch, Labels
from student.feed.teacher_source import TeacherAnswer
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.papers import chosen_recipe
from student.recipe.settings import Precision, TrainSettings
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.teacher import Teacher, load_teacher

_SYNTHETIC = (375, 500)


def calibrate(
    recipe: StudentRecipe,
    views: ViewRecipe,
    settings: TrainSettings,
    teacher: Teacher,
    *,
    num_classes: int,
    batch_size: int,
    index: ShardIndex | None = None,
    seconds: float = 5.0,
) -> Rates:
    """Measure teacher, student and rendering.

    Args:
        recipe: the student; `settings.device` and `settings.precision` are where and how it trains.
        views: rendered at the number per decode that training (recipe.repeats) and stage 1 (block_views) have.
        batch_size: of teacher and student here; one that the device holds.
        index: real images to render; without it JPEGs of 500×375 noise-textured pixels are, and the source says so.
        seconds: per throughput, after one call that warms up.
    """
    device = torch.device(settings.device)
    x_BCHW = torch.zeros(batch_size, 3, views.size, views.size, device=device)
    teacher_s = _median_seconds(lambda: teacher.logits(x_BCHW), seconds, device)
    student_s = _median_seconds(_step(recipe, settings, num_classes, x_BCHW), seconds, device)
    render, images = _renderer(views, index)
    return Rates(
        teacher=batch_size / teacher_s,
        student=batch_size / student_s,
        views=_views_per_s(render, recipe.repeats, seconds),
        unit_views=_views_per_s(render, views.block_views, seconds),
        source=f"measured here for {seconds:g} s each: batch {batch_size}, teacher {teacher.spec.name} "
        f"{teacher.spec.precision}, student {recipe.model} {settings.precision} on {device.type}, {images}",
    )


def measured_rates(
    model: str,
    teacher: str,
    *,
    index: ShardIndex | None,
    batch_size: int,
    seconds: float,
    precision: Precision,
    device: str,
) -> Rates:
    """The rates of this machine with DeiT's views, by names; the speed of a teacher does not depend on its weights."""
    views = recipe_named("deit")
    num_classes = index.num_classes if index else 1000
    network = load_teacher(
        teacher,
        num_classes=num_classes,
        precision=precision,
        device=device,
        pretrained=False,
        input_size=views.size,
        view_mean=views.mean,
        view_std=views.std,
    )
    return calibrate(
        chosen_recipe(model, name=None, stage=0, given={}, cached=views),
        views,
        TrainSettings(precision=precision, device=device),
        network,
        num_classes=num_classes,
        batch_size=batch_size,
        index=index,
        seconds=seconds,
    )


def _median_seconds(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Median time of a call, the device's queue drained."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    end, times = time.perf_counter() + seconds, [once()]
    while time.perf_counter() < end:
        times.append(once())
    return statistics.median(times)


def _step(
    recipe: StudentRecipe, settings: TrainSettings, num_classes: int, x_BCHW: torch.Tensor
) -> Callable[[], object]:
    """One training step of the student on hard labels: the loss is a thousandth of a step, whatever it is."""
    group = ProcessGroup(World(), x_BCHW.device)
    trainer = Trainer(recipe, settings, num_classes=num_classes, steps_per_epoch=1_000_000, group=group)
    label_B = torch.zeros(len(x_BCHW), dtype=torch.int64, device=x_BCHW.device)
    uniform_BC = torch.full((len(x_BCHW), num_classes), -float(np.log(num_classes)), device=x_BCHW.device)
    answer = TeacherAnswer(label_B, lambda temperature: uniform_BC)
    batch = Batch(x_BCHW, Labels.of(label_B), answer)
    steps = iter(range(1_000_000))
    return lambda: trainer.feed(batch, step=next(steps))


Render = Callable[[int, range], int]
"""(n-th call, views) → views rendered."""


def _renderer(views: ViewRecipe, index: ShardIndex | None) -> tuple[Render, str]:
    if index is None:
        data = [synthetic_jpeg(number) for number in range(8)]
        where = f"rendering synthetic JPEGs of {_SYNTHETIC[1]}×{_SYNTHETIC[0]} (give --shards for your own images)"
        return lambda n, which: len(render_views(data[n % 8], views, str(n), which, "calibration")), where
    reader = ShardReader(index)
    shards = [shard for shard in range(index.num_shards) if num_blocks(views, index.num_rows(shard), full_only=True)]
    if not shards:
        raise ValueError(f"cost: no shard has a full block of {views.block_size} samples to render")

    def render(n: int, which: range) -> int:
        shard = shards[n % len(shards)]
        block = n // len(shards) % num_blocks(views, index.num_rows(shard), full_only=True)
        return len(render_block(reader, views, shard, block, which).view_BHWC)

    return render, "rendering the images of --shards"


def _views_per_s(render: Render, num_views: int, seconds: float) -> float:
    which = range(num_views)
    render(0, which)
    began, count, n = time.process_time(), 0, 1
    # Time of this process on its core, not of the clock on the wall: other processes may share the machine.
    while time.process_time() - began < seconds:
        count += render(n, which)
        n += 1
    return count / (time.process_time() - began)


def synthetic_jpeg(number: int) -> bytes:
    """Smooth colour fields with fine texture: about as many bytes as a photo of the size."""
    rng = stream(number, "calibration image")
    coarse = (rng.uniforms(8 * 10 * 3).reshape(8, 10, 3) * 255).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(_SYNTHETIC[::-1], Image.Resampling.BICUBIC), np.float64)
    noise = rng.uniforms(image.size).reshape(image.shape) * 24 - 12
    buffer = io.BytesIO()
    Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()
