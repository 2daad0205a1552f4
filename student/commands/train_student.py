"""`train-student`: train a student from shards and a teacher cache (stage 2)."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.console import say, say_next
from shards.data_defaults import epochs_within
from shards.flags import (
    COUNT,
    PATH,
    SEED,
    TEXT,
    Changed,
    Number,
    ShardPlace,
    beside,
    refuse_changes,
    refuse_ignored,
    shard_options,
)
from shards.own_folder import require_own
from shards.text.figures import count
from shards.world import World, world_from_env
from student.commands.flags import (
    CacheFlags,
    LossFlags,
    StudentFlags,
    TrainingFlags,
    cache_options,
    evaluated,
    loss_options,
    require_start,
    student_options,
    training_options,
)
from student.commands.training_display import TrainingDisplay, more_views, views_to_keep
from student.learn.losses.table import LOSSES, NONE
from student.run.run_files import RUN_FOLDER
from student.run.run_reader import is_finished, precision_before, recipe_before, views_before
from teacher_cache.commands.flags import TeacherFlags, teacher_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shards.index.shard_index import ShardIndex
    from shards.views.view_recipe import ViewRecipe
    from student.recipe.choice import RecipeChoice
    from student.recipe.settings import TrainSettings
    from student.recipe.student_recipe import StudentRecipe
    from teacher_cache.network.teacher import Teacher
    from teacher_cache.store.cache import TeacherCache

_TEACHER_FLAGS = (
    "teacher",
    "teacher_weights",
    "teacher_args",
    "teacher_mean",
    "teacher_std",
    "teacher_ema",
    "teacher_classes",
)


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
@click.option("--views-used", type=COUNT, help="Use only the first N views of the cache.")
@click.option(
    "--budget",
    type=Number(0, 100_000, min_open=True),
    metavar="MINUTES",
    help="Train as many epochs as fit into this time, by the rate that is measured first.",
)
@click.option("--seed", default=0, type=SEED, help="Initial weights, order, drop path.")
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
    budget: float | None,
    seed: int,
    training: TrainingFlags,
) -> None:
    """Train a DeiT student from shards and a teacher cache: any λ, any τ, hard or soft.

    Run the same command again to go on after a kill. Under torchrun every process is one rank.
    """
    index = shard_place.index()
    val_index = shard_place.labelled(val_shards, "--val-shards", "validation") if val_shards else None
    world = world_from_env()
    data: dict[str, Any] = {"parts": world.size * training.accumulate, "before": recipe_before(out)}
    choice = student.choice(combine=cache_flags.combine, **asdict(loss))
    _check_begun(out, choice, views_used, budget)
    choice = choice.for_set(shard_place.survey(index), data["before"])
    _check(choice, cache_flags, index, teacher if online else None, views_used=views_used, budget=budget)
    _check_steps(choice, index, cache_flags, views_used or views_before(out), data)
    from student.feed.teaching import Teaching
    from student.run.loop import StudentJob, train_many

    settings = training.settings(seed=seed, **_as_begun(out))
    with ExitStack() as stack:
        caches = cache_flags.open(stack, index)
        views = caches[0].spec.recipe if caches else None
        _fetch(shard_place, out, world, index, val_index)
        views_used = views_used or views_to_keep(out, views_before(out), _fewest_views(caches))
        if budget is not None and not data["before"]:
            choice = _within(budget, choice, index, settings, views, shard_place.shard_cache, data)
        recipe, reasons = choice.suited_to(index, views, num_views=[views_used or _fewest_views(caches)], **data)
        network = _in_the_loop(teacher, recipe, index, settings, world) if online else None
        display = TrainingDisplay(quiet=world.rank > 0, more_views=more_views(caches, shard_place))
        display.explain(reasons, cache_flags.words(recipe.combine))
        for event in train_many(
            [StudentJob(recipe, out)],
            index,
            settings=evaluated(replace(settings, views_used=views_used), recipe.epochs, index),
            teaching=Teaching.of(caches or None, network, cache_flags.weights),
            val_index=val_index,
            shard_cache_dir=shard_place.shard_cache,
            world=world,
        ):
            display.show(event)
        display.close()
    say_after_training(out, val_shards)


def _fewest_views(caches: "Sequence[TeacherCache]") -> int | None:
    return min((cache.num_views for cache in caches), default=None)


def _fetch(place: ShardPlace, out: Path, world: World, index: "ShardIndex", val_index: "ShardIndex | None") -> None:
    """Fetch remote shards that are missing here, unless the run is finished and needs none."""
    if not is_finished(out):
        place.fetch(world, index, val_index)


def say_after_training(out: Path, val_shards: str | None) -> None:
    """Say what a finished run is good for; on the first rank."""
    if world_from_env().rank > 0:
        return
    evaluate = [["evaluate", "--shards", val_shards, "--weights", out]] if val_shards else []
    export = ["export", out, beside(out, f"{out.resolve().name}-export")]
    say_next(["report", out], *evaluate, ["predict", "photo.jpg", "--weights", out], export)


def _as_begun(out: Path) -> "dict[str, Any]":
    """Return what an existing run decides, as arguments of `TrainingFlags.settings`."""
    return {"run_precision": precision_before(out), "quiet": is_finished(out)}


def _check_begun(out: Path, choice: "RecipeChoice", views_used: int | None, budget: float | None) -> None:
    """Refuse --out and flags that do not fit what exists there; say that a budget changes nothing in it.

    Raises:
        ValueError: the folder holds something else. RunError: it is a run that was begun with other values.
    """
    require_own("--out", out, RUN_FOLDER)
    before, num_views = recipe_before(out), views_before(out)
    views = [Changed("num_views", num_views, views_used, ("views_used",))] if views_used and num_views else []
    refuse_changes(out, (*choice.changes(before), *(change for change in views if change.old != change.new)))
    if budget is not None and before and "epochs" not in choice.fields:
        say(f"--budget: {out} keeps its {count(before['epochs'], 'epoch')}; another --out is planned anew")


def _check(
    choice: "RecipeChoice",
    cache_flags: CacheFlags,
    index: "ShardIndex",
    teacher: TeacherFlags | None,
    *,
    views_used: int | None,
    budget: float | None,
) -> None:
    """Refuse what the command could not do or would ignore, as far as that is known without torch.

    Args:
        teacher: of --online; None without it.

    Raises:
        ValueError: for what was typed. CacheError: for a missing cache.
    """
    _check_budget(budget, choice)
    online = teacher is not None
    if cache_flags.caches and online:
        raise ValueError("--online: runs the teacher in the loop; drop it, or drop --cache")
    if teacher is not None:
        teacher.check_known_classes(index)
    else:
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


def _check_steps(
    choice: "RecipeChoice",
    index: "ShardIndex",
    cache_flags: CacheFlags,
    views_used: int | None,
    data: "dict[str, Any]",
) -> None:
    """ValueError for numbers that do not fit each other or the data, where the views are known without torch."""
    if headers := list(cache_flags.headers().values()):
        fewest_views = min(header.num_views for header in headers)
        choice.suited_to(index, headers[0].spec.recipe, num_views=[views_used or fewest_views], **data)
    elif not cache_flags.caches:
        choice.suited_to(index, num_views=[views_used], **data)


def _check_budget(budget: float | None, choice: "RecipeChoice") -> None:
    """ValueError for a budget beside a number of epochs, and for one that every rank would measure for itself."""
    if budget is None:
        return
    if "epochs" in choice.fields:
        raise ValueError("--budget: chooses the number of epochs; drop it, or drop the epochs")
    if (world := world_from_env()).size > 1:
        raise ValueError(f"--budget: measures one process, this is rank {world.rank} of {world.size}; give --epochs")


def _within(
    minutes: float,
    choice: "RecipeChoice",
    index: "ShardIndex",
    settings: "TrainSettings",
    views: "ViewRecipe | None",
    shard_cache: Path | None,
    data: "dict[str, Any]",
) -> "RecipeChoice":
    """The choice with as many epochs as a time budget allows, by a measured rate, which is said."""
    from student.learn.rate import images_per_s

    recipe = choice.suited_to(index, views, **data).recipe
    plain = replace(recipe, distill=NONE)
    seconds = min(max(6 * minutes, 1.0), 8.0)  # a tenth of the budget
    views = views or recipe.view_recipe
    rate = images_per_s(plain, index, settings, views=views, shard_cache=shard_cache, seconds=seconds)
    epochs = epochs_within(minutes, rate, index.num_samples)
    say(f"budget: {count(epochs, 'epoch')} in {minutes:g} minutes at {rate:.0f} images/s, measured without validation")
    return choice.with_epochs(epochs)


def _in_the_loop(
    teacher: TeacherFlags, recipe: "StudentRecipe", index: "ShardIndex", settings: "TrainSettings", world: World
) -> "Teacher":
    """The teacher of --online, for the views of a run without a cache."""
    views = recipe.view_recipe
    return teacher.load(views, index, device=settings.device, precision=settings.precision, world=world)
