"""SIGTERM at random moments of the start of a command: `python -m tests.term_at_start [--times 50] [--seed 0]`.

A command is started as a user starts it. From the moment in which its handler stands (the kernel says so) a random
time passes, from nothing to well into the run, and SIGTERM is sent. Every one must end with 75: "run it again".
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shards.signals import REQUEUE_EXIT_CODE
from tests.student_tiny import CLASSES, SIZE, linear_teacher, make_cache, views, write_shards

ROOT = Path(__file__).parent.parent
LATEST_S = 4.0
"""Later than the imports: by then the command trains or renders, where the machine is not too busy."""


class Ended(NamedTuple):
    """One start: the command, seconds until the handler stood, the delay after it, how it ended, and what it said."""

    command: str
    handler_s: float
    delay_s: float
    code: int
    said: str


def commands(folder: Path) -> dict[str, list[str]]:
    """Command lines that run for much longer than they are given, on shards and a cache made in `folder`."""
    index = write_shards(folder / "train")
    recipe = views()
    make_cache(folder / "c.zarr", index, recipe, num_views=2, teacher=linear_teacher(recipe))
    data = ["--shards", str(folder / "train")]
    student = [
        *data, "--cache", str(folder / "c.zarr"), "--model", "deit_tiny_distilled_patch16_224", "--epochs", "100000",
        "--batch-size", "16", "--set", "repeats=1", "--set", "warmup_epochs=0", "--set", "model_args.depth=1",
        "--set", f"model_args.patch_size={SIZE}", "--workers", "0",
    ]  # fmt: skip
    return {
        "cache-teacher": [
            *data, "--cache", str(folder / "new.zarr"), "--teacher", "test_resnet.r160_in1k",
            "--teacher-weights", str(folder / "teacher.safetensors"), "--views", "60000",
            "--recipe", "plain", "--size", str(SIZE), "--workers", "0",
        ],
        "train-student": [*student, "--out", str(folder / "run")],
        "ablate": [*student, "--val-shards", str(folder / "train"), "--out", str(folder / "sweep")],
    }  # fmt: skip


def start_and_term(command: str, words: Sequence[str], delay_s: float) -> Ended:
    """Start it, wait until it catches SIGTERM, wait `delay_s` more, send SIGTERM, and see how it ends."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "cli.py", command, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while process.poll() is None and not _catches(process.pid, signal.SIGTERM):
        time.sleep(0.002)
    handler_s = time.monotonic() - began
    time.sleep(delay_s)
    process.send_signal(signal.SIGTERM)
    try:
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    return Ended(command, handler_s, delay_s, process.returncode, said)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: the mask that the kernel keeps."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def moments(times: int, seed: int, latest_s: float = LATEST_S) -> list[float]:
    """Delays in seconds: one at random from each of so many parts, the early ones shorter."""
    draws = random.Random(seed)
    return [latest_s * ((n + draws.random()) / times) ** 2 for n in range(times)]


def save_teacher(folder: Path) -> None:
    """Random weights for the teacher of `commands`, so that nothing is fetched."""
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("test_resnet", num_classes=CLASSES).state_dict()
    save_file(state, folder / "teacher.safetensors")


def main() -> int:
    """Run it; 1 when a start ended in another way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_teacher(folder)
        lines = list(commands(folder).items())
        wrong = 0
        for n, delay_s in enumerate(moments(given.times, given.seed)):
            ended = start_and_term(*lines[n % len(lines)], delay_s)
            wrong += ended.code != REQUEUE_EXIT_CODE
            said = ended.said.strip().splitlines()
            print(f"{ended.command:14} handler {ended.handler_s:.3f} s, TERM {ended.delay_s:.3f} s later: {ended.code}")
            print(f"    {said[-1] if said else ''}", flush=True)
    print(f"{wrong} of {given.times} ended with another code than {REQUEUE_EXIT_CODE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
