"""Write the command that gives an existing cache more views, with every flag that it needs."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from shards.data_defaults import SMALL_VIEW
from shards.errors import ArtefactError
from teacher_cache.network.teacher_name import LITE0, is_own, split_name
from teacher_cache.network.weights_metadata import BEST_WEIGHTS, trained_as

if TYPE_CHECKING:
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.store.header import Header

_KEPT = ("name", "size", "seed", "block_size", "block_views", "versions")
"""Fields of a view recipe that have a flag of their own, or are as in the existing cache."""


def extending(cache: str, header: "Header", shards: str, num_views: int) -> list[object]:
    """Return the words of `cache-teacher` by which a cache gets `num_views` views of each image.

    Where its teacher's weights came from a file, that is the run of `train-teacher` beside the cache, or WEIGHTS stands
    in its place: a cache knows the weights' digest, not their path.
    """
    words: list[object] = ["cache-teacher", "--shards", shards, *_teacher(cache, header)]
    words += [*_views(header), *_record(header.spec.record)]
    return [*words, "--views", num_views, "--cache", cache]


def _teacher(cache: str, header: "Header") -> Iterator[object]:
    name, arguments = split_name(header.spec.teacher.name)
    beside = Path(cache).with_suffix("")
    known = None
    if "://" not in cache and beside.is_dir():
        with suppress(ArtefactError, OSError):  # what lies beside a cache may be damaged or unreadable
            known = trained_as(beside)
    if known is not None and known.model == name:
        yield from ("--teacher-weights", _weights(beside, header))
        return
    yield from ("--teacher", name)
    for key, value in arguments.items():
        yield from ("--teacher-arg", f"{key}={json.dumps(value)}")
    if "." not in name and name != LITE0 and not is_own(name):
        yield from ("--teacher-weights", "WEIGHTS")


def _weights(run: Path, header: "Header") -> Path:
    """The folder of the teacher's run, or its file where it holds the weights of two epochs."""
    if not (run / BEST_WEIGHTS).is_file():
        return run
    from teacher_cache.network.teacher import weights_of_cache

    return weights_of_cache(run, header.spec.teacher)


def _views(header: "Header") -> Iterator[object]:
    from shards.views.view_recipe import RECIPES, fitting_block_size, recipe_named

    recipe = header.spec.recipe
    name = recipe.name if recipe.name in RECIPES else "deit"  # Python may call its recipe otherwise: no pixel depends
    usual = recipe_named(name, versions=recipe.versions)
    small = name == SMALL_VIEW
    if not small and name != "deit":
        yield from ("--view-recipe", name)
    if not small and recipe.size != usual.size:
        yield from ("--size", recipe.size)
    if recipe.seed:
        yield from ("--view-seed", recipe.seed)
    untouched = (*_KEPT, "flip") if small else _KEPT
    changed = [field.name for field in fields(recipe) if field.name not in untouched]
    changed = [name for name in changed if getattr(recipe, name) != getattr(usual, name)]
    if recipe.block_size != fitting_block_size(usual.block_size, header.rows_S.tolist()):
        changed.append("block_size")
    for name in changed:
        yield from ("--view-set", f"{name}={json.dumps(getattr(recipe, name))}")


def _record(record: "RecordFormat") -> Iterator[object]:
    usual = type(record).chosen("auto", record.num_classes)
    if record.kind != usual.kind:
        yield from ("--record", record.kind)
    usual = type(record).chosen(record.kind, record.num_classes)
    if record.num_bytes != usual.num_bytes:
        yield from ("--bytes", record.num_bytes)
    if record.k != type(record).chosen(record.kind, record.num_classes, num_bytes=record.num_bytes).k:
        yield from ("--top-k", record.k)
