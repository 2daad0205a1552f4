"""Check before step 0 that caches, shards, machine and students fit each other (laws 1, 5 and 6)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.errors import CacheError
from shards.index.shard_index import ShardIndex
from shards.text.figures import count
from shards.views.reference import parts_differing_here
from shards.views.view_recipe import ViewRecipe
from student.feed.order import Order
from student.learn.losses.table import LOSSES
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.teacher import Teacher
from teacher_cache.stage1.agreement import require_fitted
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.header import require_index
from teacher_cache.store.libraries import rendering_remedy


class Views(NamedTuple):
    """The views of a pass: their recipe, and how many of them are cycled through (None: without end)."""

    recipe: ViewRecipe
    num_views: int | None


def views_of_caches(caches: Sequence[TeacherCache], index: ShardIndex, *, views_used: int | None) -> Views:
    """Return the views of caches that fit index and machine, and each other where there are several.

    Raises:
        CacheError: one was made from other shards, renders other pixels here, or has other classes; two have other
            views.
        ValueError: `views_used` is more than one of them holds, or they hold different numbers of views.
    """
    for cache in caches:
        _require_fit(cache, index)
    first = caches[0]
    for other in caches[1:]:
        _require_same_views(first, other)
    for cache in caches if len(caches) > 1 else ():
        if not cache.spec.record.entry.soft:
            raise ValueError(
                f"cache: {cache.url} holds hard labels only; teachers that teach together need probabilities: give it "
                "alone, or make a cache that keeps them (record kind lowrank)"
            )
    fewest = min(caches, key=lambda cache: cache.num_views)
    most = max(caches, key=lambda cache: cache.num_views)
    if views_used is not None and views_used > fewest.num_views:
        raise ValueError(
            f"views_used: {fewest.url} holds {count(fewest.num_views, 'view')}, got {views_used}; ask for fewer, or "
            f"grow it with cache-teacher --views {views_used}"
        )
    if views_used is None and most.num_views != fewest.num_views:
        raise ValueError(
            f"views_used: {most.url} holds {count(most.num_views, 'view')} and {fewest.url} {fewest.num_views}; say "
            f"how many of both to use (at most {fewest.num_views}), or grow the second with cache-teacher --views "
            f"{most.num_views}"
        )
    return Views(first.spec.recipe, views_used or int(fewest.num_views))


def views_without_cache(
    recipe: ViewRecipe, index: ShardIndex, teachers: Sequence[Teacher], *, views_used: int | None
) -> Views:
    """Return the views of a run without a cache; ValueError when a teacher in the loop does not fit them.

    Without `views_used` the views never end; with it the first ones are cycled through, as those of a cache.
    """
    if views_used is not None and views_used < 1:
        raise ValueError(f"views_used: expected at least 1, got {views_used}")
    for teacher in teachers:
        spec = teacher.spec
        for name, expected, got in (
            ("input size", recipe.size, spec.input_size),
            ("mean", tuple(recipe.mean), tuple(spec.mean)),
            ("std", tuple(recipe.std), tuple(spec.std)),
        ):
            if expected != got:
                raise ValueError(f"teacher {spec.name}: {name} of the views is {expected}, the teacher wants {got}")
        require_fitted(teacher, index)
    return Views(recipe, views_used)


def require_student(recipe: StudentRecipe, views: Views, caches: Sequence[TeacherCache]) -> None:
    """Raise ValueError when views or caches lack what a student needs."""
    where, size = caches[0].url if caches else "this run", views.recipe.size
    if recipe.image_size != size:
        raise ValueError(
            f"image_size: the views of {where} are {size} pixels wide, got {recipe.image_size} for {recipe.model}; "
            f"set image_size={size}, or make a cache at {recipe.image_size}"
        )
    loss = LOSSES.get(recipe.distill)
    for cache in caches:
        if loss is not None and loss.needs_probabilities and not cache.spec.record.entry.soft:
            raise ValueError(
                f"distill: {cache.url} holds hard labels only, got {recipe.distill}; train with hard, or make "
                "a cache that keeps probabilities (record kind lowrank)"
            )


def require_units(cache: TeacherCache, order: Order) -> None:
    """Raise CacheError unless the ledger has every unit that the epochs of an order read."""
    cycle = order.cycle
    assert cycle is not None, "the views of a cache end"
    needed = order.view_blocks(cycle)
    ledger_BS = cache.ledger()
    missing = np.argwhere(ledger_BS[needed] == 0)
    if len(missing):
        first_block, first_shard = needed[int(missing[0][0])], int(missing[0][1])
        first_view = first_block * cache.views_per_unit
        raise CacheError(
            f"{cache.url}: {len(missing)} of {count(len(needed) * cache.num_shards, 'chunk')} for "
            f"{count(cycle, 'epoch')} are missing, the first is views "
            f"{first_view}–{first_view + cache.views_per_unit - 1} of shard "
            f"{cache.header.shard_names[first_shard]}; run cache-teacher again to finish it, or train on fewer views"
        )


def _require_fit(cache: TeacherCache, index: ShardIndex) -> None:
    spec = cache.spec
    require_index(cache.header, index, cache.url)
    if spec.record.num_classes != index.num_classes:
        raise CacheError(
            f"{cache.url}: its teacher knows {count(spec.record.num_classes, 'class')}, the shards have "
            f"{index.num_classes}; the class order of teacher and labels must be the same"
        )
    differ = parts_differing_here(spec.behaviour, spec.recipe)
    if differ:
        raise CacheError(
            f"{cache.url}: this machine renders other pixels than the one that made it, in: {', '.join(differ)}; "
            f"{rendering_remedy(cache.header.made_with)}"
        )


def _require_same_views(first: TeacherCache, other: TeacherCache) -> None:
    """Raise CacheError when two caches have other pixels; the name of a recipe is no difference."""
    ours, theirs = first.spec.recipe.to_json(), other.spec.recipe.to_json()
    names = sorted(name for name in {*ours, *theirs} - {"name"} if ours.get(name) != theirs.get(name))
    if names:
        differences = ", ".join(f"{name}: expected {ours.get(name)!r}, got {theirs.get(name)!r}" for name in names)
        raise CacheError(
            f"{other.url}: its teacher saw other views than that of {first.url}: {differences}; caches that teach "
            "together have one view recipe: make it again with the recipe of the first"
        )
