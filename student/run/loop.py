"""The training loop: from an index and, usually, a cache to finished students.

    train        one student
    train_many   several students that see the same batches: one decode, one augmentation, one join for all of them

Both are generators of small events (`student.run.run_events`). The same call resumes a killed run and finds a
finished one finished. A signal (SIGTERM, SIGUSR1) ends the step, saves, and the last event is `Stopped`.
"""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.signals import REQUEUE_EXIT_CODE, StopRequest
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe
from shards.world import World
from student.feed.cache_check import Views, views_of_cache, views_without_cache
from student.feed.epoch_plan import EpochPlan, Items
from student.feed.loader import LoadedBatch, batches
from student.feed.pass_data import Data
from student.feed.teacher_source import CachedTeacher, NoTeacher, OnlineTeacher, TeacherSource
from student.learn.loss import Labels
from student.learn.process_group import ProcessGroup, process_group
from student.learn.trainer import Batch
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.run_events import Event, Scheduled, Stopped
from student.run.students import StudentJob, Students, together
from teacher_cache.network.teacher import Teacher
from teacher_cache.store.cache import TeacherCache

__all__ = ["StudentJob", "train", "train_many"]


def train(
    recipe: StudentRecipe,
    index: ShardIndex,
    *,
    settings: TrainSettings,
    out: Path,
    cache: TeacherCache | None = None,
    teacher: Teacher | None = None,
    views: ViewRecipe | None = None,
    val_index: ShardIndex | None = None,
    shard_cache_dir: Path | None = None,
    world: World | None = None,
    init_method: str = "env://",
) -> Iterator[Event]:
    """Train one student; arguments and errors as `train_many`."""
    yield from train_many(
        [StudentJob(recipe, out)],
        index,
        settings=settings,
        cache=cache,
        teacher=teacher,
        views=views,
        val_index=val_index,
        shard_cache_dir=shard_cache_dir,
        world=world,
        init_method=init_method,
    )


def train_many(
    jobs: Sequence[StudentJob],
    index: ShardIndex,
    *,
    settings: TrainSettings,
    cache: TeacherCache | None = None,
    teacher: Teacher | None = None,
    views: ViewRecipe | None = None,
    val_index: ShardIndex | None = None,
    shard_cache_dir: Path | None = None,
    world: World | None = None,
    init_method: str = "env://",
) -> Iterator[Event]:
    """Train students that share epochs, batch size, repeats and image size on one pass over the data.

    Each one ends bit-identical to being trained alone. Students whose checkpoints are at different steps take their
    passes one after the other.

    Args:
        jobs: recipe and run directory of each student; directories differ.
        index: training shards; val_index: shards to evaluate on.
        settings: seed, precision, workers and so on.
        cache: where the teacher's answers are; its recipe decides the views.
        teacher: runs in the loop instead ("online"); without both, recipes must have distill "none".
        views: the view recipe of a run without a cache; None takes the first recipe's.
        shard_cache_dir: local copies of remote shards.
        world: rank and size of this process; None is alone. init_method: how ranks meet (torch.distributed).

    Raises:
        ValueError: settings that do not fit each other. CacheError: a cache that does not fit, is incomplete, or whose
            teacher saw other pixels. ShardError: from the reader. RunError: a directory of another run, a full disk.
    """
    _require_alike(jobs, cache, teacher)
    world, recipe = world or World(), jobs[0].recipe
    seen = _views(jobs, index, settings, cache, teacher, views)
    data = Data(index=index, val_index=val_index, views=seen, shard_cache_dir=shard_cache_dir)
    plan = data.check(recipe, settings, world)
    device = torch.device(settings.device if settings.device != "cuda" else f"cuda:{world.local_rank}")
    with process_group(world, device, init_method=init_method) as group, StopRequest() as stop:
        yield _scheduled(jobs, data, plan)
        for members in group.from_main(lambda: together(jobs)):
            with _source(data, recipe, cache, teacher) as source:
                some = [jobs[number] for number in members]
                run = Students(some, data, settings, group, source, _teacher_identity(cache, teacher))
                stopped = yield from _one_pass(run, data, recipe, settings, group, source, stop)
            if stopped:
                return


