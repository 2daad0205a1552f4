"""Options of a `Feed` that most loops leave alone, and the checks of its numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.views.view_recipe import fitting_repeats
from shards.world import World, world_from_env
from student.feed.cache_check import Views

_REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """Which part of each batch this process gets, and how batches are made ready.

    Attributes:
        rank, world_size: which part of each batch is this process's; None: from the environment, as torchrun and
            SLURM set it, else 0 of 1. Every rank sees its slice of the same global batches.
        accumulate: batches in which each rank receives its part of an optimiser step.
        prefetch: batches that each worker prepares ahead.
        pin: pinned memory for the copy to the device; None: where the device is a GPU.
        shard_cache: where remote shards are kept locally.
        scratch: a folder on a local disk for the stored logits of the views in use (once per machine, whatever the
            ranks); None is the system's temporary folder (TMPDIR).

    Raises:
        ValueError: naming the field of another type or outside its range.
    """

    rank: int | None = None
    world_size: int | None = None
    accumulate: int = 1
    prefetch: int = 2
    pin: bool | None = None
    shard_cache: Path | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.pin is not None and not isinstance(self.pin, bool):
            raise ValueError(f"pin: expected True, False or None, got {self.pin!r}")
        for name, folder in (("shard_cache", self.shard_cache), ("scratch", self.scratch)):
            if folder is not None and not isinstance(folder, (str, Path)):
                raise ValueError(f"{name}: expected a folder or None, got {folder!r:.60}")
        check_whole(rank=self.rank, world_size=self.world_size, accumulate=self.accumulate, prefetch=self.prefetch)

    @property
    def world(self) -> World:
        """The place of this process among all."""
        return this_world(self.rank, self.world_size)


_LEAST = {"seed": 0, "workers": 0, "rank": 0}  # of all others 1
_MOST = 2**63 - 1


def check_share(**shares: float) -> None:
    """ValueError, naming the argument, for what is no number in [0, 1)."""
    for name, value in shares.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value < 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")


def check_whole(**whole: int | None) -> None:
    """ValueError, naming the argument, for a whole number of another type or outside its range; None: not given."""
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
    world = world_from_env()
    if rank is None or world_size is None:
        return world
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected a number in [0, {world_size}), got {rank}")
    return world._replace(rank=rank, size=world_size)
