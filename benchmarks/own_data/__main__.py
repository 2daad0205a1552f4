"""Run the commands for each set that are missing, then print what came of them."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.own_data import __doc__ as story
from benchmarks.own_data.sets import made_sets, write_set
from benchmarks.study.commands import Commands, read_times
from student.commands.distill import teacher_weights, top1_name

ARMS = ("none", "soft", "hard")
TEACHER = "efficientnet_lite0"


def run_set(name: str, photos: Path, work: Path, seeds: int, commands: Commands) -> None:
    """Teacher, cache and students of one set, seed by seed; SystemExit when a command fails or the time is up."""
    place = work / name
    teacher, answers = _teacher(place)
    for split in ("train", "val"):
        commands.run(f"{name} shards", "make-shards", photos / split, place / "shards" / split)
    train, val = ("--shards", place / "shards" / "train"), ("--val-shards", place / "shards" / "val")
    commands.run(f"{name} teacher", "train-teacher", *train, *val, "--pretrained", TEACHER, "--out", teacher)
    weights, cache = teacher_weights(teacher, answers), ("--cache", answers)
    commands.run(f"{name} cache", "cache-teacher", *train, "--teacher-weights", weights, *cache)
    for seed in range(seeds):
        for arm in ARMS:
            taught = () if arm == "none" else cache
            commands.run(
                f"{name} {arm}-s{seed}", "train-student", *train, *val, *taught, "--distill", arm,
                "--seed", str(seed), "--out", run_path(work, name, arm, seed),
            )  # fmt: skip


def _teacher(place: Path) -> tuple[Path, Path]:
    """Where the teacher's run of a set and its cache are."""
    return place / "teacher", place / "teacher.zarr"


def run_path(work: Path, name: str, arm: str, seed: int) -> Path:
    """Where a student's run is."""
    return work / name / "runs" / f"{arm}-s{seed}"


def result_of(name: str, work: Path, seeds: int) -> dict[str, Any]:
    """Top-1 by seed, its mean, null where no run has finished, minutes; teacher: the weights of its cache."""
    teacher, answers = _teacher(work / name)
    row: dict[str, Any] = {"name": name, "teacher": _top1([teacher], top1_name(teacher_weights(teacher, answers)))}
    times = read_times(work)
    for arm in ARMS:
        row[arm] = _top1([run_path(work, name, arm, seed) for seed in range(seeds)])
        spent = [time for seed in range(seeds) if (time := times.get(f"{name} {arm}-s{seed}")) is not None]
        row[arm]["minutes"] = [round(time["wall_s"] / 60, 1) for time in spent]
        row[arm]["cpu_minutes"] = [round(time["cpu_s"] / 60, 1) for time in spent]
    return row


def _top1(runs: list[Path], metric: str = "top1") -> dict[str, Any]:
    files = [run / "summary.json" for run in runs]
    by_seed = [json.loads(file.read_text())[metric] if file.is_file() else None for file in files]
    known = [value for value in by_seed if value is not None]
    return {"top1": by_seed, "mean": statistics.fmean(known) if known else None}


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    lines = ["| set | teacher | none | soft | hard | soft − none | seeds |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        none, soft = row["none"]["top1"], row["soft"]["top1"]
        pairs = [b - a for a, b in zip(none, soft, strict=True) if a is not None and b is not None]
        means = [row[arm]["mean"] for arm in ("teacher", *ARMS)]
        shown = ["–" if mean is None else f"{mean:.1f}" for mean in means]
        gain = f"{statistics.fmean(pairs):+.1f}" if pairs else "–"
        lines.append(f"| {row['name']} | {' | '.join(shown)} | {gain} | {len(pairs)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.own_data", description=story, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="where images, shards, caches, runs and times go")
    parser.add_argument("--photos", type=Path, help="Imagenette, a folder with train/ and val/")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="another set: has train/ and val/")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this set; again for more")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default 3)")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--json", action="store_true", help="print one object a set")
    arguments = parser.parse_args()
    made = made_sets(arguments.photos)
    folders = {folder.resolve().name: folder for folder in arguments.folder}
    unknown = sorted({*(arguments.only or ())} - {*made, *folders})
    if unknown:
        parser.error(f"--only {unknown[0]}: expected one of {', '.join([*made, *folders])}")
    names = [name for name in [*folders, *made] if not arguments.only or name in arguments.only]
    if not arguments.tables:
        arguments.work.mkdir(parents=True, exist_ok=True)
        with Commands(arguments.work, arguments.minutes) as commands:
            for name in names:
                if name in made and name not in folders:
                    write_set(made[name](), arguments.work / name / "photos")
                run_set(
                    name, folders.get(name, arguments.work / name / "photos"), arguments.work, arguments.seeds, commands
                )
    rows = [result_of(name, arguments.work, arguments.seeds) for name in names]
    print("\n".join(map(json.dumps, rows)) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
