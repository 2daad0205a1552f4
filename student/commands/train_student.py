"""`train-student`: train a student from shards and a teacher cache (stage 2)."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.commands.flags import COUNT, PATH, SEED, Number, bundled, flag, refuse_ignored, typed_words
from shards.commands.shard_place import ShardPlace, beside, shard_options
from shards.console import say, say_next
from shards.data_defaults import epochs_within
from shards.own_folder import require_own
from shards.text.figures import count, plural
from shards.world import world_from_env
from student.commands.flags import (
    CacheFlags,
    LossFlags,
    StudentFlags,
    TrainingFlags,
    cache_options,
    evaluated,
    loss_options,
    refuse_changes,
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
    from shards.index.shard_index import ShardIndex
    from shards.views.view_recipe import ViewRecipe
    from student.recipe.choice import RecipeChoice
    from student.recipe.settings import TrainSettings
    from student.recipe.student_recipe import StudentRecipe
    from teacher_cache.network.teacher import Teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class TeachingFlags:
    """Who teaches: caches, or with --online a teacher in the loop."""

    cache_flags: CacheFlags
    online: bool
    teacher: TeacherFlags

    def network(self, recipe: "StudentRecipe", index: "ShardIndex", settings: "TrainSettings") -> "Teacher | None":
        """Return the teacher of --online, for the views of a run without a cache; None without it."""
        if not self.online:
            return None
        how: dict[str, Any] = {"precision": settings.precision, "deterministic": settings.deterministic}
        return self.teacher.load(recipe.view_recipe, index, device=settings.device, world=world_from_env(), **how)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFlags:
    """The folder of a run, its seed, and how much of views and time it takes."""

    out: Path = flag("--out", required=True, type=PATH, help="Run directory; an unfinished run goes on.")
    views_used: int | None = flag("--views-used", type=COUNT, help="Use only the first N views of the cache.")
    budget: float | None = flag(
        "--budget",
        type=Number(0, 100_000, min_open=True),
        metavar="MINUTES",
        help="Train as many epochs as fit into this time, by the rate that is measured first.",
    )
    seed: int = flag("--seed", default=0, type=SEED, help="Initial weights, order, drop path.")

    def check(self, choice: "RecipeChoice") -> None:
        """Refuse --out and flags that do not fit what exists there; say that a budget changes nothing in it.

        Raises:
            ValueError: the folder holds something else; a budget beside a number of epochs, or one that every rank
                would measure for itself. RunError: it is a run that was begun with other values.
        """
        from student.recipe.choice import Changed

        require_own("--out", self.out, RUN_FOLDER)
        before, old, new = recipe_before(self.out), views_before(self.out), self.views_used
        views = [Changed("num_views", old, new, ("views_used",))] if old and new and old != new else []
        refuse_changes(self.out, (*choice.changes(before), *views))
        if self.budget is None:
            return
        if "epochs" in choice.fields:
            raise ValueError("--budget: chooses the number of epochs; drop it, or drop the epochs")
        if before:
            say(f"--budget: {self.out} keeps its {count(before['epochs'], 'epoch')}; another --out is planned anew")
        if (world := world_from_env()).size > 1:
            raise ValueError(f"--budget: measures one process, got {world.size} ranks; give --epochs")


@click.command("train-student")
@shard_options()
@click.option("--val-shards", help="Shards to evaluate on.")
@cache_options(
    help="The teacher cache; again for more teachers of the same views. Without it: --distill none, or --online."
)
@loss_options
@student_options
@click.option("--online", is_flag=True, help="Run the teacher in the loop instead of reading a cache.")
@teacher_options
@bundled(RunFlags, "run")
@training_options
@bundled(TeachingFlags, "who")
def train_student(
    shard_place: ShardPlace,
    val_shards: str | None,
    who: TeachingFlags,
    run: RunFlags,
    loss: LossFlags,
    student: StudentFlags,
    training: TrainingFlags,
) -> None:
    """Train a DeiT student from shards and a teacher cache: any λ, any τ, hard or soft.

    Run the same command again to go on after a kill. Under torchrun every process is one rank.
    """
    index = shard_place.index()
    val_index = shard_place.labelled(val_shards, "--val-shards", "validation") if val_shards else None
    world = world_from_env()
    out, before = run.out, recipe_before(run.out)
    data: dict[str, Any] = {"parts": world.size * training.accumulate, "before": before}
    choice = student.choice(combine=who.cache_flags.combine, **asdict(loss))
    run.check(choice)
    choice = choice.for_set(shard_place.survey(index), before)
    _check(choice, who, index, run)
    _check_steps(choice, index, who.cache_flags, run.views_used or views_before(out), data)
    from student.feed.teaching import Teaching
    from student.run.loop import train_many
    from student.run.students import StudentJob

    settings = training.settings(seed=run.seed, run_precision=precision_before(out), quiet=is_finished(out))
    with ExitStack() as stack:
        caches = who.cache_flags.open(stack, index)
        views, fewest = caches[0].spec.recipe if caches else None, min((c.num_views for c in caches), default=None)
        if not is_finished(out):
            shard_place.fetch(world, index, val_index)
        views_used = run.views_used or views_to_keep(out, views_before(out), fewest)
        if run.budget is not None and not before:
            choice = _within(run.budget, choice, index, settings, views, shard_place.shard_cache, data)
        recipe, reasons = choice.suited_to(index, views, num_views=[views_used or fewest], **data)
        teaching = Teaching.of(caches or None, who.network(recipe, index, settings), who.cache_flags.weights)
        display = TrainingDisplay(quiet=world.rank > 0, more_views=more_views(caches, shard_place))
        display.explain(reasons, who.cache_flags.words(recipe.combine))
        for event in train_many(
            [StudentJob(recipe, out)],
            index,
            settings=evaluated(replace(settings, views_used=views_used), recipe.epochs, index),
            teaching=teaching,
            val_index=val_index,
            shard_cache_dir=shard_place.shard_cache,
            world=world,
        ):
            display.show(event)
        display.close()
    say_after_training(out, val_shards)


def say_after_training(out: Path, val_shards: str | None) -> None:
    """Say what a finished run is good for; on the first rank."""
    if world_from_env().rank > 0:
        return
    where = typed_words("shard_cache", "shard_cache_limit", "device")
    evaluate = [["evaluate", "--shards", val_shards, "--weights", out, *where]] if val_shards else []
    export = ["export", out, beside(out, f"{out.resolve().name}-export")]
    say_next(["report", out], *evaluate, ["predict", "PHOTO", "--weights", out], export)


def _check(choice: "RecipeChoice", who: TeachingFlags, index: "ShardIndex", run: RunFlags) -> None:
    """Refuse what the command could not do or would ignore, as far as that is known without torch.

    Raises:
        ValueError: for what was typed. CacheError: for a missing cache.
    """
    cache_flags, online, views_used = who.cache_flags, who.online, run.views_used
    if cache_flags.caches and online:
        raise ValueError("--online: runs the teacher in the loop; drop it, or drop --cache")
    if online:
        who.teacher.check_known_classes(index)
    else:
        refuse_ignored([field.name for field in fields(TeacherFlags)], "no teacher runs without --online")
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
    from student.cost.rate import images_per_s

    recipe = choice.suited_to(index, views, **data).recipe
    plain = replace(recipe, distill=NONE)
    seconds = min(max(6 * minutes, 1.0), 8.0)  # a tenth of the budget
    views = views or recipe.view_recipe
    rate = images_per_s(plain, index, settings, views=views, shard_cache=shard_cache, seconds=seconds)
    epochs = epochs_within(minutes, rate, index.num_samples)
    say(
        f"budget: {count(epochs, 'epoch')} in {minutes:g} {plural(minutes, 'minute')} at {rate:.3g} images/s, measured "
        "without validation"
    )
    return choice.with_epochs(epochs)
