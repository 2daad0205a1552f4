"""`ablate`: train a λ × τ map of students from one or several caches."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import COUNT, PATH, SEED, bundled, flag, given_flag, refuse_ignored, stop_with
from shards.commands.shard_place import ShardPlace, shard_options
from shards.console import say, say_next
from shards.own_folder import require_own
from shards.text.figures import count
from shards.world import World, require_completions, world_from_env, world_variables
from student.commands.flags import (
    CacheFlags,
    StudentFlags,
    TrainingFlags,
    cache_options,
    evaluated,
    integers,
    numbers,
    refuse_changes,
    require_start,
    student_options,
    training_options,
)
from student.commands.training_display import SweepDisplay, more_views, views_to_keep
from student.learn.losses.table import LOSSES
from student.sweep.sweep_directory import SWEEP_FOLDER, precision_of_sweep, recipe_of_sweep, views_of_sweep

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from student.recipe.choice import RecipeChoice
    from student.recipe.suited import Suited
    from student.sweep.cell_training import SweepTraining
    from student.sweep.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class GridFlags:
    """The axes of the grid, as typed."""

    teachers: str | None = flag(
        "--teachers",
        metavar="A,B,A+B",
        help="Sets of caches, named after their files; default: all of them.",
    )
    weights: str = flag("--lambda", default="0,0.1,0.5,0.9", help="Values of λ; 0 is the baseline.")
    temperatures: str = flag("--tau", default="1,2,4,8", help="Values of τ; hard cells ignore it.")
    distillations: str = flag("--distill", default="hard,soft", help=f"Among {', '.join(LOSSES)}.")
    seeds: int = flag("--seeds", default=1, type=click.IntRange(1, 10_000), help="Students per cell.")
    first_seed: int = flag("--first-seed", default=0, type=SEED, help="Seed of the first student of a cell.")
    views_used: str | None = flag(
        "--views-used",
        help="Numbers of views to cycle through, such as 6,30,300; default: all of the cache.",
    )

    @property
    def lambdas(self) -> tuple[float, ...]:
        """The values of λ; ValueError for what is no list of numbers."""
        return numbers("--lambda", self.weights)

    def grid(self, weights: tuple[float, ...]) -> "Grid":
        """Return the grid of these values of λ; ValueError for what is no list of values."""
        from student.sweep.grid import Grid

        return Grid(
            weights=weights,
            temperatures=numbers("--tau", self.temperatures),
            distillations=tuple(word.strip() for word in self.distillations.split(",")),
            seeds=tuple(range(self.first_seed, self.first_seed + self.seeds)),
            views_used=integers("--views-used", self.views_used) if self.views_used else (None,),
            teachers=tuple(word.strip() for word in self.teachers.split(",")) if self.teachers else ("",),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassFlags:
    """How the cells are shared out, over passes and processes."""

    together: int = flag("--together", default=1, type=COUNT, help="Students per pass over the data.")
    spread: bool = flag(
        "--spread", is_flag=True, help="Under torchrun: each process takes its own cells, each cell on one device."
    )
    skip_memory_check: bool = flag(
        "--skip-memory-check", is_flag=True, help="Start also what does not seem to fit into memory."
    )


@click.command("ablate")
@shard_options()
@click.option("--val-shards", required=True, help="Shards to evaluate on.")
@cache_options(required=True, help="The teacher cache; again for more teachers of the same views.")
@bundled(GridFlags, "grid_flags")
@bundled(PassFlags, "passes")
@click.option("--out", required=True, type=PATH, help="Sweep directory; what is missing is trained.")
@student_options
@training_options
def ablate(
    shard_place: ShardPlace,
    val_shards: str,
    cache_flags: CacheFlags,
    grid_flags: GridFlags,
    passes: PassFlags,
    out: Path,
    student: StudentFlags,
    training: TrainingFlags,
) -> None:
    """Train a λ × τ map of students from one cache; run it again to resume, to retry what failed, or to add cells.

    With several caches --teachers makes a map for each set of them: --cache a.zarr --cache b.zarr --teachers a,b,a+b.
    """
    world, lambdas = _world(passes.spread), grid_flags.lambdas
    index, val_index = shard_place.index(), shard_place.labelled(val_shards, "--val-shards", "validation")
    grid = grid_flags.grid(_weights(lambdas, index))
    choice = student.choice(combine=cache_flags.combine).for_set(shard_place.survey(index), recipe_of_sweep(out))
    suit = _checked_steps(choice, index, cache_flags, grid, training.accumulate, out)
    from student.sweep.cell_training import SweepTraining
    from student.sweep.sweep_teachers import SweepTeachers

    with ExitStack() as stack:
        opened = SweepTeachers.of(cache_flags.open(stack, index), cache_flags.weights)
        of_all = views_to_keep(out, views_of_sweep(out), opened.num_views)
        recipe, reasons = suit(opened.first.spec.recipe, num_views=_views(grid, of_all or opened.num_views))
        settings = training.settings(run_precision=precision_of_sweep(out), views_used=of_all)
        sweep = SweepTraining(
            recipe=recipe,
            settings=evaluated(settings, recipe.epochs, index),
            index=opened.teaching("").with_classes(index),
            teachers=opened,
            val_index=val_index,
            shard_cache_dir=shard_place.shard_cache,
            world=world,
        )
        for warning in sweep.check(grid, together=passes.together, anyway=passes.skip_memory_check):
            say(f"warning: {warning}")
        _run(shard_place, out, grid, sweep, passes.together, reasons)


def _weights(lambdas: tuple[float, ...], index: "ShardIndex") -> tuple[float, ...]:
    """The values of λ; where no image has a label, 1 alone makes sense, and is the default.

    Raises:
        ValueError: for another λ without labels.
    """
    if index.num_unlabelled < index.num_samples:
        return lambdas
    if given_flag("weights") and lambdas != (1.0,):
        got = ",".join(f"{value:g}" for value in lambdas)
        raise ValueError(
            f"--lambda: no training image has a label, so all of the loss is the teacher's: expected 1, got {got}; "
            "leave it out"
        )
    return (1.0,)


def _check(choice: "RecipeChoice", cache_flags: CacheFlags, distillations: Sequence[str], out: Path) -> None:
    """Refuse what the cells could not do or would ignore, as far as that is known without torch."""
    refuse_changes(out, choice.changes(recipe_of_sweep(out)))
    for key, name in (("distill", "--distill"), ("distill_weight", "--lambda"), ("temperature", "--tau")):
        if key in choice.fields:
            raise ValueError(f"{key}: would be ignored in --set or --config: each cell has its own; give {name}")
    if not any(LOSSES[name].uses_temperature for name in distillations if name in LOSSES):
        refuse_ignored(["temperatures"], f"--distill {','.join(distillations)} does not read τ")
    for header in list(cache_flags.headers().values())[:1]:
        require_start(choice.recipe(header.spec.recipe))
    require_own("--out", out, SWEEP_FOLDER)


def _checked_steps(
    choice: "RecipeChoice", index: "ShardIndex", cache_flags: CacheFlags, grid: "Grid", parts: int, out: Path
) -> "Callable[..., Suited]":
    """Return what gives the recipe for the views of a cache; where caches lie on local disks, ask it once now.

    Raises:
        ValueError: what the cells would ignore; numbers that do not fit each other or the data.
    """
    _check(choice, cache_flags, grid.distillations, out)
    suit = partial(choice.suited_to, index, parts=parts, before=recipe_of_sweep(out))
    if headers := list(cache_flags.headers().values()):
        num_views = views_of_sweep(out) or min(header.num_views for header in headers)
        suit(headers[0].spec.recipe, num_views=_views(grid, num_views))
    return suit


def _views(grid: "Grid", num_views: int) -> list[int]:
    """Return the views that each number of the grid cycles through; all of the caches where it names none."""
    return [views or num_views for views in grid.views_used]


def _world(spread: bool) -> World:
    """Return rank and size; ValueError for one of several processes that were not told to share the cells."""
    if spread:
        require_completions()
    world = world_from_env(shared=spread)
    if world.size > 1 and not spread:
        raise ValueError(
            f"ablate: one of {count(world.size, 'process')} ({world_variables()}): give --spread, which shares the "
            "cells out, each to one device; or start one process"
        )
    return world


def _run(
    shard_place: ShardPlace,
    out: Path,
    grid: "Grid",
    sweep: "SweepTraining",
    together: int,
    reasons: tuple[str, ...],
) -> None:
    """Run the sweep and draw it; exits with 1 when cells have failed, with the trainer's code when it was stopped."""
    from student.sweep.cell_training import sweep_facts
    from student.sweep.sweep_loop import CellProgress, run_sweep

    world = sweep.world
    shard_place.fetch(world, sweep.index, sweep.val_index)
    extend = more_views(tuple(sweep.teachers.caches.values()), shard_place)
    display = SweepDisplay(out, together=together, processes=world.size, quiet=world.rank > 0, more_views=extend)
    display.explain(reasons)
    facts = sweep_facts(sweep.teachers, grid.temperatures, distillations=grid.distillations, recipe=sweep.recipe)
    num_failed = num_left = 0
    for event in run_sweep(out, grid, sweep.train, common=sweep.common(), facts=facts, together=together, world=world):
        display.show(event)
        if not isinstance(event, CellProgress):
            num_failed, num_done = event.tally.num_failed, event.tally.num_done
            num_left = event.tally.num_total - num_done - num_failed
    if num_failed:
        raise stop_with(1)
    if world.rank == 0:
        say_report(out, num_left)


def say_report(out: Path, num_left: int) -> None:
    """Print the command that shows the sweep, and first how many cells other processes still train."""
    if num_left:
        say(f"other processes still train {count(num_left, 'cell')}; wait for them before you report")
    say_next(["report", out])
