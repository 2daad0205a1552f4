"""`cache-teacher`: run the teacher over the views of every image and store its answers (stage 1)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import CACHE, suited_workers, typed_words, workers_option
from shards.commands.shard_place import ShardPlace, beside, fetch_shards, shard_options, val_beside
from shards.own_folder import require_own
from shards.signals import StopRequest
from shards.world import World, require_completions, world_from_env
from teacher_cache.commands.flags import (
    RecordFlags,
    RunsTeacher,
    TeacherFlags,
    record_options,
    runs_teacher_options,
    teacher_options,
)
from teacher_cache.commands.stage1_display import Stage1Display
from teacher_cache.commands.view_flags import ViewFlags, view_options
from teacher_cache.store.header import header_at
from teacher_cache.store.place import Place

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.header import Header


@click.command("cache-teacher")
@shard_options()
@click.option(
    "--cache", required=True, type=CACHE, help="The cache to make, extend or finish: a folder, s3://, gs:// or az://."
)
@teacher_options
@view_options
@record_options
@runs_teacher_options
@workers_option(beside_network=True)
def cache_teacher(
    shard_place: ShardPlace,
    cache: str,
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    execution: RunsTeacher,
    workers: int,
) -> None:
    """Run the teacher once over augmented views of every image and store its answers (stage 1).

    Run the same command again to go on after a kill, or with more --views to extend. Any number of processes may work
    on one cache: under torchrun, as a SLURM array, or started by hand with RANK and WORLD_SIZE.
    """
    index, place = shard_place.index(), Place.parse(cache, writable=True)
    header = header_at(cache)
    views = views.for_set(shard_place, index, header)
    _refuse_early(place, header, index, teacher, views, record, precision=execution.precision)
    world = world_from_env(shared=True)
    from teacher_cache.stage1.build import build_cache
    from teacher_cache.stage1.opening import open_or_create

    teacher.check_published_classes(index)
    existing_spec = None if header is None else header.spec
    recipe = views.recipe(index, existing_spec)
    network = execution.load(teacher, recipe, index, existing_spec, world)
    if existing_spec is None:  # what it calibrates on
        _fetch_share(shard_place, index, world)
    with StopRequest() as stop, shard_place.reader(index) as reader:
        display = Stage1Display(world, stop, index, _student_command(shard_place, cache))
        opening = open_or_create(
            cache,
            index,
            network,
            recipe,
            record.format(network.num_classes, index, recipe, existing_spec),
            num_views=views.num_views,
            reader=reader,
            world=world,
        )
        with display.opened(opening) as opened:
            _fetch_share(shard_place, index, world, opened)
            for done in build_cache(
                opened,
                index,
                network,
                reader=reader,
                world=world,
                workers=suited_workers(workers, network.device.type),
                batch_size=execution.views_per_forward(network, index, recipe),
                should_stop=lambda: stop.told,
            ):
                display.show(done)


def _fetch_share(
    shard_place: ShardPlace, index: "ShardIndex", world: World, cache: "TeacherCache | None" = None
) -> None:
    """Fetch the remote shards that this process begins with: of the missing units of a cache, or of a new one."""
    from shards.index.sources import is_remote
    from teacher_cache.stage1.walk import share

    if any(map(is_remote, index.urls)):
        shards = range(index.num_shards) if cache is None else [shard for _, shard in cache.missing()]
        numbers = sorted(set(share(shards, world.rank, world.size)))
        urls, sizes = [index.urls[n] for n in numbers], [int(index.tar_bytes_S[n]) for n in numbers]
        fetch_shards(urls, sizes, shard_place, world)


def _student_command(shard_place: ShardPlace, cache: str) -> list[str]:
    """The command that trains a first student from the cache."""
    assert shard_place.shards is not None
    words = ["train-student", "--shards", shard_place.shards]
    words += ["--val-shards", val] if (val := val_beside(shard_place.shards)) else []
    out = "student" if "://" in cache else str(beside(Path(cache), "student"))
    words += ["--cache", cache, *map(str, typed_words("shard_cache", "shard_cache_limit", "device"))]
    return [*words, "--out", out]


def _refuse_early(
    place: Place,
    header: "Header | None",
    index: "ShardIndex",
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    *,
    precision: str | None,
) -> None:
    """Refuse what can be refused without importing torch or the teacher.

    Errors:
        ValueError for what was typed, CacheError for an existing cache (with this header) that is for something else.
    """
    from teacher_cache.stage1.agreement import require_known_labels, require_new_cache
    from teacher_cache.store.header import CACHE_FOLDER, require_index
    from teacher_cache.store.spec import require_equal

    require_completions()
    if place.folder is not None:
        require_own("--cache", place.folder, CACHE_FOLDER)
    name = teacher.checked_name()
    teacher.check_known_classes(index)
    if header is None:
        require_known_labels(index, index.num_classes, name)
        recipe = views.recipe(index)
        require_new_cache(index, recipe, views.num_views)
        if index.num_classes:
            record.format(index.num_classes, index, recipe)
        return
    require_index(header, index, place.url)
    spec = header.spec
    recipe = views.recipe(index, spec)
    requested_precision = precision or spec.teacher.precision
    requested_teacher = replace(
        spec.teacher, name=name, precision=requested_precision, input_size=recipe.size, mean=recipe.mean, std=recipe.std
    )
    requested_record = record.format(spec.teacher.num_classes, index, recipe, spec)
    requested = replace(
        spec,
        index_fingerprint=index.fingerprint,
        recipe=recipe,
        record=requested_record,
        teacher=requested_teacher,
    )
    require_equal(requested, spec, place.url)
