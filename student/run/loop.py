"""The training loop: from an index and, usually, a cache to finished students.

`train_many` trains one student, or several that see the same batches: one decode and one augmentation for all of them.
It is a generator of small events (`student.run.run_events`). The same call resumes a killed run and finds a
finished one finished. A signal (SIGTERM, SIGUSR1, Ctrl-C) ends the step, saves, and the last event is `Stopped`.
"""

import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.index.shard_index import ShardIndex
from shards.signals import StopRequest
from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe
from shards.world import ALONE, World
from student.feed.cache_check import require_student
from student.feed.coverage import coverage
from student.feed.feed import Feed
from student.feed.feed_options import FeedOptions
from student.feed.teaching import NOBODY, Teaching
from student.learn.losses.table import NONE
from student.learn.process_group import ProcessGroup, meeting_place, process_group
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.checkpoint import finished_before, together
from student.run.run_events import Event, Joining, Scheduled, Stopped, StudentFinished, ValidationChecked
from student.run.run_files import RunFiles, read_json
from student.run.run_reader import threads_before
from student.run.shard_sets import ShardSets
from student.run.students import StudentJob, Students, run_identity
from teacher_cache.network.device import own_threads, rank_device


def train(recipe: StudentRecipe, index: ShardIndex, *, out: Path, **arguments: Any) -> Iterator[Event]:
    """Train one student: `train_many` with one job, under its former name; for one version."""
    warnings.warn("train(recipe, …, out=…): call train_many([StudentJob(recipe, out)], …)", DeprecationWarning, 2)
    return train_many([StudentJob(recipe, out)], index, **arguments)


def train_many(
    jobs: Sequence[StudentJob],
    index: ShardIndex,
    *,
    settings: TrainSettings,
    teaching: Teaching | None = None,
    views: ViewRecipe | None = None,
    val_index: ShardIndex | None = None,
    shard_cache_dir: Path | None = None,
    world: World | None = None,
) -> Iterator[Event]:
    """Train students that share epochs, batch size, repeats and image size on one pass over the data.

    Each one ends bit-identical to being trained alone. Students whose checkpoints are at different steps take their
    passes one after the other.

    Args:
        jobs: recipe and run directory of each student; directories differ.
        index: training shards; val_index: shards to evaluate on.
        settings: seed, precision, workers and so on.
        teaching: the caches, whose recipe decides the views, or the teachers in the loop ("online"); None: nobody, and
            recipes must have distill "none".
        views: the view recipe of a run without a cache; None takes the first recipe's.
        shard_cache_dir: local copies of remote shards.
        world: rank and size of this process, and how ranks meet; None is alone.

    Raises:
        ValueError: settings that do not fit each other. CacheError: a cache that does not fit, is incomplete, or whose
            teacher saw other pixels. ShardError: from the reader. RunError: a directory of another run, a full disk.
    """
    teaching = teaching or NOBODY
    _require_alike(jobs, teaching, index)
    world, recipe = world or ALONE, jobs[0].recipe
    device = rank_device(settings.device, world)
    settings = replace(settings, threads=settings.threads or max(threads_before(job.out) for job in jobs))
    with (
        own_threads(device, settings.workers, world, num_threads=settings.threads) as threads,
        Feed(
            index,
            cache=teaching,
            views=views if teaching.caches else views or own_views(jobs),
            views_used=settings.views_used,
            batch_size=recipe.batch_size,
            repeats=recipe.repeats,
            seed=settings.seed,
            smoothing=recipe.label_smoothing,
            epochs=recipe.epochs,
            device=device,
            workers=settings.workers,
            options=_feed_options(settings, world, shard_cache_dir),
        ) as feed,
    ):
        if device.type == "cpu" and not settings.threads:
            settings = replace(settings, threads=threads)
        for job in jobs:
            require_student(job.recipe, feed.views, feed.teaching.open_caches)
        data = ShardSets(index=feed.index, val_index=val_index, views=feed.views, shard_cache_dir=shard_cache_dir)
        data.check()
        yield from _joining(world)
        with process_group(world, device, precision=settings.precision) as group, StopRequest() as stop:
            finished, passes = group.from_main(lambda: _existing(jobs, settings, data, feed, world))
            yield from finished or _announced(jobs, data, feed)
            for members in passes:
                mates = [jobs[number] for number in members]
                run = Students(mates, data, settings, group, feed, feed.teaching.identity(), alone=len(jobs) == 1)
                if (yield from _one_pass(run, feed, group, stop)):
                    return
            if group.any_was_told_to_stop(stop.told):  # too late for these students, not for those that come after
                yield Stopped(students=(), step=recipe.epochs * feed.order.steps, exit_code=stop.exit_code)


