"""Name the teachers of a run as one frozen value: caches, or teachers in the loop, with their weights.

The weights are parts of 1. What a run, a checkpoint and a model card say of the teacher is `Teaching.identity`.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from shards.index.shard_index import ShardIndex
from teacher_cache.network.teacher import Teacher
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.place import require_distinct

CachePlace = str | Path | TeacherCache
"""A cache: its place, or open."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Teaching:
    """Caches of the same views, or teachers that answer in the loop; nobody where both are empty.

    Attributes:
        caches: by place or open. teachers: loaded.
        weights: of each of them, in proportion; empty: equal.

    Raises:
        ValueError: both kinds, the same cache twice, or not one positive weight for each.
    """

    caches: tuple[CachePlace, ...] = ()
    teachers: tuple[Teacher, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check them, and make the weights parts of 1."""
        for name, kinds in (("caches", (str, Path, TeacherCache)), ("teachers", (Teacher,))):
            if getattr(self, name) != ():
                object.__setattr__(self, name, _several(name, getattr(self, name), kinds))
        if self.caches and self.teachers:
            raise ValueError("cache: give a cache or a teacher in the loop, not both")
        require_distinct([cache.url if isinstance(cache, TeacherCache) else cache for cache in self.caches])
        object.__setattr__(self, "weights", parts_of_one(None if self.weights == () else self.weights, len(self)))

    def __len__(self) -> int:
        return len(self.caches) + len(self.teachers)

    @classmethod
    def of(
        cls,
        cache: "Teaching | CachePlace | Sequence[CachePlace] | None" = None,
        teacher: Teacher | Sequence[Teacher] | None = None,
        weights: Sequence[float] | None = None,
    ) -> "Teaching":
        """Return what arguments such as those of `Feed` mean: one of a kind, several, or nobody."""
        if isinstance(cache, Teaching):
            if teacher is not None or weights is not None:
                raise ValueError("cache: a Teaching has teachers and weights of its own; give nothing beside it")
            return cache
        caches: tuple[CachePlace, ...] = _several("cache", cache, (str, Path, TeacherCache))
        teachers: tuple[Teacher, ...] = _several("teacher", teacher, (Teacher,))
        parts = parts_of_one(weights, len(caches) + len(teachers))
        return cls(caches=caches, teachers=teachers, weights=parts)

    def open(self, stack: ExitStack) -> "Teaching":
        """Return the same with open caches; those that are opened here are closed with the stack."""
        opened = (c if isinstance(c, TeacherCache) else stack.enter_context(TeacherCache.open(c)) for c in self.caches)
        return replace(self, caches=tuple(opened))

    @property
    def open_caches(self) -> tuple[TeacherCache, ...]:
        """The caches, after `open`."""
        caches = tuple(cache for cache in self.caches if isinstance(cache, TeacherCache))
        assert len(caches) == len(self.caches), "the caches are open"
        return caches

    @property
    def names(self) -> list[str]:
        """What messages call each of them."""
        return [cache.url for cache in self.open_caches] or [teacher.spec.name for teacher in self.teachers]

    def with_classes(self, index: ShardIndex) -> ShardIndex:
        """Return an index with the classes of the first who teaches, where it has none of its own; after `open`."""
        for cache in self.open_caches[:1]:
            return index.taught(cache.spec.teacher.num_classes, cache.header.class_names)
        for teacher in self.teachers[:1]:
            return index.taught(teacher.num_classes, (*teacher.class_lists, ())[0])
        return index

    def identity(self) -> dict[str, Any]:
        """Return what configuration and checkpoints say of the teachers, as JSON types.

        Where a cache lies is not part of it.
        """
        each: list[dict[str, Any]] = [
            {"kind": "cache", "fingerprint": cache.spec.fingerprint, **cache.spec.to_json()}
            for cache in self.open_caches
        ]
        each += [{"kind": "online", **teacher.spec.to_json()} for teacher in self.teachers]
        if len(each) > 1:
            weighted = [{"weight": weight, **one} for weight, one in zip(self.weights, each, strict=True)]
            return {"kind": "several", "teachers": weighted}
        return each[0] if each else {"kind": "none"}


def parts_of_one(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Return the weights of `count` teachers as parts of 1, equal for None; ValueError for any other number of them."""
    if weights is None:
        return (1.0 / count,) * count if count else ()
    numbers = isinstance(weights, Sequence) and all(isinstance(weight, Real) for weight in weights)
    if not numbers or len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"teacher_weights: expected {count} positive numbers, one a teacher, got {weights!r:.200}")
    return tuple(weight / math.fsum(weights) for weight in weights)


def _several(name: str, one_or_more: Any, kinds: tuple[type[Any], ...]) -> tuple[Any, ...]:
    """Return one of some kinds, several or none, as a tuple; ValueError, naming the argument, for anything else."""
    if one_or_more is None:
        return ()
    if isinstance(one_or_more, kinds):
        return (one_or_more,)
    several = tuple(one_or_more) if isinstance(one_or_more, Sequence) and not isinstance(one_or_more, bytes) else (0,)
    if not several:
        raise ValueError("cache, teacher: give one, several, or None; got an empty list")
    if not all(isinstance(one, kinds) for one in several):
        known = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: expected one {known}, or a list of them, got {one_or_more!r:.60}")
    return several


NOBODY = Teaching()
"""Training on labels alone."""
