"""What a training can refuse before anything heavy is imported: flags, names, paths, combinations, the wrong cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.flags import given_flag, refuse_ignored
from shards.own_folder import require_own
from shards.world import World, world_variables
from student.commands.flags import CacheFlags, StudentFlags
from student.learn.losses.table import LOSSES, NONE
from teacher_cache.store.glance import local_header
from teacher_cache.store.place import require_distinct

if TYPE_CHECKING:
    from student.recipe.student_recipe import StudentRecipe
    from teacher_cache.store.header import Header

_TEACHER = ("teacher", "teacher_weights", "teacher_args", "teacher_mean", "teacher_std")


def check_run(
    student: StudentFlags,
    out: Path,
    *,
    taught: CacheFlags,
    online: bool,
    loss: Mapping[str, Any],
    views_used: int | None,
) -> None:
    """Refuse what `train-student` could not do or would ignore, as far as that is known without torch.

    Args:
        out: the run's directory. taught: the caches. loss: --distill, --lambda and --tau; None where not given.
        views_used: --views-used.

    Errors:
        ValueError for what was typed, CacheError for a cache that is not there.
    """
    from student.run.run_files import RUN_FOLDER

    if taught.caches and online:
        raise ValueError("--online: runs the teacher in the loop; drop it, or drop --cache")
    if not online:
        refuse_ignored(_TEACHER, "no teacher runs without --online")
    local = _local_caches(taught)
    headers = list(local.values())
    for url, header in local.items():
        if views_used is not None and views_used > header.num_views:
            raise ValueError(f"--views-used: expected at most {header.num_views}, what {url} holds, got {views_used}")
    if not taught.caches or headers:
        recipe = student.recipe_for(headers[0].spec.recipe if headers else None, combine=taught.combine, **loss)
        _check_loss(recipe, taught=bool(taught.caches) or online, typed=loss)
        _check_start(recipe)
    check_model(student)
    require_own("--out", out, RUN_FOLDER)


def check_sweep(student: StudentFlags, out: Path, *, taught: CacheFlags, distillations: Sequence[str]) -> None:
    """The same for `ablate`, whose cells decide loss, λ and τ."""
    from student.sweep.sweep_directory import SWEEP_FOLDER

    for key, flag in (("distill", "--distill"), ("distill_weight", "--lambda"), ("temperature", "--tau")):
        if key in student.given():
            raise ValueError(f"{key}: would be ignored in --set or --config: each cell has its own; give {flag}")
    if not any(LOSSES[name].uses_temperature for name in distillations if name in LOSSES):
        refuse_ignored(["temperatures"], f"--distill {','.join(distillations)} does not read τ")
    for header in list(_local_caches(taught).values())[:1]:
        _check_start(student.recipe_for(header.spec.recipe, combine=taught.combine))
    check_model(student)
    require_own("--out", out, SWEEP_FOLDER)


def require_spread(world: World, spread: bool) -> None:
    """ValueError for one of several processes that were not told to share the cells."""
    if world.size > 1 and not spread:
        raise ValueError(
            f"ablate: this is rank {world.rank} of {world.size} ({world_variables()}): give --spread, which shares the "
            "cells out, each to one device; or start one process"
        )


def _local_caches(taught: CacheFlags) -> "dict[str, Header]":
    """What the caches on local disks say, by place; ValueError for flags that one cache has no use for."""
    if len(taught.caches) < 2:
        refuse_ignored(["teacher_weight", "combine", "teachers"], "they are for several caches")
    require_distinct(taught.caches)
    _ = taught.weights  # reads the numbers
    return {url: header for url in taught.caches if (header := local_header(url)) is not None}


def check_model(student: StudentFlags) -> None:
    """ValueError for a model that neither the table of students nor timm can know."""
    from student.recipe.zoo import model_entry
    from teacher_cache.network.teacher_name import require_known

    if model_entry(student.model) is None:
        require_known("--model", student.model)
    if student.recipe is not None and given_flag("stage"):
        raise ValueError("--stage: would be ignored: --recipe names the recipe of a stage; drop one of them")


def _check_loss(recipe: "StudentRecipe", *, taught: bool, typed: Mapping[str, Any]) -> None:
    """λ and τ that no loss reads, and a loss without a teacher."""
    if recipe.distill == NONE:
        if taught and not given_flag("cache") and not given_flag("caches"):
            raise ValueError("--online: would be ignored: --distill none has no teacher; drop one of them")
        refuse_ignored(["distill_weight", "temperature"], "without distillation (--distill none) nothing reads it")
        return
    if not taught:
        raise ValueError(f"--distill {recipe.distill}: needs a teacher; give --cache, or --online with --teacher")
    if not LOSSES[recipe.distill].uses_temperature:
        refuse_ignored(["temperature"], f"{recipe.distill} distillation does not read τ")


def _check_start(recipe: "StudentRecipe") -> None:
    """The weights that fine-tuning starts from."""
    from student.recipe.student_recipe import PUBLISHED
    from teacher_cache.network.teacher_name import require_known

    if recipe.finetune and not recipe.init_weights:
        raise ValueError(
            f"init_weights: recipe {recipe.name!r} fine-tunes; give the weights with --set init_weights=FILE, "
            "or train from scratch with --set finetune=false"
        )
    scheme, _, name = recipe.init_weights.partition(":")
    if scheme == PUBLISHED:
        require_known("init_weights", name)
    elif recipe.init_weights and not Path(recipe.init_weights).is_file():
        raise ValueError(
            f"init_weights: {recipe.init_weights}: no such file; give a .safetensors or torch file, or {PUBLISHED}:NAME"
        )