def _feed_options(settings: TrainSettings, world: World, shard_cache_dir: Path | None) -> FeedOptions:
    return FeedOptions(
        rank=world.rank,
        world_size=world.size,
        accumulate=settings.accumulate,
        prefetch=settings.prefetch,
        shard_cache=shard_cache_dir,
        scratch=Path(settings.scratch) if settings.scratch else None,
    )


def own_views(jobs: Sequence[StudentJob]) -> ViewRecipe:
    """The views of a run without a cache: its recipe's, with the versions of operations that the run began with."""
    recipe = jobs[0].recipe
    config = RunFiles(jobs[0].out).config
    if not config.is_file() or "versions" in dict(recipe.view_overrides):
        return recipe.view_recipe
    stored_views = read_json(config).get("data", {}).get("views", {})
    return replace(recipe.view_recipe, versions=tuple(stored_views.get("versions", ())))


def _existing(
    jobs: Sequence[StudentJob], settings: TrainSettings, data: ShardSets, feed: Feed, world: World
) -> tuple[list[Event], list[list[int]]]:
    """Return the results where all students had finished before this call; else the passes to train."""
    summaries: list[Event] = []
    for recipe, out, *_ in jobs:
        files, identity = RunFiles(out), run_identity(recipe, settings, data, feed.teaching.identity())
        if not finished_before(files, recipe.epochs * feed.order.steps, identity, world.size):
            return [], together([RunFiles(job.out).checkpoints for job in jobs])
        summary = read_json(files.summary)
        summaries.append(StudentFinished(student=out.name, out=out, summary=summary, before=True))
    return summaries, []


def _one_pass(run: Students, feed: Feed, group: ProcessGroup, stop: StopRequest) -> Generator[Event, None, bool]:
    """Train the students of one pass to the end, or until none is left (False), or to a signal (True)."""
    with run:
        step = yield from run.resume()
        while step < run.num_steps:
            epoch, first_step = divmod(step, feed.order.steps)
            for batch in feed.epoch(epoch, first_step=first_step):
                run.look_at(batch, step)
                for trainer in run.trainers:
                    trainer.feed(batch.images, batch.labels, batch.answer, step=step, micro=batch.micro)
                if batch.micro + 1 < feed.order.accumulate:
                    continue
                step += 1
                yield from run.progress(step)
                stopping = group.any_was_told_to_stop(stop.told) and step < run.num_steps
                yield from run.after_step(step, stopping=stopping)
                if stopping:
                    yield Stopped(students=run.names, step=step, exit_code=stop.exit_code)
                    return True
                if not run.names:
                    return False
        yield from run.finish(step)
    return False


def _joining(world: World) -> Iterator[Event]:
    """Announce where this rank is about to wait for the others, if there are any."""
    if world.size > 1:
        yield Joining(rank=world.rank, world_size=world.size, where=meeting_place(world))


def _announced(jobs: Sequence[StudentJob], data: ShardSets, feed: Feed) -> Iterator[Event]:
    yield _scheduled(jobs, feed)
    num_samples = data.val_index.num_samples if data.val_index is not None else 0
    yield ValidationChecked(num_samples=num_samples, num_in_training=data.num_in_training, classes=data.class_words)


def _scheduled(jobs: Sequence[StudentJob], feed: Feed) -> Scheduled:
    recipe, plan = jobs[0].recipe, feed.plan(0)
    return Scheduled(
        students=tuple(job.out.name for job in jobs),
        epochs=recipe.epochs,
        steps_per_epoch=plan.steps,
        batch_size=recipe.batch_size,
        images_per_epoch=feed.order.images_per_epoch,
        num_left_out=plan.num_left_out,
        coverage=coverage(feed.index, feed.order, recipe.epochs),
        views=tuple(feed.order.schedule(recipe.epochs)),
        repeats=recipe.repeats,
        labels=_label_words(jobs, feed.index),
    )


def _label_words(jobs: Sequence[StudentJob], index: ShardIndex) -> str:
    """Describe training images without a label; "" where all have one."""
    missing, total = index.num_unlabelled, index.num_samples
    if not missing:
        return ""
    if missing == total:
        return f"none of {count(total, 'training image')} has a label: all that is learnt are the teacher's answers"
    words = [f"{total - missing} of {count(total, 'training image')} have a label"]
    if any(job.recipe.distill != NONE for job in jobs):
        words.append("the others learn from the teacher alone")
    if any(job.recipe.distill == NONE for job in jobs):
        words.append("without a teacher (--distill none) the others teach nothing")
    return "; ".join(words)


def _require_alike(jobs: Sequence[StudentJob], teaching: Teaching, index: ShardIndex) -> None:
    """ValueError unless the students can learn, see the same batches and have directories of their own."""
    if not jobs:
        raise ValueError("students: expected at least one, got none")
    for job in jobs:
        job.recipe.require_teacher(bool(teaching))
        job.recipe.require_labels(index.num_samples - index.num_unlabelled)
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
