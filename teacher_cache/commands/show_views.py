"""`show-views`: a contact sheet of what the teacher saw."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import CACHE, FROM_ZERO, PATH, refuse_ignored
from shards.commands.shard_place import ShardPlace, shard_options
from shards.console import result
from shards.own_folder import require_file
from teacher_cache.commands.view_flags import ViewFlags, view_settings
from teacher_cache.store.header import local_header

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex

MOST_VIEWS = 1000
"""Columns of a sheet: each is at least 200 pixels wide."""
SHOWN = 4
"""Samples of a sheet for which none is named."""
_DEFAULT_VIEWS = ViewFlags(views=None, recipe_name=None, size=None, view_seed=0, sets=(), views_per_unit=None)


@click.command("show-views")
@shard_options()
@click.option("--cache", type=CACHE, help="The cache whose views are drawn, with the teacher's likeliest classes.")
@click.option(
    "--view-recipe", "--recipe", "recipe_name",
    help="View recipe without --cache; see `recipes`. Default: what cache-teacher chooses for these images.",
)  # fmt: skip
@click.option("--view-set", "--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field of the view recipe.")
@click.option("--sample", metavar="KEY", help=f"Key of the sample; default: {SHOWN} samples from all over the shards.")
@click.option("--views", "num_views", default=8, type=click.IntRange(1, MOST_VIEWS), help="Views to draw.")
@click.option("--first-view", default=0, type=FROM_ZERO, help="The first of them.")
@click.option("--out", required=True, type=PATH, help="A PNG.")
def show_views(
    shard_place: ShardPlace,
    cache: str | None,
    recipe_name: str | None,
    sets: tuple[str, ...],
    sample: str | None,
    num_views: int,
    first_view: int,
    out: Path,
) -> None:
    """A contact sheet of what the teacher saw: views with parameters, partners and, with --cache, its top classes."""
    from shards.views.view_recipe import recipe_named

    if cache:
        refuse_ignored(["recipe_name", "sets"], "the views are those of --cache")
    require_file("--out", out, ".png")
    recipe = recipe_named(recipe_name or "deit", **view_settings(sets))
    if cache:
        local_header(cache)
    index = shard_place.index()
    if not cache and recipe_name is None and index.image_set.is_small:
        recipe = replace(_DEFAULT_VIEWS.for_set(shard_place, index).recipe(index), **view_settings(sets))
    keys = [sample] if sample is not None else _some_keys(index)
    for key in keys:
        index.find(key)

    from teacher_cache.inspect.sheet import sheet_views, top_classes, write_sheets
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.header import require_index

    views = range(first_view, first_view + num_views)
    with ExitStack() as stack:
        reader, opened = stack.enter_context(shard_place.reader(index)), None
        if cache:
            opened = stack.enter_context(TeacherCache.open(cache))
            require_index(opened.header, index, opened.url)
            index = index.taught(opened.spec.teacher.num_classes, opened.header.class_names)
            if first_view >= opened.num_views:
                raise ValueError(f"--first-view {first_view}: {cache} has the views 0 to {opened.num_views - 1}")
            recipe, views = opened.spec.recipe, range(first_view, min(first_view + num_views, opened.num_views))
        sheets = []
        for key in keys:
            top = top_classes(opened, index, key, views) if opened else None
            columns = sheet_views(reader, recipe, key, views, top)
            sheets.append((f"{key}, recipe {recipe.name}, seed {recipe.seed}", columns))
    write_sheets(out, sheets)
    result(out)


def _some_keys(index: "ShardIndex") -> list[str]:
    """Keys of a few samples, as far from each other as they are."""
    count = min(SHOWN, index.num_samples)
    keys = []
    for n in (index.num_samples * place // count for place in range(count)):
        shard = next(s for s in range(index.num_shards) if n < index.first_S[s + 1])
        keys.append(index.key(shard, n - int(index.first_S[shard])))
    return keys
