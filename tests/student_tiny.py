"""Small things for the tests of the student: shards, a cache, a two-headed student, processes that can be killed."""

import io
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.deit import VisionTransformerDistilled

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.rng import stream
from shards.tars.writer import write_samples
from shards.views.behaviour import behaviour_digest
from shards.views.blocks import ViewBatch
from shards.views.view_recipe import ViewRecipe, recipe_named
from shards.world import World
from student.feed.feed import Feed
from student.feed.feed_options import FeedOptions
from student.feed.teaching import Teaching
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.loop import train_many
from student.run.run_events import Event
from student.run.students import StudentJob
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.stage1.build import build_cache
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import CacheSpec, TeacherSpec

SIZE = 16
CLASSES = 5
BATCH = 16
SLAB_ROWS = np.array([5, 3, 7])
"""Samples of each shard in `loaded_batch`."""


@register_model
def student_tiny_distilled(pretrained: bool = False, **options: Any) -> VisionTransformerDistilled:
    """A DeiT with a distillation token, 2 blocks of width 16, for 16-pixel images."""
    options = {name: value for name, value in options.items() if name in ("num_classes", "drop_path_rate")}
    return VisionTransformerDistilled(img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, **options)


def views(**changes: Any) -> ViewRecipe:
    """The DeiT recipe with everything on, at 16 pixels, blocks of 4, units of 2 views."""
    return recipe_named("deit", **{"size": SIZE, "block_size": 4, "block_views": 2, **changes})


def student_recipe(**changes: Any) -> StudentRecipe:
    """A short run of the tiny student with drop path, smoothing, EMA and both losses."""
    defaults: dict[str, Any] = {
        "model": "student_tiny_distilled",
        "image_size": SIZE,
        "epochs": 2,
        "batch_size": BATCH,
        "repeats": 1,
        "warmup_epochs": 0,
        "lr": 0.01,
        "lr_scaling": "none",
        "distill": "soft",
        "temperature": 2.0,
        "ema_decay": 0.9,
    }
    return StudentRecipe(**{**defaults, **changes})


def write_shards(folder: Path, *, rows: tuple[int, ...] = (23, 25, 18), seed: int = 0) -> ShardIndex:
    """Shards of smooth random PNG images, of which each has a key of its own."""
    samples = []
    for n in range(sum(rows)):
        rng = stream(seed, "test image", n)
        small = (rng.uniforms(6 * 7 * 3).reshape(6, 7, 3) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((27, 24), Image.Resampling.BICUBIC).save(buffer, "png")
        samples.append((f"n{n:04d}", rng.below(CLASSES), "png", buffer.getvalue()))
    return write_samples(samples, folder, samples_per_shard=max(rows), num_classes=CLASSES)


def linear_teacher(recipe: ViewRecipe) -> Teacher:
    """A teacher of one linear layer with fixed weights: fast, and different for every pixel."""
    weights = np.concatenate([stream(0, "teacher", c).uniforms(3 * SIZE * SIZE) for c in range(CLASSES)])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, CLASSES, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(weights.reshape(CLASSES, -1) - 0.5).float() / 4)
    spec = TeacherSpec(
        name="linear",
        weights_sha256="0" * 64,
        precision="fp32",
        input_size=recipe.size,
        num_classes=CLASSES,
        mean=recipe.mean,
        std=recipe.std,
    )
    return Teacher(network, spec, device=torch.device("cpu"))


def make_cache(
    folder: Path,
    index: ShardIndex,
    recipe: ViewRecipe,
    *,
    num_views: int,
    kind: str = "dense",
    teacher: Teacher | None = None,
) -> TeacherCache:
    """A complete cache of a teacher's answers, given in batches of the tiny student's batch size."""
    teacher = teacher or linear_teacher(recipe)
    spec = CacheSpec(
        index_fingerprint=index.fingerprint,
        teacher=teacher.spec,
        recipe=recipe,
        record=RecordFormat.chosen(kind, CLASSES),
        behaviour=behaviour_digest(recipe),
    )
    with TeacherCache.create(str(folder), spec, index, num_views=num_views) as cache, ShardReader(index) as reader:
        for _ in build_cache(cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=BATCH):
            pass
    return TeacherCache.open(str(folder))


