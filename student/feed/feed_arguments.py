"""What a feed is given, as what it works with: the world, the device, one of a kind or several."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.views.view_recipe import fitting_repeats
from shards.world import World, world_from_env
from student.feed.cache_check import Views
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.place import require_distinct

CachePlace = str | Path | TeacherCache
"""A cache: its place, or open."""

T = TypeVar("T")
_REPEATS = 3


_LEAST = {"seed": 0, "workers": 0, "rank": 0}  # of all others 1
_MOST = 2**63 - 1


def check_arguments(*, smoothing: float, pin: bool | None, **whole: int | None) -> None:
    """ValueError, naming the argument, for one of another type or outside its range.

    Args:
        whole: whole numbers by the name of their argument; None: the argument was not given.
    """
    if not isinstance(smoothing, (int, float)) or isinstance(smoothing, bool) or not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing!r}")
    if pin is not None and not isinstance(pin, bool):
        raise ValueError(f"pin: expected True, False or None, got {pin!r}")
    for name, value in whole.items():
        if value is None:
            continue
        low = _LEAST.get(name, 1)
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= _MOST:
            raise ValueError(f"{name}: expected a whole number of at least {low}, got {value!r}")


def chosen_repeats(views: Views) -> int:
    """The repeats that the command line would choose for these views."""
    cycle = () if views.num_views is None else (views.num_views,)
    return fitting_repeats(_REPEATS, block_views=views.recipe.block_views, num_views=cycle)


def this_world(rank: int | None, world_size: int | None) -> World:
    """This process's place: as given, else as the environment says."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank: give rank and world_size or neither, got rank={rank}, world_size={world_size}")
    found = world_from_env()
    if rank is None or world_size is None:
        return found
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected a number in [0, {world_size}), got {rank}")
    return found._replace(rank=rank, size=world_size)


def listed(given: T | Sequence[T] | None, kind: Any) -> list[T]:
    """One of a kind, several or none, as a list."""
    if given is None:
        return []
    if isinstance(given, kind):
        return [given]
    several: list[T] = list(given)  # type: ignore[arg-type]
    if not several:
        raise ValueError("cache, teacher: give one, several, or None; got an empty list")
    return several


def opened_caches(places: Sequence[CachePlace], stack: ExitStack) -> tuple[TeacherCache, ...]:
    """The caches; those that are opened here are closed with the feed. ValueError where two are the same."""
    require_distinct([place.url if isinstance(place, TeacherCache) else place for place in places])
    return tuple(
        place if isinstance(place, TeacherCache) else stack.enter_context(TeacherCache.open(place)) for place in places
    )
