"""Two ranks on one GPU, killed and begun again, through the command line; NCCL in a world of one."""

import json
import signal
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.gpu.bench import Bench, free_port, output_of, start_command
from student.run.checkpoint import saved_steps

_RANKS = 2


def ranks(bench: Bench) -> dict[str, Any]:
    """A run of two ranks over gloo to its end; the same killed after a checkpoint and resumed: equal, or how far apart.

    Equal bits are promised for a CPU alone.
    """
    collective = output_of(
        start_command([bench.device.type, "4"], module="benchmarks.gpu.nccl", device=bench.device.type)
    )
    whole, killed = bench.folder / "whole", bench.folder / "killed"
    for process in _start(bench, whole):
        output_of(process)
    processes = _start(bench, killed)
    until = time.monotonic() + 60
    while not saved_steps(killed / "checkpoints") and time.monotonic() < until:
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        output_of(process, expected=(-signal.SIGKILL, 0))
    was_killed = not (killed / "summary.json").exists()
    resumed = [output_of(process) for process in _start(bench, killed)]
    gap = _largest_difference(whole, killed)
    summary = json.loads((killed / "summary.json").read_text())
    wrong = [] if gap <= 1e-2 else [f"weights of the resumed run differ by {gap:.3g}"]
    return {
        "world_of_one": collective.strip().splitlines()[-1],
        "was_killed": was_killed,
        "resumed": any("resum" in text or "goes on" in text for text in resumed),
        "killed_is_uninterrupted": gap == 0,
        "killed_minus_uninterrupted": gap,
        "world_size": summary.get("world_size"),
        "wrong": wrong,
    }


def _start(bench: Bench, out: Path) -> list[Any]:
    sizes = bench.sizes
    arguments = [f"model_args.{name}={value}" for name, value in sizes.student_args]
    words = ["train-student", "--shards", str(bench.folder / "shards"), "--cache", str(bench.cache), "--out", str(out)]
    words += ["--model", sizes.students[0][1], "--batch-size", str(sizes.ranks_batch), "--epochs", "1"]
    words += ["--checkpoint-every", "2", "--workers", str(min(bench.workers, 4)), "--device", bench.device.type]
    words += [word for setting in (*arguments, "repeats=1", "warmup_epochs=0") for word in ("--set", setting)]
    port = str(free_port())
    processes = []
    for rank in range(_RANKS):
        place = {"RANK": str(rank), "WORLD_SIZE": str(_RANKS), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(_RANKS)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            start_command(words, module="benchmarks.gpu.rank", environment=place, device=bench.device.type)
        )
    return processes


def _largest_difference(a: Path, b: Path) -> float:
    first, second = (load_file(folder / "weights.safetensors") for folder in (a, b))
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)
