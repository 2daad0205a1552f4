"""Predict the cost and the error of a cache before it is made, by a short calibration on this machine.

Hours come from running stage 1 itself for a moment, bytes from committing real records to a store in a temporary
folder, and errors from records of views that the basis was not fitted on.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shards.index.disk import read_rate
from shards.index.reader import ShardReader
from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe
from shards.world import World
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import Fidelity, record_fidelity
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.stage1.agreement import require_known_labels
from teacher_cache.stage1.build import build_cache
from teacher_cache.stage1.calibration import calibration_logits, calibration_sample
from teacher_cache.stage1.stage1_events import BatchDone
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import IndexFacts, fidelity_count
from teacher_cache.store.header import require_whole_units
from teacher_cache.store.layout import FIDELITY_AT, FIDELITY_LOGIT
from teacher_cache.store.spec import CacheSpec

# N views, C classes, V views of a unit, R rows.

_WARM_UP_BATCHES = 1
_DISK_S = 3.0
_BOUND = 0.9  # of the teacher's own rate: above it nothing else is worth changing


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanProgress:
    """What the calibration is doing."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The prediction.

    Attributes:
        num_views: views × samples. num_units: units of stage 1.
        num_files, num_packed_files: objects of records, in the cache and in a packed copy of it.
        bytes_per_view: of the whole cache, as `cache-status` measures it afterwards.
        fidelity_bytes: of the full logits kept for the fidelity report, in the whole cache, before compression.
        views_per_s: of one process like this one, as the following ones are.
        hours: of the whole cache, padding of last batches included.
        read_bytes_per_s, write_bytes_per_s: images, each read once for the views of a unit; records.
        disk_bytes_per_s: what the shards' disk gives, None for remote shards.
        errors: per τ, of views the basis was not fitted on; empty where there is no error to measure.
        num_measured: views behind `errors`. num_timed: views behind `views_per_s`.
        forwards_per_s: of the teacher alone, on views that are ready.
    """

    num_views: int
    num_units: int
    num_files: int
    num_packed_files: int
    bytes_per_view: float
    fidelity_bytes: int
    views_per_s: float
    hours: float
    read_bytes_per_s: float
    write_bytes_per_s: float
    disk_bytes_per_s: float | None
    errors: tuple[Fidelity, ...]
    num_measured: int
    num_timed: int
    forwards_per_s: float

    @property
    def teacher_is_the_bound(self) -> bool:
        """Whether stage 1 is about as fast as the teacher alone."""
        return self.views_per_s >= _BOUND * self.forwards_per_s

    @property
    def total_bytes(self) -> int:
        """Of the whole cache."""
        return round(self.num_views * self.bytes_per_view)


def plan_cache(
    spec: CacheSpec,
    teacher: Teacher,
    reader: ShardReader,
    *,
    num_views: int,
    workers: int,
    batch_size: int,
    calibration_views: int = 768,
    seconds: float = 20.0,
) -> Iterator[PlanProgress | Plan]:
    """Predict bytes, hours and error of a cache; the last event is the `Plan`.

    Args:
        spec: of the cache (`cache_spec`). reader: of its shards.
        num_views: views of every sample, a multiple of the recipe's views per block.
        workers, batch_size: as stage 1 will have them.
        calibration_views: views for fit and errors; two thirds fit the basis.
        seconds: how long stage 1 is timed, after its first batch.

    Errors:
        ValueError for settings that do not fit each other; ShardError for a sample that cannot be read.
    """
    index, recipe, record = reader.index, spec.recipe, spec.record
    require_known_labels(index, teacher.num_classes, teacher.spec.name)
    require_whole_units(spec.recipe, num_views, index.num_shards)
    yield PlanProgress(what=f"the teacher answers {count(calibration_views, 'view')}")
    samples = calibration_sample(spec, index, calibration_views)
    logit_NC = np.concatenate(list(calibration_logits(teacher, reader, recipe, samples)))
    yield PlanProgress(what="fitting and measuring the record")
    basis, held_NC = _fitted(logit_NC, record)
    codec = RecordCodec(record, basis)
    yield PlanProgress(what=f"stage 1 runs for {seconds:.0f} s")
    with tempfile.TemporaryDirectory(prefix="plan-cache-") as folder:
        record_bytes = _measured_bytes(Path(folder) / "bytes.zarr", spec, basis, codec, held_NC)
        place = Path(folder) / "speed.zarr"
        with TeacherCache.create(place, spec, index, basis, num_views=recipe.block_views) as cache:
            num_arrays = len(cache.units.layouts)
            num_timed, views_per_s = _timed(cache, teacher, reader, workers, batch_size, seconds)
    total, num_units = index.num_samples * num_views, index.num_shards * num_views // recipe.block_views
    batches = sum(-(-int(rows) // batch_size) for rows in index.rows_S) * num_views
    fidelity_bytes = num_units * fidelity_count(spec, index.rows_S) * record.num_classes * 2
    yield Plan(
        num_views=total,
        num_units=num_units,
        num_files=num_units * (num_arrays + 1),
        num_packed_files=index.num_shards * num_arrays,
        bytes_per_view=(bytes_per_view := record_bytes + fidelity_bytes / total),
        fidelity_bytes=fidelity_bytes,
        views_per_s=views_per_s,
        hours=batches * batch_size / views_per_s / 3600,
        read_bytes_per_s=views_per_s * float(index.size_N.mean()) / recipe.block_views,
        write_bytes_per_s=views_per_s * bytes_per_view,
        disk_bytes_per_s=read_rate(index, seconds=min(seconds, _DISK_S)),
        errors=tuple(record_fidelity(codec, codec.encode(held_NC), held_NC)) if record.entry.measurable else (),
        num_measured=len(held_NC),
        num_timed=num_timed,
        forwards_per_s=_forward_rate(teacher, recipe, batch_size),
    )


def _fitted(logit_NC: NDArray[np.float32], record: RecordFormat) -> tuple[TailBasis | None, NDArray[np.float32]]:
    """Fit the basis on two thirds of the logits, where the record has one, and hold out the others to measure it."""
    if not record.needs_basis:
        return None, logit_NC
    cut = len(logit_NC) * 2 // 3
    return fit_basis(logit_NC[:cut], record), logit_NC[cut:]


def _forward_rate(teacher: Teacher, recipe: ViewRecipe, batch_size: int) -> float:
    """Views per second of one forward of stage 1's batch, which has warmed it up."""
    image_BCHW = torch.zeros(batch_size, 3, recipe.size, recipe.size, device=teacher.device)
    began = time.monotonic()
    teacher.logits(image_BCHW).cpu()
    return batch_size / max(time.monotonic() - began, 1e-9)


