"""Count the CPUs that this process may use: its affinity, a container's quota, and its share among ranks."""

import math
import os
from pathlib import Path

from shards.platforms import HAS_WORKERS
from shards.world import World

_GROUPS = Path("/sys/fs/cgroup")
_SHARE = 8


def rank_cpus(world: World, *, groups: Path = _GROUPS) -> int:
    """Return how many CPUs one rank of this machine may use, at least 1.

    The CPUs that the scheduler admits (affinity), at most the quota of the container, divided by the ranks that share
    them. Under srun with `--cpus-per-task` it is that number: each task has its own.
    """
    cpus = math.ceil(min(_affinity(), _quota(groups)))
    own = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if own.isdecimal() and "SLURM_STEP_ID" in os.environ:
        return max(1, min(cpus, int(own)))
    return max(1, cpus // world.local_size)


def default_workers(world: World, *, beside_network: bool = False, groups: Path = _GROUPS) -> int:
    """Return how many rendering processes a rank starts by default: its CPUs less one, for the main process.

    Args:
        beside_network: a network computes on the same CPUs, which takes far longer than rendering: an eighth of them.

    0 where the system cannot fork.
    """
    if not HAS_WORKERS:
        return 0
    cpus = rank_cpus(world, groups=groups)
    return max(1, cpus // _SHARE if beside_network else cpus - 1)


def network_threads(device_type: str, workers: int, world: World, *, groups: Path = _GROUPS) -> int:
    """Return how many threads of this process compute: on a CPU those that the workers leave, beside a GPU one."""
    return 1 if device_type != "cpu" else max(1, rank_cpus(world, groups=groups) - workers)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(groups: Path) -> float:
    """Return the CPUs that the control group (version 2, then 1) grants; infinite without a quota."""
    unified = groups / "cpu.max"
    if unified.is_file():
        quota, _, period = unified.read_text().strip().partition(" ")
    elif (groups / "cpu" / "cpu.cfs_quota_us").is_file():
        quota = (groups / "cpu" / "cpu.cfs_quota_us").read_text().strip()
        period = (groups / "cpu" / "cpu.cfs_period_us").read_text().strip()
    else:
        return math.inf
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return math.inf  # "max", or −1: no limit
    return int(quota) / int(period)
