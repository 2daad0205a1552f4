"""Does this cache fit this run? Everything that can be known before step 0 is asked before step 0 (laws 1, 5 and 6)."""

from typing import NamedTuple

import numpy as np

from shards.errors import CacheError
from shards.index.shard_index import ShardIndex
from shards.views.behaviour import behaviour_difference, behaviour_like
from shards.views.view_recipe import ViewRecipe
from student.feed.epoch_plan import needed_view_blocks
from student.learn.losses.table import LOSSES, NONE
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.teacher import Teacher
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import require_index


class Views(NamedTuple):
    """What the students of a pass look at: the view recipe, and how many views they cycle through (None: endless)."""

    recipe: ViewRecipe
    num_views: int | None


def views_of_cache(
    cache: TeacherCache, index: ShardIndex, recipes: list[StudentRecipe], *, views_used: int | None
) -> Views:
    """The views of a cache that fits index, machine and students.

    Raises:
        CacheError: it was made from other shards, renders other pixels here, has other classes, or lacks units that
            the schedule needs.
        ValueError: a student asks for what the cache cannot give (another image size, soft loss from hard records,
            more views).
    """
    spec = cache.spec
    require_index(spec, index.fingerprint, cache.url)
    if spec.record.num_classes != index.num_classes:
        raise CacheError(
            f"{cache.url}: its teacher knows {spec.record.num_classes} classes, the shards have {index.num_classes}; "
            "the class order of teacher and labels must be the same"
        )
    differ = behaviour_difference(spec.behaviour, behaviour_like(spec.behaviour, spec.recipe))
    if differ:
        raise CacheError(
            f"{cache.url}: this machine renders other pixels than the one that made it, in: {', '.join(differ)}; "
            f"install the library versions the cache was made with ({cache.made_with}), or make it here"
        )
    num_views = _num_views(cache, views_used)
    for recipe in recipes:
        if recipe.image_size != spec.recipe.size:
            raise ValueError(
                f"image_size: the views of {cache.url} are {spec.recipe.size} pixels wide, got {recipe.image_size} "
                f"for {recipe.model}; set image_size={spec.recipe.size}, or make a cache at {recipe.image_size}"
            )
        loss = LOSSES.get(recipe.distill)
        if loss is not None and loss.needs_probabilities and not spec.record.entry.soft:
            raise ValueError(
                f"distill: {cache.url} holds hard labels only, got {recipe.distill}; train with hard, or make "
                "a cache that keeps probabilities (record kind lowrank)"
            )
        _require_units(cache, recipe, num_views)
    return Views(spec.recipe, num_views)


def views_without_cache(
    recipes: list[StudentRecipe], teacher: Teacher | None, views: ViewRecipe | None, *, views_used: int | None
) -> Views:
    """The views of a run without a cache: those given, else the recipe's own; ValueError when they do not fit.

    Without `views_used` they never end; with it they are cycled through, as a cache of so many views would.
    """
    chosen = views or recipes[0].view_recipe
    for recipe in recipes:
        if recipe.image_size != chosen.size:
            raise ValueError(f"image_size: the views are {chosen.size} pixels wide, got {recipe.image_size}")
        if recipe.distill != NONE and teacher is None:
            raise ValueError(f"distill: {recipe.distill} needs a teacher; give --cache, or --online with --teacher")
    if teacher is not None:
        spec = teacher.spec
        for name, expected, got in (
            ("input size", chosen.size, spec.input_size),
            ("mean", tuple(chosen.mean), tuple(spec.mean)),
            ("std", tuple(chosen.std), tuple(spec.std)),
        ):
            if expected != got:
                raise ValueError(f"teacher {spec.name}: {name} of the views is {expected}, the teacher wants {got}")
    return Views(chosen, views_used)


def _num_views(cache: TeacherCache, views_used: int | None) -> int:
    if views_used is not None and views_used > cache.num_views:
        raise ValueError(
            f"views_used: {cache.url} holds {cache.num_views} views, got {views_used}; ask for fewer, or grow it "
            f"with cache-teacher --views {views_used}"
        )
    return views_used or int(cache.num_views)


def _require_units(cache: TeacherCache, recipe: StudentRecipe, num_views: int) -> None:
    """CacheError unless the ledger has every unit that the schedule reads."""
    needed = needed_view_blocks(
        recipe.epochs, recipe=cache.spec.recipe, repeats=recipe.repeats, num_views=num_views
    )
    ledger_BS = cache.ledger()
    absent = np.argwhere(ledger_BS[needed] == 0)
    if len(absent):
        first_block, first_shard = needed[int(absent[0][0])], int(absent[0][1])
        first_view = first_block * cache.views_per_unit
        raise CacheError(
            f"{cache.url}: {len(absent)} of {len(needed) * cache.num_shards} units that {recipe.epochs} epochs need "
            f"are not there, the first is views {first_view}–{first_view + cache.views_per_unit - 1} of shard "
            f"{cache.shard_names[first_shard]}; run cache-teacher again to finish it, or train on fewer views"
        )
