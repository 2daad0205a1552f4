"""Options of a `Feed` that most loops leave alone, and the checks of its numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shards.views.view_recipe import fitting_repeats
from shards.world import World, world_from_env
from student.feed.cache_check import Views
from teacher_cache.network.device import chosen_device, rank_device

_REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """Which part of each batch this process gets, and how batches are made ready.

    Attributes:
        rank, world_size: which part of each batch is this process's; None: from torch.distributed where it is
            initialised, else from the environment, as torchrun and SLURM set it, else 0 of 1. Every rank sees its
            slice of the same global batches.
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
            object.__setattr__(self, name, None if folder is None else Path(folder))
        check_whole(rank=self.rank, world_size=self.world_size, accumulate=self.accumulate, prefetch=self.prefetch)

    @property
    def world(self) -> World:
        """The place of this process among all."""
        return this_world(self.rank, self.world_size)


_LEAST = dict.fromkeys(("seed", "workers", "rank", "epoch", "first_step", "first_epoch"), 0)  # of all others 1
_MOST = 2**63 - 1


def check_share(**shares: float) -> None:
    """ValueError, naming the argument, for what is no number in [0, 1)."""
    for name, value in shares.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value < 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")


def check_whole(**whole: int | None) -> None:
    """ValueError, naming the argument, for a whole number of another type or outside its range; None: not given."""
    for name, value in whole.items():
        if value is not None:
            whole_number(name, value)


def whole_number(name: str, value: Any) -> int:
    """Return a whole number within the range of that argument; ValueError, naming it, for anything else."""
    low = _LEAST.get(name, 1)
    if not is_whole(value) or not low <= value <= _MOST:
        raise ValueError(f"{name}: expected a whole number of at least {low}, got {value!r:.60}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy, and no truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def chosen_repeats(views: Views) -> int:
    """The repeats that the command line would choose for these views."""
    cycle = () if views.num_views is None else (views.num_views,)
    return fitting_repeats(_REPEATS, block_views=views.recipe.block_views, num_views=cycle)


def this_world(rank: int | None, world_size: int | None) -> World:
    """This process's place: as given, else as torch.distributed says, else as the environment says."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank: give rank and world_size or neither, got rank={rank}, world_size={world_size}")
    grouped = dist.is_available() and dist.is_initialized()
    world = world_from_env(decides=rank is None and not grouped)
    if rank is None or world_size is None:
        return _world_of_group(world) if grouped else world
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected a number in [0, {world_size}), got {rank}")
    return world._replace(rank=rank, size=world_size)


def _world_of_group(environment: World) -> World:
    """Return the place of this process in torch's process group, which is initialised.

    torch.multiprocessing.spawn sets no variables. What the environment says of the machine counts where it is about the
    same processes, and for a process that is a group alone; elsewhere the local rank is the GPU that the loop has
    chosen by torch.cuda.set_device.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if size == 1 or (rank, size) == environment[:2]:
        return environment._replace(rank=rank, size=size)
    gpus = torch.cuda.device_count()
    return World(rank, size, torch.cuda.current_device() if gpus else 0, min(size, gpus or size))


def feed_device(device: str | torch.device | None, world: World) -> torch.device:
    """Return the device of a feed: a GPU by its number, as a loop names its own, or as `rank_device` chooses."""
    if isinstance(device, str) and ":" in device:
        return torch.device(chosen_device(device))
    return rank_device(device, world)
