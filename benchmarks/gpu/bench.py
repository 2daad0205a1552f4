"""What every section is given, and how a section runs a command of the project in a process of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import Sizes
from shards.index.shard_index import ShardIndex

ROOT = Path(__file__).parents[2]
FREE_CACHE = "free.zarr"
_COMMAND_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One run of the benchmark.

    Attributes:
        folder: where sections write; removed at the end. index: of the shards in it.
        workers: rendering processes. clock: of the device, with what is left of the budget.
    """

    folder: Path
    sizes: Sizes
    index: ShardIndex
    workers: int
    clock: Clock

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return self.clock.device

    @property
    def cache(self) -> Path:
        """The cache of a teacher that costs nothing; the section "start" makes it."""
        return self.folder / FREE_CACHE


def differing(figures: Mapping[str, float], most: float) -> list[str]:
    """Return a sentence for each difference that is larger than allowed, or is no number."""
    return [f"{name}: differs by {value:.3g}, expected at most {most:g}" for name, value in figures.items()
            if not value <= most]  # fmt: skip


def start_command(
    words: list[str], *, module: str | None = None, environment: Mapping[str, str] | None = None, device: str = ""
) -> "subprocess.Popen[str]":
    """Start `python cli.py WORDS` (or `python -m MODULE WORDS`); its output is read from the pipe."""
    where = ["-m", module] if module else [str(ROOT / "cli.py")]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [own.get("PYTHONPATH")])])} | dict(
        environment or {}
    )
    if device == "cpu":
        own["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, *where, *words], env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def output_of(process: "subprocess.Popen[str]", *, expected: tuple[int, ...] = (0,)) -> str:
    """Wait for the end of a command and return what it printed; RuntimeError with its last lines for another code."""
    try:
        printed, _ = process.communicate(timeout=_COMMAND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        printed = process.communicate()[0] + f"\nstill running after {_COMMAND_S:g} s"
    if process.returncode not in expected:
        words = " ".join(str(word) for word in process.args[1:4])  # type: ignore[index]
        raise RuntimeError(f"{words}: exit code {process.returncode}, expected {expected}: {printed[-800:]}")
    return printed


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port