by = Teaching.of
"""Who teaches, from a cache."""


def train(
    recipe: StudentRecipe,
    index: ShardIndex,
    *,
    out: Path,
    cache: Any = None,
    teacher: Any = None,
    teacher_weights: Any = None,
    **options: Any,
) -> Iterator[Event]:
    """Train one student; who teaches as arguments of their own."""
    teaching = Teaching.of(cache, teacher, teacher_weights)
    return train_many([StudentJob(recipe, out)], index, teaching=teaching, **options)


def feed_of(shards: Any, **settings: Any) -> Feed:
    """A feed whose options are given beside its arguments, as most tests vary one of either."""
    names = {field.name for field in fields(FeedOptions)}
    options = FeedOptions(**{name: settings.pop(name) for name in names & settings.keys()})
    if "teacher_weights" in settings:
        who = (settings.pop(name, None) for name in ("cache", "teacher", "teacher_weights"))
        settings["cache"] = Teaching.of(*who)
    return Feed(shards, **settings, options=options)


def run_to_end(out: Path, index: ShardIndex, cache: TeacherCache | None = None, **options: Any) -> list[Any]:
    """All events of a training run."""
    recipe = options.pop("recipe", student_recipe())
    settings = options.pop("settings", TrainSettings(log_every=1))
    return list(train(recipe, index, settings=settings, out=out, cache=cache, **options))


def final_weights(out: Path, name: str = "weights.safetensors") -> dict[str, tuple[list[int], bytes]]:
    """A finished run's weights to the bit: shape and bytes of every tensor."""
    state = load_file(out / name)
    return {key: (list(value.shape), value.numpy().tobytes()) for key, value in state.items()}


def in_child(work: Callable[[], Any], *, killed: bool = False) -> Any:
    """What `work` gives in a forked child, or its error raised here; `killed` expects SIGKILL instead."""
    return in_children([work], killed=killed)[0]


def in_children(works: list[Callable[[], Any]], *, killed: bool = False) -> list[Any]:
    """Several at once, as the ranks of a process group."""
    context = multiprocessing.get_context("fork")
    pairs = []
    for work in works:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(work, theirs))
        process.start()
        theirs.close()
        pairs.append((process, ours))
    results = []
    for process, pipe in pairs:
        try:
            results.append(pickle.loads(pipe.recv_bytes()))
        except EOFError:
            results.append(None)
        process.join()
        assert (process.exitcode == -signal.SIGKILL) == killed, f"exit code {process.exitcode}: {results[-1]!r}"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _report(work: Callable[[], Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        result = work()
    except Exception as error:
        error.add_note(traceback.format_exc())
        result = error
    pipe.send_bytes(pickle.dumps(result))


def kill_self() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def loaded_batch(count: int = 50, views: range = range(4, 8), seed: int = 0) -> ViewBatch:
    """Samples of three shards (`SLAB_ROWS`) whose digest says which view, shard and row they are."""
    rng = np.random.Generator(np.random.PCG64(seed))
    shard_B = rng.integers(0, 3, count).astype(np.int32)
    row_B = np.array([rng.integers(0, SLAB_ROWS[s]) for s in shard_B], np.int32)
    view_B = rng.integers(views.start, views.stop, count).astype(np.int32)
    return ViewBatch(
        shard_B=shard_B,
        row_B=row_B,
        view_B=view_B,
        label_B=np.zeros(count, np.int64),
        pixel_digest_B=(view_B * 100 + shard_B * 10 + row_B).astype(np.uint32),
        partner_B=np.arange(count, dtype=np.int32),
        lam_B=np.ones(count, np.float32),
        box_B4=np.zeros((count, 4), np.int16),
        view_BHWC=np.zeros((count, 1, 1, 3), np.uint8),
    )
