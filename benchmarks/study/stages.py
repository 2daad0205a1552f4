"""The stages of a study in order: photos → shards → for each sweep its cache, then its students. Each can be repeated.

Everything is a command of this project, printed before it runs, but for caches of other views' answers (`derived`).
What is finished is found finished, so the same study goes on where it was stopped, cell by cell.

    WORK/shards/{train,val,SET}  WORK/teachers/SET  WORK/caches/NAME  WORK/sweeps/NAME  WORK/times.jsonl
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from timm.data.imagenet_info import ImageNetInfo

from benchmarks.study.derived import derive
from benchmarks.study.settings import Cache, Json, PhotoSet, Settings, SweepSettings, TeacherSettings
from shards.index.shard_index import open_index
from shards.locks import locked
from student.sweep.grid import Cell
from teacher_cache.store.cache import TeacherCache

STUDENT, STUDENT_AND_VIEWS = "student.toml", "student-online.toml"


class Runs(Protocol):
    """What runs the commands; `benchmarks.study.commands.Commands` is one."""

    def run(self, stage: str, *arguments: str | Path) -> None:
        """Run `cli.py ARGUMENTS` for a stage; SystemExit where the study should end."""

    def require_time(self) -> None:
        """SystemExit when the time is up."""


def sweep_path(work: Path, name: str) -> Path:
    """The directory of a sweep."""
    return work / "sweeps" / name


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one study."""

    settings: Settings
    photos: Path
    work: Path
    commands: Runs

    def run(self) -> None:
        """Run what is missing; SystemExit when a command fails, or the time is up."""
        self.work.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            self._shards(split)
        for name, photos in self.settings.sets.items():
            self._set(name, photos)
        self._write_recipes()
        for sweep in self.settings.sweeps:
            for cache in sweep.caches:
                self._cache(cache)
            if sweep.online:
                self._online(sweep)
            else:
                self._sweep(sweep)

    def _shards(self, split: str) -> None:
        shards = self.settings.shards
        words: list[str | Path] = ["--samples-per-shard", str(shards.samples_per_shard), "--workers", "0"]
        if shards.classes == "imagenet":
            # A label is the rank of the class's wnid among the 1,000, so the teacher and the labels agree.
            names = self.work / "classes.txt"
            wnids: list[str] = sorted(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]
            names.write_text("".join(f"{wnid}\n" for wnid in wnids), encoding="utf-8")
            words += ["--class-names", names]
        photos = self.photos / split
        if split == "train" and shards.photos_per_class:
            photos = self._some(split, 0, shards.photos_per_class)
        self.commands.run("shards", "make-shards", photos, self.work / "shards" / split, *words)

    def _set(self, name: str, photos: PhotoSet) -> None:
        """The shards of a further training set."""
        folder = self._some(name, photos.skip, photos.first)
        words = ["--samples-per-shard", str(photos.samples_per_shard), "--workers", "0"]
        labels = [] if photos.labels else ["--no-labels"]
        self.commands.run("shards", "make-shards", folder, self.work / "shards" / name, *words, *labels)

    def _some(self, name: str, skip: int, first: int) -> Path:
        """A folder of links to training photos: of each class `first` (0: all) after the first `skip` by name."""
        folder = self.work / "photos" / name
        for label in sorted(path for path in (self.photos / "train").iterdir() if path.is_dir()):
            (folder / label.name).mkdir(parents=True, exist_ok=True)
            for photo in sorted(label.iterdir())[skip : skip + first if first else None]:
                link = folder / label.name / photo.name
                if not link.is_symlink():
                    link.symlink_to(photo.absolute())
        return folder

    def _write_recipes(self) -> None:
        """The student's settings for --config: for a cache, and with the views for the teacher in the loop."""
        student = "".join(_toml(name, value) for name, value in self.settings.student.items())
        (self.work / STUDENT).write_text(student, encoding="utf-8")
        views = self.settings.views
        for name in self.settings.caches:
            cache = self._made(name)
            fields: dict[str, Json] = {"name": views.recipe, **views.fields, "block_views": cache.views_per_unit}
            text = f"image_size = {views.size}\n{student}{_toml('view', fields)}"
            (self.work / f"{name}-{STUDENT_AND_VIEWS}").write_text(text, encoding="utf-8")

    def _cache(self, name: str) -> None:
        cache, out = self.settings.caches[name], self.work / "caches" / name
        if cache.source:
            self._derived_cache(name, cache, out)
            return
        view = self._views_of(cache)
        record = ["--record", cache.record, *(["--bytes", str(cache.num_bytes)] if cache.num_bytes else [])]
        self.commands.run(
            f"cache {name}", "cache-teacher", "--shards", self._training(cache), "--cache", out,
            *self._teacher(cache), "--batch-size", str(self.settings.teacher.batch_size), "--views", str(cache.views),
            "--views-per-unit", str(cache.views_per_unit), *view, *record, "--workers", "0",
        )  # fmt: skip

    def _views_of(self, cache: Cache) -> list[str]:
        views = self.settings.views
        fields = {key: value for key, value in (cache.view or views.fields).items() if key != "recipe"}
        sets = [f"--set={name}={json.dumps(value)}" for name, value in fields.items()]
        return ["--recipe", str(cache.view.get("recipe", views.recipe)), "--size", str(views.size), *sets]

    def _teacher(self, cache: Cache) -> list[str]:
        teacher = self.settings.teachers[cache.teacher] if cache.teacher else self.settings.teacher
        if teacher.trained_on:
            return ["--teacher-weights", str(self._trained(teacher))]
        args = [f"--teacher-arg={name}={json.dumps(value)}" for name, value in teacher.args.items()]
        return ["--teacher", teacher.name, *(["--teacher-weights", teacher.weights] if teacher.weights else []), *args]

    def _trained(self, teacher: TeacherSettings) -> Path:
        """The weights of a teacher that is trained on one of the sets; one that is trained is found trained."""
        out = self.work / "teachers" / teacher.trained_on
        flags = ({} if "model" in teacher.train else {"pretrained": teacher.name}) | teacher.train
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        self.commands.run(
            "teacher", "train-teacher", "--shards", self.work / "shards" / teacher.trained_on,
            "--val-shards", self.work / "shards" / "val", *words, "--workers", "0", "--out", out,
        )  # fmt: skip
        return out / "weights.safetensors"

    def _training(self, cache: Cache) -> str:
        """The shards of a cache: a set, or several joined."""
        return "::".join(str(self.work / "shards" / name) for name in cache.photos.split("+"))

    def _derived_cache(self, name: str, cache: Cache, out: Path) -> None:
        source, answers = self.work / "caches" / cache.source, cache.answers
        self._cache(cache.source)
        if answers == "same":
            record = ["--record", cache.record, *(["--bytes", str(cache.num_bytes)] if cache.num_bytes else [])]
            self.commands.run(f"cache {name}", "copy-cache", source, out, *record)
            return
        if answers in self.settings.caches:
            self._cache(answers)
            answers = str(self.work / "caches" / answers)
        self.commands.require_time()
        print(f"\ncache {name}: the views of {cache.source}, answers: {cache.answers}", flush=True)
        with TeacherCache.open(source) as opened:
            derive(out, open_index(self._training(self._made(name))), opened, answers)

    def _made(self, name: str) -> Cache:
        """The cache that the teacher made, from which this one may be derived."""
        cache = self.settings.caches[name]
        return self.settings.caches[cache.source] if cache.source else cache

    def _data(self, cache: str) -> list[str | Path]:
        return ["--shards", self._training(self._made(cache)), "--val-shards", self.work / "shards" / "val"]

    def _student(self, sweep: SweepSettings) -> Path:
        """The settings of the students of a sweep, as a file for --config."""
        if not sweep.student:
            return self.work / STUDENT
        path = self.work / f"sweep-{sweep.name}-{STUDENT}"
        fields = {**self.settings.student, **sweep.student}
        path.write_text("".join(_toml(name, value) for name, value in fields.items()), encoding="utf-8")
        return path

    def _sweep(self, sweep: SweepSettings) -> None:
        caches = [word for name in sweep.caches for word in ("--cache", self.work / "caches" / name)]
        taus = ["--tau", ",".join(map(str, sweep.temperatures))] if sweep.temperatures else []
        used = ["--views-used", ",".join(map(str, sweep.views_used))] if sweep.views_used else []
        self.commands.run(
            f"sweep {sweep.name}", "ablate", *self._data(sweep.caches[0]), *caches,
            "--config", self._student(sweep), "--distill", ",".join(sweep.distill),
            "--lambda", ",".join(map(str, sweep.weights)), *taus, *used,
            "--seeds", str(sweep.seeds), "--together", str(sweep.together), "--workers", "0",
            *self._length(sweep), "--out", sweep_path(self.work, sweep.name),
        )  # fmt: skip

    def _length(self, sweep: SweepSettings) -> list[str]:
        epochs = ["--epochs", str(sweep.epochs)] if sweep.epochs else []
        return ["--eval-every", str(self.settings.eval_every), *epochs]

    def _online(self, sweep: SweepSettings) -> None:
        """The teacher in the loop, on the views that the cache holds: the sweep's only cell, seed by seed."""
        cells = sweep_path(self.work, sweep.name) / "cells"
        cells.mkdir(parents=True, exist_ok=True)
        for cell in sweep.grid.cells():
            with locked(cells / f"{cell.name}.lock") as ours:
                if ours:
                    self._online_cell(sweep, cell, cells / cell.name)
                else:
                    print(f"\nsweep {sweep.name}: {cell.name} is being trained by another process", flush=True)

    def _online_cell(self, sweep: SweepSettings, cell: Cell, out: Path) -> None:
        made = self._made(sweep.cache)
        tau = [] if cell.temperature is None else ["--tau", str(cell.temperature)]
        self.commands.run(
            f"sweep {sweep.name}", "train-student", *self._data(sweep.cache), "--online", *self._teacher(made),
            "--config", self.work / f"{sweep.cache}-{STUDENT_AND_VIEWS}", "--distill", cell.distill,
            "--lambda", str(cell.distill_weight), *tau, "--views-used", str(cell.views_used or made.views),
            "--seed", str(cell.seed), "--workers", "0", *self._length(sweep), "--out", out,
        )  # fmt: skip


def _toml(name: str, value: Json) -> str:
    """A line of TOML, or a table after an empty line; JSON's numbers, texts and lists are TOML's."""
    if isinstance(value, dict):
        return f"\n[{name}]\n" + "".join(_toml(key, entry) for key, entry in value.items())
    return f"{name} = {json.dumps(value)}\n"
