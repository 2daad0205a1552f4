"""Rank and world size of this process, from the environment; no process group."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class World(NamedTuple):
    """Rank in [0, size) of this process, its rank on this machine (which GPU it takes), and how many share the machine.

    `local_size` is known under torchrun and srun; elsewhere it is 1. `meeting` is where the processes find each
    other, as `init_method` of torch.distributed has it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    meeting: str = "env://"

    @property
    def name(self) -> str:
        """ "rank 3 of 8"; "" for one process alone."""
        return f"rank {self.rank} of {self.size}" if self.size > 1 else ""


ALONE = World()
"""One process, which is all there is."""


class _Source(NamedTuple):
    """Variables that hold rank, size and local rank, and the rank at which counting begins.

    `shared`: they say who shares a list of work, not who meets in a process group. `within`: they count only where this
    variable is set as well.
    """

    rank: str
    size: str
    local_rank: str
    first: str = ""
    shared: bool = False
    within: str = ""


_INDEX, _COMPLETIONS = "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"
# In this order: torchrun; a SLURM array, whose tasks are jobs of their own and are numbered from MIN; the pods of an
# Indexed Job of Kubernetes, which sets the index, while the manifest repeats the number of completions; tasks that srun
# has started, of which the step knows how many they are (one in an interactive shell of a larger job); a batch script,
# whose SLURM_NTASKS says how many srun would start.
_SOURCES = (
    _Source("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    _Source("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "", "SLURM_ARRAY_TASK_MIN", shared=True),
    _Source(_INDEX, _COMPLETIONS, "", shared=True),
    _Source("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", within="SLURM_STEP_ID"),
    _Source("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", within="SLURM_STEP_ID"),
    _Source("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", shared=True),
)


def world_from_env(environ: Mapping[str, str] = os.environ, *, shared: bool = False, decides: bool = True) -> World:
    """The first complete pair of rank and size in the environment, else a world of one.

    Args:
        shared: the processes share a list of work and never meet, as those of stage 1: tasks of a SLURM array, and
            whatever a batch script says of its tasks, are a world as well. A run of its own in each task of an
            array, which is what a training there is, must not take them for its ranks.
        decides: which part of the work this process does depends on the result, so RANK or WORLD_SIZE without the
            other is an error; otherwise it counts as a world of one.

    Errors:
        ValueError naming the variable for values that are no integers, a rank outside the world, or half a pair.
    """
    source = _source(environ, shared)
    if source is None:
        if decides:
            _require_pair(environ)
        return World()
    size = _integer(environ, source.size)
    rank = _integer(environ, source.rank) - (_integer(environ, source.first) if source.first in environ else 0)
    if not 0 <= rank < size:
        raise ValueError(f"{source.rank}: expected a rank in [0, {size}) for {source.size}={size}, got {rank}")
    local_rank = _integer(environ, source.local_rank) if source.local_rank in environ else 0
    return World(rank, size, local_rank, _local_size(environ, source))


def _require_pair(environ: Mapping[str, str]) -> None:
    """ValueError where RANK or WORLD_SIZE is set without the other: each of several processes would do all the work.

    A WORLD_SIZE of 1 says all by itself.
    """
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name in environ and other not in environ and (name, environ[name]) != ("WORLD_SIZE", "1"):
            raise ValueError(
                f"{name}={environ[name]} is set, but {other} is not, so this process does not know its part of the "
                "work: set both, as torchrun does (a loop of your own makes its Feed after the process group, with "
                f"Lightning in train_dataloader: docs/other-loops.md); for one process alone unset {name}"
            )


def has_own_output(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process writes to a log of its own, as a task of a SLURM array or a pod does."""
    source = _source(environ, shared=True)
    return source is not None and source.shared


def require_completions(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse a pod that knows its index but not how many pods there are: each would do the work of all.

    Errors:
        ValueError that says what to add to the manifest.
    """
    if _INDEX in environ and _source(environ, shared=True) is None:
        raise ValueError(
            f"{_INDEX}={environ[_INDEX]} is set by Kubernetes, but {_COMPLETIONS} is not, so this process does not "
            f"know how many share the work: add {_COMPLETIONS} to the container's `env`, with the Job's number of "
            f"`completions`; for one process alone: `env -u {_INDEX} python cli.py …`"
        )


def _local_size(environ: Mapping[str, str], source: _Source) -> int:
    """Return how many of these processes share the machine; 1 where nobody says."""
    if source.local_rank == "LOCAL_RANK":
        return _integer(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else 1
    # "2(x3),1": three nodes with two tasks each, then one with a single task.
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "") if source.within else ""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(count)] * int(times or 1)
    node = environ.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else 1


def world_variables(environ: Mapping[str, str] = os.environ, *, shared: bool = False) -> str:
    """The variables that `world_from_env` reads rank and size from, for messages; "" for a world of one."""
    source = _source(environ, shared)
    return f"{source.rank}={environ[source.rank]}, {source.size}={environ[source.size]}" if source else ""


def way_out() -> str:
    """Return the command for a run of one process where rank and size are left over from another job."""
    source = _source(os.environ, shared=False)
    return f"for one process alone: `env -u {source.rank} -u {source.size} python cli.py …`" if source else ""


def _source(environ: Mapping[str, str], shared: bool) -> _Source | None:
    for source in _SOURCES:
        present = source.rank in environ and source.size in environ and (not source.within or source.within in environ)
        if present and (shared or not source.shared):
            return source
    return None


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name}: expected an integer, got {environ[name]!r}") from None
