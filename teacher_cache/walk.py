"""Which units a process computes, in which order: a pure function of what is missing, rank and world size."""

from collections.abc import Sequence

from shards.world import World
from teacher_cache.digest import UnitId


def walk_order(missing: Sequence[UnitId], world: World) -> list[UnitId]:
    """Every missing unit once, in the order in which this rank visits them.

    The list is cut into one arc per rank. A rank walks its own arc from the front, then those of the ranks behind it,
    each from its *end*: so whoever helps a slower rank meets it in the middle, instead of computing the very unit
    that it is computing. Units that others have committed by then are skipped where they come up.
    """
    num_units = len(missing)
    starts = [rank * num_units // world.size for rank in range(world.size + 1)]
    order = list(missing[starts[world.rank] : starts[world.rank + 1]])
    for step in range(1, world.size):
        other = (world.rank + step) % world.size
        order += reversed(missing[starts[other] : starts[other + 1]])
    return order
