"""What stage 1 can refuse before anything heavy is imported: flags, names, paths, and a cache that is there already."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import ArtefactError
from shards.own_folder import require_own
from teacher_cache.commands.flags import RecordFlags, TeacherFlags, ViewFlags

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex


def check_cache(
    cache: str,
    index: "ShardIndex",
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    *,
    precision: str | None,
) -> None:
    """Refuse what `cache-teacher` could not do, as far as that is known without the teacher.

    Errors:
        ValueError for what was typed, CacheError for a cache that is there and is for something else.
    """
    from teacher_cache.stage1.agreement import require_known_labels
    from teacher_cache.store.glance import CACHE_FOLDER, header_at
    from teacher_cache.store.header import require_index
    from teacher_cache.store.place import Place
    from teacher_cache.store.spec import require_equal

    place = Place.parse(cache, writable=True)
    if place.folder is not None:
        require_own("--cache", place.folder, CACHE_FOLDER)
    name = teacher.checked_name()
    header = header_at(cache)
    if header is None:
        require_known_labels(index, index.num_classes, name)
        if place.folder is not None:
            check_new_cache(index, views, record)
        return
    require_index(header, index, place.url)
    spec = header.spec
    recipe = views.recipe(index, spec)
    typed = precision or spec.teacher.precision
    network = replace(
        spec.teacher, name=name, precision=typed, input_size=recipe.size, mean=recipe.mean, std=recipe.std
    )
    kept = record.format(spec.teacher.num_classes, index, recipe, spec)
    asked = replace(spec, index_fingerprint=index.fingerprint, recipe=recipe, record=kept, teacher=network)
    require_equal(asked, spec, place.url)


def check_new_cache(index: "ShardIndex", views: ViewFlags, record: RecordFlags) -> None:
    """Refuse views and a record that cannot be, for shards of so many classes; ValueError."""
    from shards.index.index_checks import require_classes
    from teacher_cache.store.header import require_whole_units

    require_classes(index.path or "shards", index.class_names, index.num_classes)
    recipe = views.recipe(index)
    largest = int(max(index.rows_S))
    if largest < recipe.block_size:
        raise ValueError(
            f"--set block_size={recipe.block_size}: no shard holds so many samples (the largest has {largest}), so no "
            f"student could be trained from the cache; give at most {largest}, or leave it out"
        )
    require_whole_units(recipe, views.num_views)
    record.format(index.num_classes, index, recipe)


def check_weights(flag: str, path: Path) -> Path:
    """The file of weights that a path stands for, itself or in a folder; ArtefactError when it is missing."""
    from teacher_cache.network.weights_metadata import weights_file

    try:
        file = weights_file(path)
    except ArtefactError as error:
        raise ArtefactError(f"{flag}: {error}") from None
    if not file.is_file():
        raise ArtefactError(f"{flag} {path}: no such file; give a .safetensors or torch file of weights, or a run")
    return file
