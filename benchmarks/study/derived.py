"""A cache that holds, on purpose, other answers than the teacher's to the views that the student will see.

A cache that pairs a view with the answer to another one is what this project refuses to train from by accident. Here it
is made to measure what that costs (or what an answer among fewer classes is worth), and it says so: the teacher's name
in its spec carries the words. The refusal stays as it is: the pixel digests are those of the views that the student
will see, and they are compared.

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
from teacher_cache.record.codec import RecordCodec
from teacher_cache.store.cache import TeacherCache

Logits = NDArray[np.float32]
Answers = Callable[[int, int], Logits]
"""(view, shard) → the logits that stand for the view's answer, (R, C)."""


def derive(out: Path, index: ShardIndex, source: TeacherCache, answers: str) -> None:
    """Make, or finish, the cache at `out`: the views of `source`, a lossless cache, with other answers.

    Args:
        answers: "next": to the next view of the same photo (of the last: the first); "present": to the same view,
            among the classes that photos have; else the folder of a lossless cache of one view, whose answer stands
            for every view.
    """
    words = {"next": "to the next view", "present": "among the classes present"}.get(answers, "to one centre crop")
    teacher = replace(source.spec.teacher, name=f"{source.spec.teacher.name}, its answers {words}")
    spec, logits = replace(source.spec, teacher=teacher), _answers(source, answers, index)
    with TeacherCache.create(out, spec, index, num_views=source.num_views) as cache:
        codec = RecordCodec(spec.record)
        for view_block, shard in cache.missing():
            first = view_block * cache.views_per_unit
            logit_VRC = np.stack([logits(first + view, shard) for view in range(cache.views_per_unit)])
            fields = codec.encode(logit_VRC.reshape(-1, logit_VRC.shape[-1]))
            arrays = {name: value.reshape(*logit_VRC.shape[:2], *value.shape[1:]) for name, value in fields.items()}
            arrays["pixel_digest"] = source.read_unit(view_block, shard)["pixel_digest"]
            cache.commit_unit(view_block, shard, arrays)


def _answers(source: TeacherCache, answers: str, index: ShardIndex) -> Answers:
    same = _reader(source)
    if answers == "next":
        return lambda view, shard: same((view + 1) % source.num_views, shard)
    if answers == "present":
        absent_C = np.bincount(index.label_N[index.label_N >= 0], minlength=index.num_classes) == 0
        return lambda view, shard: _without(same(view, shard), absent_C)
    with TeacherCache.open(answers) as one:
        centre = _reader(one)
        first = [centre(0, shard) for shard in range(one.num_shards)]
    return lambda view, shard: first[shard]


def _without(logit_RC: Logits, absent_C: NDArray[np.bool_]) -> Logits:
    """The logits with those of absent classes 50 below the least: a probability of no weight, and a number."""
    return np.where(absent_C, logit_RC.min(-1, keepdims=True) - np.float32(50), logit_RC)


def _reader(cache: TeacherCache) -> Answers:
    """The cache's own answers; the units read last stay in memory."""

    @lru_cache(maxsize=4)
    def unit(view_block: int, shard: int) -> NDArray[Any]:
        return cache.read_unit(view_block, shard)["logit"]

    def logits(view: int, shard: int) -> Logits:
        view_block, at = divmod(view, cache.views_per_unit)
        return np.asarray(unit(view_block, shard)[at], np.float32)

    return logits
