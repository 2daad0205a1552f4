"""`show-views`: a contact sheet of what the teacher saw."""

from contextlib import ExitStack
from pathlib import Path

import click

from shards.console import result
from shards.flags import CACHE, PATH, ShardPlace, shard_options
from teacher_cache.commands.flags import view_settings


@click.command("show-views")
@shard_options()
@click.option("--cache", type=CACHE, help="Its recipe, and its record's top classes.")
@click.option("--recipe", "recipe_name", default="deit", show_default=True, help="View recipe, without --cache.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field of the view recipe.")
@click.option("--sample", required=True, metavar="KEY", help="Key of the sample.")
@click.option("--views", "num_views", default=8, show_default=True, type=click.IntRange(1))
@click.option("--first-view", default=0, show_default=True, type=click.IntRange(0))
@click.option("--out", required=True, type=PATH, help="A PNG.")
def show_views(
    place: ShardPlace,
    cache: str | None,
    recipe_name: str,
    sets: tuple[str, ...],
    sample: str,
    num_views: int,
    first_view: int,
    out: Path,
) -> None:
    """A contact sheet of what the teacher saw: views with parameters, partners and, with --cache, its top classes."""
    from shards.views.view_recipe import recipe_named
    from teacher_cache.inspect.sheet import sheet_views, top_classes, write_sheet
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.spec import require_index

    index = place.index()
    views = range(first_view, first_view + num_views)
    with ExitStack() as stack:
        reader = stack.enter_context(place.reader(index))
        top = None
        if cache:
            opened = stack.enter_context(TeacherCache.open(cache))
            require_index(opened.spec, index.fingerprint, opened.url)
            recipe, views = opened.spec.recipe, range(first_view, min(first_view + num_views, opened.num_views))
            top = top_classes(opened, index, *index.find(sample), views)
        else:
            recipe = recipe_named(recipe_name, **view_settings(sets))
        columns = sheet_views(reader, recipe, sample, views, top)
    write_sheet(out, f"{sample}, recipe {recipe.name}, seed {recipe.seed}", columns)
    result(out)
