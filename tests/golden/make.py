"""Makes one set of golden artefacts with the commands alone: `python -m tests.golden.make tests/golden/NAME`.

A set is what a user of this version has on his disk: shards with their index, a teacher's weights, two caches, an
interrupted run, a finished one, a sweep. It is made once for each version whose formats are new and then never touched:
tests/test_golden.py opens, extends, resumes and exports every set for ever. `--checkout DIR` makes it with the code of
another checkout, which is how the set of a version that has passed is made.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import save_file

CLASSES = 100
TEACHER = ["--teacher", "resnet10t", "--teacher-arg", "channels=[4,4,8,24]", "--teacher-arg", "stem_width=4"]
VIEWS = {
    "lowrank": ["--recipe", "deit", "--size", "32", "--set", "block_size=4", "--views-per-unit", "3"],
    "dense": ["--recipe", "plain", "--size", "32", "--set", "mixup_alpha=0.8", "--set", "flip=0.5",
              "--set", "block_size=4", "--views-per-unit", "2"],
}  # fmt: skip
RECORD = {
    "lowrank": ["--record", "lowrank", "--bytes", "48"],
    "dense": ["--record", "dense"],
}
NUM_VIEWS = {"lowrank": 3, "dense": 4}
STUDENT = [
    "--model", "deit_tiny_distilled_patch16_224", "--epochs", "4", "--batch-size", "8", "--workers", "0",
    "--set", "repeats=1", "--set", "warmup_epochs=0", "--set", "lr=0.01", "--log-every", "1",
    *(f"--set=model_args.{arg}" for arg in ("patch_size=8", "embed_dim=8", "depth=1", "num_heads=2")),
]  # fmt: skip


def cache_command(folder: Path, kind: str, *, cache: Path | None = None, views: int | None = None) -> list[str]:
    """`cache-teacher` as it made the cache of that kind; `views` to extend it, `cache` where a copy of it is."""
    return [
        "cache-teacher", "--shards", str(folder / "train"), "--cache", str(cache or folder / f"{kind}.zarr"), *TEACHER,
        "--teacher-weights", str(folder / "teacher.safetensors"), "--views", str(views or NUM_VIEWS[kind]),
        *VIEWS[kind], *RECORD[kind], "--batch-size", "16", "--workers", "0",
    ]  # fmt: skip


def student_command(folder: Path, out: Path) -> list[str]:
    """`train-student` as it made the runs of the set."""
    return [
        "train-student", "--shards", str(folder / "train"), "--val-shards", str(folder / "val"),
        "--cache", str(folder / "dense.zarr"), *STUDENT, "--distill", "soft", "--tau", "2", "--lambda", "0.5",
        "--out", str(out),
    ]  # fmt: skip


def sweep_command(folder: Path, out: Path, *, distill: str = "soft") -> list[str]:
    """`ablate` as it made the sweep of the set."""
    return [
        "ablate", "--shards", str(folder / "train"), "--val-shards", str(folder / "val"),
        "--cache", str(folder / "lowrank.zarr"), *STUDENT, "--epochs", "3", "--distill", distill, "--tau", "2",
        "--lambda", "0,0.5", "--out", str(out),
    ]  # fmt: skip


def write_photos(folder: Path, num_images: int) -> None:
    """Smooth images of four classes as JPEG, an ImageFolder."""
    rng = np.random.default_rng(num_images)
    for n in range(num_images):
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = folder / f"class{n % 4:03d}" / f"photo{n:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.resize(small, (48, 40), interpolation=cv2.INTER_CUBIC)
        path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())


def write_teacher(path: Path) -> None:
    """A tiny CNN with random weights, and answers as peaked as a trained one's."""
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=CLASSES, channels=(4, 4, 8, 24), stem_width=4)
    with torch.no_grad():
        network.fc.weight.mul_(4.0)
    save_file(network.state_dict(), path)


class Maker:
    """Runs commands of one checkout in the folder of the set, so that no path of this machine gets into it."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._cli, self._folder = checkout / "cli.py", folder
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}

    def run(self, command: list[str]) -> None:
        """To its end."""
        subprocess.run([sys.executable, self._cli, *command], cwd=self._folder, env=self._environment, check=True)

    def interrupt(self, command: list[str], metrics: Path, epochs: int) -> None:
        """SIGTERM after so many epochs: the run saves a checkpoint and says 75."""
        process = subprocess.Popen([sys.executable, self._cli, *command], cwd=self._folder, env=self._environment)
        while process.poll() is None and _epochs(self._folder / metrics) < epochs:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        if process.wait() != 75:
            raise SystemExit(f"expected exit code 75, got {process.returncode}")


def _epochs(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    lines = metrics.read_bytes().split(b"\n")[:-1]
    return sum(json.loads(line)["kind"] == "epoch" for line in lines)


def make(folder: Path, checkout: Path) -> None:
    """The whole set."""
    folder.mkdir(parents=True)
    write_photos(folder / "photos" / "train", 24)
    write_photos(folder / "photos" / "val", 8)
    (folder / "classes.txt").write_text("".join(f"class{n:03d}\n" for n in range(CLASSES)))
    write_teacher(folder / "teacher.safetensors")
    maker, here = Maker(checkout.resolve(), folder), Path()
    for split in ("train", "val"):
        names = ["--class-names", "classes.txt"]
        maker.run(["make-shards", f"photos/{split}", split, "--samples-per-shard", "12", *names])
    for kind in VIEWS:
        maker.run(cache_command(here, kind))
    maker.run(student_command(here, Path("run")))
    maker.interrupt(student_command(here, Path("interrupted")), Path("interrupted/metrics.jsonl"), 2)
    maker.run(sweep_command(here, Path("sweep")))
    shutil.rmtree(folder / "photos")
    for checkpoints in folder.rglob("checkpoints"):
        kept = 0 if "cells" in checkpoints.parts else 2  # the newest of a run, two files; none of the sweep's
        for path in sorted(checkpoints.iterdir(), reverse=True)[kept:]:
            path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[2])
    arguments = parser.parse_args()
    make(arguments.folder, arguments.checkout)
