"""Open a cache for stage 1: make it, with its tail basis, or compare the spec of the existing one.

Several processes may start at once. On a local or shared disk a lock lets one of them make the cache while the others
wait; it is held by the process, so a killed one leaves nothing behind. In an object store rank 0 makes it.
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.views.behaviour import behaviour_digest
from shards.views.first_behaviour import behaviour_like
from shards.views.view_recipe import ViewRecipe
from shards.world import World
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import record_fidelity
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.stage1.agreement import answer_names, require_fitted, require_known_labels, require_new_cache
from teacher_cache.stage1.calibration import FEWEST, calibration_logits, calibration_sample, calibration_size
from teacher_cache.stage1.stage1_events import CacheOpened, Calibrated, OpenEvent, ShortCalibration
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.header import header_at, making, require_index, require_whole_units
from teacher_cache.store.spec import CacheSpec

_POLL_S, _WAIT_S = 2.0, 3600.0  # longest wait for another process to make the cache
_WANTED = 2000  # calibration views: the error of a fit on fewer is worth a word


def cache_spec(index: ShardIndex, teacher: Teacher, recipe: ViewRecipe, record: RecordFormat) -> CacheSpec:
    """Return the spec of a cache of these; ValueError where they do not fit each other, before anything runs."""
    require_fitted(teacher, index)
    return CacheSpec(
        index_fingerprint=index.fingerprint,
        teacher=teacher.spec,
        recipe=recipe,
        record=record,
        behaviour=behaviour_digest(recipe),
    )


def open_or_create(
    url: str | Path,
    index: ShardIndex,
    teacher: Teacher,
    recipe: ViewRecipe,
    record: RecordFormat,
    *,
    num_views: int,
    reader: ShardReader,
    world: World,
) -> Iterator[OpenEvent]:
    """Open the cache for writing; make it first, or make room for more views, where needed.

    Args:
        url: folder, s3:// or gs://.
        num_views: a multiple of the recipe's views per block; fewer than the cache has leaves it as it is.
        reader: of the index, for the calibration pass of a new cache.
        world: rank 0 makes a cache in an object store; the others wait for it.

    Yields:
        `Calibrated` events if this process makes it, one `ShortCalibration` where they are few, then one `CacheOpened`.

    Errors:
        ValueError for settings that do not fit each other; CacheError naming every field in which a cache that is there
        differs, expected and got.
    """
    spec = cache_spec(index, teacher, recipe, record)
    require_known_labels(index, teacher.num_classes, teacher.spec.name)
    require_whole_units(spec.recipe, num_views, index.num_shards)
    folder = None if "://" in str(url) else Path(url)
    if folder is None and world.rank > 0:
        cache = _wait_for(url, spec, index)
        yield CacheOpened(cache=cache, created=False, grown=_grow(cache, num_views))
        return
    existing_cache = _open_if_there(url, spec, index)
    # Where there is nothing to write, the cache may lie where nobody can write.
    if existing_cache is not None and num_views <= existing_cache.num_views:
        yield CacheOpened(cache=existing_cache, created=False, grown=False)
        return
    with making(folder, wait_s=_WAIT_S):
        existing_cache = _open_if_there(url, spec, index)
        if existing_cache is not None:
            yield CacheOpened(cache=existing_cache, created=False, grown=_grow(existing_cache, num_views))
            return
        require_new_cache(index, recipe, num_views)
        basis = None
        if record.needs_basis:
            basis = yield from _calibrate(spec, index, teacher, reader)
        names = answer_names(teacher, index)
        cache = TeacherCache.create(url, spec, index, basis, num_views=num_views, class_names=names)
    yield CacheOpened(cache=cache, created=True, grown=False)


def _grow(cache: TeacherCache, num_views: int) -> bool:
    if num_views <= cache.num_views:
        return False
    cache.grow(num_views)
    return True


def _calibrate(
    spec: CacheSpec, index: ShardIndex, teacher: Teacher, reader: ShardReader
) -> Generator[Calibrated | ShortCalibration, None, TailBasis]:
    samples = calibration_sample(spec, index, calibration_size(spec, index.num_samples))
    num_views = sum(len(sample.place_N) for sample in samples)
    if num_views < FEWEST:
        raise ValueError(
            f"record: kind {spec.record.kind!r} needs at least {FEWEST} views to fit its tail basis that the "
            f"fidelity report does not measure, these shards give {num_views}; use more images, or kind 'dense8'"
        )
    parts = []
    done = 0
    for logit_BC in calibration_logits(teacher, reader, spec.recipe, samples):
        parts.append(logit_BC)
        done += len(logit_BC)
        yield Calibrated(views_done=done, num_views=num_views)
    logit_NC = np.concatenate(parts)
    if num_views < _WANTED:
        yield _cost_of(logit_NC, spec.record)
    return fit_basis(logit_NC, spec.record)


def _cost_of(logit_NC: NDArray[np.float32], record: RecordFormat) -> ShortCalibration:
    """Measure what a fit on so few views costs: two thirds of them fit, the others measure."""
    cut = len(logit_NC) * 2 // 3
    codec, held_NC = RecordCodec(record, fit_basis(logit_NC[:cut], record)), logit_NC[cut:]
    errors = tuple(record_fidelity(codec, codec.encode(held_NC), held_NC))
    return ShortCalibration(num_views=len(logit_NC), wanted=_WANTED, errors=errors, num_measured=len(held_NC))


def _open_if_there(url: str | Path, spec: CacheSpec, index: ShardIndex) -> TeacherCache | None:
    header = header_at(url)
    if header is None:
        return None
    behaviour = behaviour_like(header.spec.behaviour, spec.recipe)
    same_rule = replace(spec, behaviour=behaviour, index_fingerprint=header.spec.index_fingerprint)
    cache = TeacherCache.open(url, writable=True, expect=same_rule)
    require_index(cache.header, index, cache.url)
    return cache


def _wait_for(url: str | Path, spec: CacheSpec, index: ShardIndex) -> TeacherCache:
    until = time.monotonic() + _WAIT_S
    while (cache := _open_if_there(url, spec, index)) is None:
        if time.monotonic() > until:
            raise CacheError(
                f"{url}: no cache after {_WAIT_S:.0f} s; rank 0 makes it: see what keeps it, then start again"
            )
        time.sleep(_POLL_S)
    return cache
