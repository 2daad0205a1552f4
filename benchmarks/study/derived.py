"""A cache from a lossless one, without the teacher: another record of the same answers, or the answers to other views.

A cache that pairs a view with the answer to another one is what this project refuses to train from by accident. Here it
is made on purpose, to measure what it costs, and it says so: the teacher's name in its spec carries the words. The
refusal stays as it is: the pixel digests are those of the views that the student will see, and they are compared.

Legend: V views, R rows of a shard, C classes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.index.shard_index import ShardIndex
from shards.views.mixing import block_rows
from teacher_cache.record.codec import RecordCodec, RecordFormat, TailBasis, fit_basis
from teacher_cache.stage1.calibration import calibration_sample, calibration_size
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import CacheSpec

Logits = NDArray[np.float32]
Answers = Callable[[int, int], Logits]
"""(view, shard) → the logits that stand for the view's answer, (R, C)."""


def derive(out: Path, index: ShardIndex, source: TeacherCache, record: RecordFormat, answers: str = "same") -> None:
    """Make, or finish, the cache at `out`: the views of `source`, a lossless cache, with other records.

    Args:
        answers: "same": of the view itself; "next": of the next view of the same photo (of the last: the first); else
            the folder of a lossless cache of one view, whose answer stands for every view.
    """
    teacher = source.spec.teacher
    if answers != "same":
        words = "the next view" if answers == "next" else "one centre crop"
        teacher = replace(teacher, name=f"{teacher.name}, its answers to {words}")
    spec = replace(source.spec, record=record, teacher=teacher)
    logits = _answers(source, answers)
    basis = _basis(spec, index, logits) if record.needs_basis else None
    with TeacherCache.create(out, spec, index, basis, num_views=source.num_views) as cache:
        codec = RecordCodec(record, cache.basis)
        for view_block, shard in cache.missing():
            cache.commit_unit(view_block, shard, _unit(cache, codec, source, logits, view_block, shard))


def _answers(source: TeacherCache, answers: str) -> Answers:
    if answers == "same":
        return _reader(source)
    if answers == "next":
        same = _reader(source)
        return lambda view, shard: same((view + 1) % source.num_views, shard)
    with TeacherCache.open(answers) as one:
        centre = _reader(one)
        first = [centre(0, shard) for shard in range(one.num_shards)]
    return lambda view, shard: first[shard]


def _reader(cache: TeacherCache) -> Answers:
    """The cache's own answers; the units read last stay in memory."""

    @lru_cache(maxsize=4)
    def unit(view_block: int, shard: int) -> NDArray[Any]:
        return cache.read_unit(view_block, shard)["logit"]

    def logits(view: int, shard: int) -> Logits:
        view_block, at = divmod(view, cache.views_per_unit)
        return np.asarray(unit(view_block, shard)[at], np.float32)

    return logits


def _basis(spec: CacheSpec, index: ShardIndex, logits: Answers) -> TailBasis:
    """Fitted on the answers that stage 1 would have calibrated on."""
    recipe, parts = spec.recipe, []
    for sample in calibration_sample(spec, index, calibration_size(spec, index.num_samples)):
        rows_R = block_rows(recipe, index.names[sample.shard], index.num_rows(sample.shard), sample.view)
        rows_N = rows_R[sample.block * recipe.block_size : (sample.block + 1) * recipe.block_size]
        parts.append(logits(sample.view, sample.shard)[rows_N[sample.place_N]])
    return fit_basis(np.concatenate(parts), spec.record)


def _unit(
    cache: TeacherCache, codec: RecordCodec, source: TeacherCache, logits: Answers, view_block: int, shard: int
) -> dict[str, NDArray[Any]]:
    num_views = cache.views_per_unit
    logit_VRC = np.stack([logits(view_block * num_views + view, shard) for view in range(num_views)])
    fields = codec.encode(logit_VRC.reshape(-1, logit_VRC.shape[-1]))
    arrays = {name: value.reshape(*logit_VRC.shape[:2], *value.shape[1:]) for name, value in fields.items()}
    arrays["pixel_digest"] = source.read_unit(view_block, shard)["pixel_digest"]
    at_F2 = cache.fidelity_positions(view_block, shard)
    return arrays | ({"fidelity_logit": logit_VRC[tuple(at_F2.T)]} if len(at_F2) else {})