def _one_pass(
    run: Students,
    data: Data,
    recipe: StudentRecipe,
    settings: TrainSettings,
    group: ProcessGroup,
    source: TeacherSource,
    stop: StopRequest,
) -> Generator[Event, None, bool]:
    """Train the students of one pass to the end (False) or to a signal (True)."""
    per_epoch = data.steps_per_epoch(recipe)
    with run, ShardReader(data.index, data.shard_cache_dir) as reader:
        step = yield from run.resume()
        loaded = batches(
            _items(data, recipe, settings, group, first_step=step),
            reader=reader,
            recipe=data.views.recipe,
            workers=settings.workers,
            prefetch=settings.prefetch,
            pin_memory=group.device.type == "cuda",
        )
        stream = run.pace.timing(loaded)
        while step < run.num_steps:
            source.begin_epoch(step // per_epoch)
            for micro in range(settings.accumulate):
                batch = _ready(next(stream), data.views, source, group.device)
                for trainer in run.trainers:
                    trainer.feed(batch, step=step, micro=micro)
            step += 1
            stopping = group.any_was_told_to_stop(stop.told) and step < run.num_steps
            yield from run.after_step(step, stopping=stopping)
            if stopping:
                yield Stopped(students=run.names, step=step, exit_code=REQUEUE_EXIT_CODE)
                return True
        yield from run.finish(step)
    return False


def _views(
    jobs: Sequence[StudentJob],
    index: ShardIndex,
    settings: TrainSettings,
    cache: TeacherCache | None,
    teacher: Teacher | None,
    views: ViewRecipe | None,
) -> Views:
    """What the students look at; errors as `student.feed.cache_check`."""
    recipes = [job.recipe for job in jobs]
    if cache is not None:
        return views_of_cache(cache, index, recipes, views_used=settings.views_used)
    return views_without_cache(recipes, teacher, views, views_used=settings.views_used)


def _scheduled(jobs: Sequence[StudentJob], data: Data, plan: EpochPlan) -> Scheduled:
    """What a run says before its first step."""
    recipe = jobs[0].recipe
    return Scheduled(
        students=tuple(job.out.name for job in jobs),
        epochs=recipe.epochs,
        steps_per_epoch=plan.steps,
        batch_size=recipe.batch_size,
        num_left_out=plan.num_left_out,
        views=tuple(data.schedule(recipe)),
    )


def _source(
    data: Data, recipe: StudentRecipe, cache: TeacherCache | None, teacher: Teacher | None
) -> TeacherSource:
    """Where the answers come from."""
    if cache is not None:
        index = data.index
        return CachedTeacher(cache, data.epoch_views(recipe), name_of=lambda s, r: (index.names[s], index.key(s, r)))
    return NoTeacher() if teacher is None else OnlineTeacher(teacher)


def _teacher_identity(cache: TeacherCache | None, teacher: Teacher | None) -> dict[str, Any]:
    """What the teacher is, for configuration and checkpoints; where a cache lies is not part of it."""
    if cache is not None:
        return {"kind": "cache", "fingerprint": cache.spec.fingerprint, **cache.spec.to_json()}
    return {"kind": "none"} if teacher is None else {"kind": "online", **teacher.spec.to_json()}


def _require_alike(jobs: Sequence[StudentJob], cache: TeacherCache | None, teacher: Teacher | None) -> None:
    """ValueError unless the students can see the same batches and have directories of their own."""
    if not jobs:
        raise ValueError("students: expected at least one, got none")
    if cache is not None and teacher is not None:
        raise ValueError("teacher: give a cache or a teacher in the loop, not both")
    first = jobs[0].recipe
    for job in jobs[1:]:
        for name in ("epochs", "batch_size", "repeats", "image_size", "eval_crop_pct"):
            if getattr(job.recipe, name) != getattr(first, name):
                raise ValueError(
                    f"{name}: students of one pass must agree, got {getattr(first, name)!r} for {jobs[0].out} and "
                    f"{getattr(job.recipe, name)!r} for {job.out}; train them apart"
                )
    if len({job.out.resolve() for job in jobs}) != len(jobs) or len({job.out.name for job in jobs}) != len(jobs):
        raise ValueError(f"out: every student needs a directory name of its own, got {[str(j.out) for j in jobs]}")


def _ready(loaded: LoadedBatch, views: Views, source: TeacherSource, device: torch.device) -> Batch:
    """A loaded batch on the device: normalised, mixed, labelled, and answered by the teacher."""
    mixing = [torch.from_numpy(values) for values in (loaded.partner_B, loaded.lam_B, loaded.box_B4)]
    partner_B, lam_B, box_B4 = (values.to(device, non_blocking=True) for values in mixing)
    x_BCHW: Tensor = prepare(
        loaded.view_BHWC.to(device, non_blocking=True),
        partner_B,
        lam_B,
        box_B4,
        mean=views.recipe.mean,
        std=views.recipe.std,
    )
    label_B = torch.from_numpy(loaded.label_B).to(device, non_blocking=True)
    return Batch(x_BCHW, Labels.of(label_B, partner_B, lam_B), source.answer(loaded, x_BCHW))


def _items(
    data: Data, recipe: StudentRecipe, settings: TrainSettings, group: ProcessGroup, *, first_step: int
) -> Iterator[Items]:
    """This rank's micro-batches from `first_step` to the end of the run; reaching the first costs no I/O."""
    per_epoch = data.steps_per_epoch(recipe)
    parts = group.world.size * settings.accumulate
    for epoch in range(first_step // per_epoch, recipe.epochs):
        plan = data.plan(recipe, settings.seed, epoch)
        for step in range(first_step - epoch * per_epoch if epoch * per_epoch < first_step else 0, per_epoch):
            for micro in range(settings.accumulate):
                yield plan.items(step, group.world.rank * settings.accumulate + micro, parts)
