"""Rank and world size of this process, from the environment; no process group."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class World(NamedTuple):
    """Rank in [0, size) of this process, its rank on this machine (which GPU it takes), and how many share the machine.

    `local_size` is known under torchrun alone; elsewhere it is 1.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


# torchrun's names first, then a SLURM array (tasks are numbered from MIN), then SLURM tasks of one job.
_SOURCES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "", "SLURM_ARRAY_TASK_MIN"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
)


def world_from_env(environ: Mapping[str, str] = os.environ) -> World:
    """The first complete pair of rank and size in the environment, else a world of one.

    Errors:
        ValueError naming the variable for values that are no integers or a rank outside the world.
    """
    for rank_name, size_name, local_name, first_name in _SOURCES:
        if rank_name in environ and size_name in environ:
            size = _integer(environ, size_name)
            rank = _integer(environ, rank_name) - (_integer(environ, first_name) if first_name in environ else 0)
            local_rank = _integer(environ, local_name) if local_name in environ else 0
            if not 0 <= rank < size:
                raise ValueError(f"{rank_name}: expected a rank in [0, {size}) for {size_name}={size}, got {rank}")
            local_size = _integer(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else 1
            return World(rank, size, local_rank, local_size)
    return World()


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name}: expected an integer, got {environ[name]!r}") from None
