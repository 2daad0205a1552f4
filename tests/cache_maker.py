"""Small caches with random content, for the tests of the store."""

from dataclasses import replace
from functools import cache as cache_of_calls
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.views.view_recipe import recipe_named
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import CacheSpec, TeacherSpec

INDEX_FINGERPRINT = "1" * 64


class FakeIndex(NamedTuple):
    """What the store needs of an index."""

    names: tuple[str, ...]
    rows_S: NDArray[np.int64]
    fingerprint: str = INDEX_FINGERPRINT
    num_skipped: int = 0


def make_index(*rows: int) -> FakeIndex:
    """Shards with so many rows."""
    return FakeIndex(tuple(f"shard-{i:06d}.tar" for i in range(len(rows))), np.array(rows, np.int64))


def make_spec(kind: str = "dense8", num_classes: int = 10, views_per_unit: int = 3, **changes: Any) -> CacheSpec:
    """A spec of small views; `changes` replace fields of CacheSpec."""
    recipe = recipe_named("plain", size=32, block_views=views_per_unit, block_size=4)
    teacher = TeacherSpec(
        name="net.tag",
        weights_sha256="a" * 64,
        precision="fp32",
        input_size=32,
        num_classes=num_classes,
        mean=recipe.mean,
        std=recipe.std,
    )
    spec = CacheSpec(
        index_fingerprint=INDEX_FINGERPRINT,
        teacher=teacher,
        recipe=recipe,
        record=RecordFormat.chosen(kind, num_classes),
        behaviour="b" * 64,
    )
    return replace(spec, **changes)


def random_unit(cache: TeacherCache, view_block: int, shard: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """What stage 1 would commit, with random values that depend on the unit and the seed."""
    draws = np.random.default_rng([seed, view_block, shard])
    arrays: dict[str, NDArray[Any]] = {}
    for item in cache.units.layouts:
        if item.name == "fidelity_at":
            continue
        if item.name == "fidelity_logit":
            shape: tuple[int, ...] = (len(cache.fidelity_positions(view_block, shard)), *item.shape[3:])
        else:
            shape = (item.chunks[0], int(cache.rows_S[shard]), *item.shape[3:])
        if "f" in item.dtype:
            arrays[item.name] = draws.normal(size=shape).astype("<f4")
        else:
            arrays[item.name] = draws.integers(0, 200, size=shape).astype(item.dtype)
    return arrays


def fill(cache: TeacherCache, seed: int = 0) -> None:
    """Commit every missing unit."""
    for unit in cache.missing():
        assert cache.commit_unit(*unit, random_unit(cache, *unit, seed))


@cache_of_calls
def make_basis(seed: int = 0) -> TailBasis:
    """A tail basis for "topk" with 100 classes."""
    logit_NC = np.random.default_rng(seed).normal(size=(300, 100)).astype("f4")
    return fit_basis(logit_NC, RecordFormat.chosen("topk", 100))


def make_cache(
    url: Path | str,
    *,
    rows: tuple[int, ...] = (7, 5),
    num_views: int = 6,
    kind: str = "dense8",
    missing: tuple[tuple[int, int], ...] = (),
) -> None:
    """A full cache, but for some units; of 100 classes for "topk"."""
    basis = make_basis() if kind == "topk" else None
    spec = make_spec(kind, num_classes=100 if kind == "topk" else 10)
    with TeacherCache.create(url, spec, make_index(*rows), basis, num_views=num_views) as cache:
        fill(cache)
        for unit in missing:
            cache.invalidate(*unit)


def assert_unit(cache: TeacherCache, view_block: int, shard: int, seed: int = 0) -> None:
    """The unit holds what `random_unit` gave."""
    stored = cache.read_unit(view_block, shard)
    for name, array in random_unit(cache, view_block, shard, seed).items():
        np.testing.assert_array_equal(stored[name], array.astype(stored[name].dtype), err_msg=name)


def objects_of(folder: Path) -> list[str]:
    """Every object of a local cache, by name."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
