"""`train-student`: train a student from shards and a teacher cache (stage 2)."""

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.console import say_next
from shards.flags import PATH, SEED, TEXT, ShardPlace, refuse_ignored, shard_options
from shards.own_folder import require_own
from shards.world import World, world_from_env
from student.commands.flags import (
    CacheFlags,
    LossFlags,
    StudentFlags,
    TrainingFlags,
    cache_options,
    loss_options,
    require_start,
    student_options,
    training_options,
)
from student.commands.training_display import TrainingDisplay
from student.learn.losses.table import LOSSES, NONE
from student.run.run_files import RUN_FOLDER
from student.run.run_reader import is_finished, precision_before, recipe_before
from teacher_cache.commands.flags import TeacherFlags, teacher_options

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from student.recipe.choice import RecipeChoice
    from student.recipe.settings import TrainSettings
    from student.recipe.student_recipe import StudentRecipe
    from teacher_cache.network.teacher import Teacher

_TEACHER_FLAGS = ("teacher", "teacher_weights", "teacher_args", "teacher_mean", "teacher_std", "teacher_ema")


@click.command("train-student")
@shard_options()
@click.option("--val-shards", type=TEXT, help="Shards to evaluate on.")
@cache_options(
    help="The teacher cache; again for more teachers of the same views. Without it: --distill none, or --online."
)
@click.option("--out", required=True, type=PATH, help="Run directory; an unfinished run goes on.")
@loss_options
@student_options
@click.option("--online", is_flag=True, help="Run the teacher in the loop instead of reading a cache.")
@teacher_options
@click.option("--views-used", type=click.IntRange(1), help="Use only the first N views of the cache.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Initial weights, order, drop path.")
@training_options
def train_student(
    shard_place: ShardPlace,
    val_shards: str | None,
    cache_flags: CacheFlags,
    out: Path,
    loss: LossFlags,
    student: StudentFlags,
    online: bool,
    teacher: TeacherFlags,
    views_used: int | None,
    seed: int,
    training: TrainingFlags,
) -> None:
    """Train a DeiT student from shards and a teacher cache: any λ, any τ, hard or soft.

    Run the same command again to go on after a kill. Under torchrun every process is one rank.
    """
    index = shard_place.index()
    val_index = shard_place.labelled(val_shards, "--val-shards", "validation") if val_shards else None
    choice = student.choice(combine=cache_flags.combine, **asdict(loss))
    _check(choice, cache_flags, index, online=online, views_used=views_used)
    require_own("--out", out, RUN_FOLDER)
    world = world_from_env()
    suit = partial(choice.suited_to, index, parts=world.size * training.accumulate, before=recipe_before(out))
    if headers := list(cache_flags.headers().values()):
        suit(headers[0].spec.recipe, num_views=[views_used or min(header.num_views for header in headers)])
    elif not cache_flags.caches:
        suit(num_views=[views_used])
    from student.feed.teaching import Teaching
    from student.run.loop import StudentJob, train_many

    settings = training.settings(
        run_precision=precision_before(out), seed=seed, views_used=views_used, quiet=is_finished(out)
    )
    with ExitStack() as stack:
        caches = cache_flags.open(stack)
        fewest_views = min((cache.num_views for cache in caches), default=None)
        recipe, reasons = suit(caches[0].spec.recipe if caches else None, num_views=[views_used or fewest_views])
        network = _in_the_loop(teacher, recipe, settings, world) if online else None
        display = TrainingDisplay(quiet=world.rank > 0)
        display.explain(reasons, cache_flags.words(recipe.combine))
        for event in train_many(
            [StudentJob(recipe, out)],
            index,
            settings=settings,
            teaching=Teaching.of(caches or None, network, cache_flags.weights),
            val_index=val_index,
            shard_cache_dir=shard_place.shard_cache,
            world=world,
        ):
            display.show(event)
        display.close()
    if world.rank == 0:
        say_after_training(out, val_shards)


def say_after_training(out: Path, val_shards: str | None) -> None:
    """Say what a finished run is good for."""
    evaluate = [["evaluate", "--shards", val_shards, "--weights", out]] if val_shards else []
    export = ["export", out, out.with_name(f"{out.name}-export")]
    say_next(["report", out], *evaluate, ["predict", "photo.jpg", "--weights", out], export)


def _check(
    choice: "RecipeChoice", cache_flags: CacheFlags, index: "ShardIndex", *, online: bool, views_used: int | None
) -> None:
    """Refuse what the command could not do or would ignore, as far as that is known without torch.

    Raises:
        ValueError: for what was typed. CacheError: for a missing cache.
    """
    if cache_flags.caches and online:
        raise ValueError("--online: runs the teacher in the loop; drop it, or drop --cache")
    if not online:
        refuse_ignored(_TEACHER_FLAGS, "no teacher runs without --online")
    headers = cache_flags.headers()
    for url, header in headers.items():
        if views_used is not None and views_used > header.num_views:
            raise ValueError(f"--views-used: expected at most {header.num_views}, what {url} holds, got {views_used}")
    # The views of remote caches are known when they are open: till then they are the recipe's own.
    recipe = choice.recipe(next((header.spec.recipe for header in headers.values()), None))
    if recipe.distill == NONE:
        recipe.require_labels(index.num_samples - index.num_unlabelled)
        if online:
            raise ValueError("--online: would be ignored: --distill none has no teacher; drop one of them")
        refuse_ignored(["distill_weight", "temperature"], "without distillation (--distill none) nothing reads it")
    elif not LOSSES[recipe.distill].uses_temperature:
        refuse_ignored(["temperature"], f"{recipe.distill} distillation does not read τ")
    recipe.require_teacher(bool(cache_flags.caches) or online)
    require_start(recipe)


def _in_the_loop(teacher: TeacherFlags, recipe: "StudentRecipe", settings: "TrainSettings", world: World) -> "Teacher":
    """The teacher of --online, for the views of a run without a cache."""
    return teacher.load(recipe.view_recipe, device=settings.device, precision=settings.precision, world=world)
