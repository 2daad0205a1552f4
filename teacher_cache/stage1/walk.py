"""Choose which units a process computes, in which order: a pure function of what is missing, rank and world size."""

from collections.abc import Sequence
from typing import TypeVar

from shards.world import World
from teacher_cache.store.digest import UnitId

T = TypeVar("T")


def share(missing: Sequence[T], rank: int, size: int) -> Sequence[T]:
    """Return the part of the missing units that a rank of `size` begins with."""
    return missing[rank * len(missing) // size : (rank + 1) * len(missing) // size]


def walk_order(missing: Sequence[UnitId], world: World) -> list[UnitId]:
    """List every missing unit once, in the order in which this rank visits them.

    A rank walks its own share from the front, then those of the ranks behind it, each from its *end*: so whoever helps
    a slower rank meets it in the middle, instead of computing the very unit that it is computing. Units that others
    have committed by then are skipped where they come up.
    """
    order = list(share(missing, world.rank, world.size))
    for step in range(1, world.size):
        order += reversed(share(missing, (world.rank + step) % world.size, world.size))
    return order
