"""Name the caches of a sweep, and the sets of them that its cells learn from: `a`, `b`, `a+b`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from student.feed.teaching import Teaching, parts_of_one
from teacher_cache.store.cache import TeacherCache

ALL = ""
"""The set of all caches of the sweep: what a cell learns from where no set is named."""

JOIN = "+"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTeachers:
    """Caches by name, in the order given, with their weights.

    Attributes:
        caches: of one and the same views. weights: one a cache, as parts of 1.
    """

    caches: Mapping[str, TeacherCache]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, caches: Sequence[TeacherCache], weights: Sequence[float] | None = None) -> "SweepTeachers":
        """Name the caches by their places' last part: `teachers/a.zarr` is `a`.

        Raises:
            ValueError: two have one name, a name cannot stand in a set, or there is not one weight a cache.
        """
        named: dict[str, TeacherCache] = {}
        for cache in caches:
            name = cache_name(cache.url)
            if name in named:
                raise ValueError(
                    f"--cache: two caches are called {name}: {named[name].url} and {cache.url}; rename or link one"
                )
            if not name or (len(caches) > 1 and (JOIN in name or "," in name or "/" in name)):
                raise ValueError(f"--cache {cache.url}: its name {name!r} cannot stand in a set; rename or link it")
            named[name] = cache
        return cls(caches=named, weights=parts_of_one(weights, len(named)))

    @property
    def first(self) -> TeacherCache:
        """The first cache; its views are those of all."""
        return next(iter(self.caches.values()))

    @property
    def num_views(self) -> int:
        """Views that every cache has."""
        return min(cache.num_views for cache in self.caches.values())

    def teaching(self, teachers: str) -> Teaching:
        """The caches of a set, in the order of the sweep, and their weights; ValueError for names that are not here."""
        names = list(self.caches) if teachers == ALL else [name.strip() for name in teachers.split(JOIN)]
        unknown = [name for name in names if name not in self.caches]
        if unknown or len(set(names)) != len(names):
            raise ValueError(
                f"teachers: expected names of caches joined by {JOIN}, each once, got {teachers!r}; "
                f"there are {', '.join(self.caches)}"
            )
        weights = dict(zip(self.caches, self.weights, strict=True))
        picked = [name for name in self.caches if name in names]
        return Teaching(
            caches=tuple(self.caches[name] for name in picked), weights=tuple(weights[name] for name in picked)
        )

    def identity(self) -> dict[str, Any]:
        """What must not change between the cells of a sweep, as JSON; of one cache what it always was."""
        if len(self.caches) == 1:
            return {"cache": self.first.spec.fingerprint}
        prints = {name: cache.spec.fingerprint for name, cache in self.caches.items()}
        return {"caches": prints, "teacher_weights": dict(zip(self.caches, self.weights, strict=True))}


def cache_name(url: str) -> str:
    """What a cache is called after its place."""
    return PurePosixPath(url.rstrip("/")).name.removesuffix(".zarr")


def merged_facts(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a report says of several caches: sums of what they cost, the worst record at each τ, and each by name."""
    caches = {name: facts_of_cache["cache"] for name, facts_of_cache in facts.items()}
    errors = {
        kind: _worst([row for facts_of_cache in facts.values() for row in facts_of_cache.get(kind, ())])
        for kind in ("fidelity", "loss_errors")
    }
    first = next(iter(caches.values()))
    whole = {
        "teacher": "; ".join(f"{name}: {cache['teacher']}" for name, cache in caches.items()),
        "record": "; ".join(f"{name}: {cache['record']}" for name, cache in caches.items()),
        "views_recipe": first["views_recipe"],
        "num_views": min(cache["num_views"] for cache in caches.values()),
        "num_samples": first["num_samples"],
        **{key: sum(cache[key] for cache in caches.values()) for key in ("forwards_spent", "bytes_per_view", "bytes")},
    }
    return {"cache": whole, "caches": caches, **errors}


def _worst(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the rows of one loss and τ the one with the largest error; one that was not measured is worse than any."""
    worst: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in rows:
        place = row.get("loss"), row["temperature"]
        if place not in worst or _error(row) > _error(worst[place]):
            worst[place] = row
    return list(worst.values())


def _error(row: Mapping[str, Any]) -> float:
    value = row.get("gradient_error")
    return math.inf if value is None else float(value)
