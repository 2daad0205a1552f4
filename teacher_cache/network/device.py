"""Choose the device of a rank."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from shards.platforms import require_device_name
from shards.pool.cpus import network_threads, rank_cpus
from shards.text.figures import count
from shards.world import World


def expectations(device: str, *, precision: str, compile: bool, deterministic: bool = False) -> list[str]:
    """Warn about slow settings of this device, one line each."""
    lines = []
    if compile:
        lines.append("--compile: the first batch is compiled before it runs, which takes up to minutes without a sign")
    if compile and (needed := _missing_for_compile(device)):
        lines.append(f"--compile needs {needed}; install it, or leave the flag out")
    if precision == "fp16" and device == "cpu":
        lines.append("--precision fp16 on the CPU: for tests; bf16 is the half precision that CPUs are made for")
    if precision == "tf32" and device == "cpu":
        lines.append("--precision tf32 on the CPU computes as fp32: only GPUs have it")
    if deterministic and device == "cpu":
        lines.append("--deterministic on the CPU changes nothing: every run of as many threads has the same bits")
    return lines


def chosen_device(device: str | None) -> str:
    """Return the name of the device: the one given, else "cuda" where there is a GPU, else "cpu".

    Raises:
        ValueError: a device that is missing here or not supported. "cuda:N" is the GPU of that number.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device_name(device)
    kind, _, number = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is not available here; give cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ValueError(
            f"device: this machine shows {count(torch.cuda.device_count(), 'GPU')} (from cuda:0), got {device}"
        )
    return device


def rank_device(device: str | torch.device | None, world: World) -> torch.device:
    """Return the device of this rank; "cuda" is the GPU of its local rank.

    Where a scheduler shows each process fewer GPUs than the machine has ranks (`srun --gpus-per-task=1` shows each its
    own as number 0), the local rank counts around those that are visible.

    Raises:
        ValueError: as `chosen_device`; "cuda:N" for one of several ranks, which would share one GPU.
    """
    if isinstance(device, torch.device):
        return device
    name = chosen_device(device)
    if ":" in name and world.size > 1:
        raise ValueError(f"device: {world.size} ranks would share one GPU, {name}; give cuda, which is each rank's own")
    if name == "cuda":
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    return torch.device(name)


@contextmanager
def own_threads(device: torch.device, workers: int, world: World, *, num_threads: int = 0) -> Iterator[int]:
    """Let torch compute in no more threads than the workers leave CPUs of this rank; yield how many.

    Beside a GPU one is enough: more of them take turns with the workers, and every launch waits for its turn.

    Args:
        num_threads: number of torch threads on a CPU, whatever the workers need, because another number can change the
            last bits; 0: the CPUs that the workers leave. Never more than before, or than this rank has CPUs.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        most = min(num_threads, rank_cpus(world)) if num_threads else network_threads("cpu", workers, world)
        torch.set_num_threads(min(before, most))
    elif workers:
        torch.set_num_threads(min(before, network_threads(device.type, workers, world)))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _missing_for_compile(device: str) -> str:
    """Name what torch.compile misses on this machine to build code for a device; "" where everything is installed.

    Code for CPUs is C++. For GPUs Triton builds a small module of Python's in C, which images made to run programs lack
    the compiler or the header files for.
    """
    variable, words, programs = "CC", "a C compiler", ["gcc", "clang"]
    if device == "cpu":
        variable, words, programs = "CXX", "a C++ compiler", ["g++", "c++", "clang++"]
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *programs) if name):
        return f"{words}: expected {' or '.join(programs)}, or {variable}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if device != "cpu" and not header.exists():
        return f"Python's header files: expected {header} (python3-dev)"
    return ""