def _measured_bytes(
    url: Path, spec: CacheSpec, basis: TailBasis | None, codec: RecordCodec, logit_NC: NDArray[np.float32]
) -> float:
    """Bytes on disk per view of one committed unit of these answers, fidelity logits left out."""
    num_views = spec.recipe.block_views
    num_rows = max(1, len(logit_NC) // num_views)
    unit_NC = np.resize(logit_NC, (num_views * num_rows, logit_NC.shape[1]))
    arrays = {
        name: value.reshape(num_views, num_rows, *value.shape[1:]) for name, value in codec.encode(unit_NC).items()
    }
    words = np.random.Philox(key=0).random_raw(num_views * num_rows)
    arrays["pixel_digest"] = words.astype(np.uint32).reshape(num_views, num_rows)  # as incompressible as real ones
    shard = IndexFacts(("weighed",), np.array([num_rows], np.int64), spec.index_fingerprint)
    with TeacherCache.create(url, spec, shard, basis, num_views=num_views) as cache:
        at_F2 = cache.fidelity_positions(0, 0)
        if len(at_F2):
            arrays[FIDELITY_LOGIT] = unit_NC.reshape(num_views, num_rows, -1)[tuple(at_F2.T)]
        cache.commit_unit(0, 0, arrays)
        sizes = cache.unit_bytes(0, 0)
    return sum(size for name, size in sizes.items() if name not in (FIDELITY_AT, FIDELITY_LOGIT)) / len(unit_NC)


def _timed(
    cache: TeacherCache, teacher: Teacher, reader: ShardReader, workers: int, batch_size: int, seconds: float
) -> tuple[int, float]:
    """Views timed and views per second of stage 1; the first batch, and starting the workers, are left out."""
    began = ended = 0.0
    batches = timed = 0

    def enough() -> bool:
        return batches > _WARM_UP_BATCHES and ended - began > seconds

    events = build_cache(
        cache,
        reader.index,
        teacher,
        reader=reader,
        world=World(),
        workers=workers,
        batch_size=batch_size,
        should_stop=enough,
    )
    for event in events:
        if not isinstance(event, BatchDone):
            continue
        batches += 1
        ended = time.monotonic()
        if batches == _WARM_UP_BATCHES:
            began = ended
        elif batches > _WARM_UP_BATCHES:
            timed += batch_size  # padding costs as much
    if not timed:
        raise ValueError(f"batch_size: the shards fill too few batches of {batch_size} to be timed; use a smaller one")
    return timed, timed / max(ended - began, 1e-9)
