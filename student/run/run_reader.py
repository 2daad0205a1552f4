"""Read run directories into frozen values; a resumed run may hold a step twice.

Percent for top-1 and top-5, shares in [0, 1] for agreement and waiting, nats for entropies. A number that is missing or
not finite is NaN here, so that charts leave a gap instead of drawing a lie.
"""

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from shards.documents import matching
from shards.errors import RunError
from shards.own_folder import what_is
from shards.text.figures import count
from shards.values import check_fields
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.run_files import MetricLine, RunFiles, best_epoch, metric_line, read_json, whole_lines

METRICS = (
    "loss",
    "base_loss",
    "distill_loss",
    "lr",
    "images_per_s",
    "data_wait_share",
    "teacher_agreement",
    "student_entropy",
    "teacher_entropy",
    "seconds",
)
_TABLES = ("view_overrides", "model_args")  # objects in JSON
_LARGEST = 1e300  # an integer of JSON may be larger than any float
_MANIFESTS = f"step-{'[0-9]' * 9}.json"
VALIDATION = ("top1", "top5", "cls_top1", "dist_top1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of metrics: `step` optimiser steps done, `epoch` from 0, and every metric by name (NaN if absent)."""

    step: int
    epoch: int
    values: Mapping[str, float]

    def __getitem__(self, metric: str) -> float:
        """The metric, NaN if the run did not say."""
        return self.values.get(metric, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One student training as found on disk; `steps` and `epochs` ascend and hold each step once."""

    path: Path
    config: Mapping[str, Any]
    steps: tuple[Point, ...]
    epochs: tuple[Point, ...]
    summary: Mapping[str, Any]

    @property
    def state(self) -> str:
        """Finished, or how far it is."""
        if self.finished:
            return "finished"
        epochs = self.setting("epochs", "?")
        return f"unfinished: step {self.last_step}, {len(self.epochs)} of {count(epochs, 'epoch')}"

    @property
    def last_step(self) -> int:
        """The last step that was saved or told of; 0 where there is none."""
        saved = [int(p.stem.removeprefix("step-")) for p in matching(RunFiles(self.path).checkpoints, _MANIFESTS)]
        return max([point.step for point in (*self.steps, *self.epochs)] + saved, default=0)

    @property
    def written(self) -> datetime.datetime | None:
        """The time at which the run was finished, local; None where it is not."""
        summary = RunFiles(self.path).summary
        return datetime.datetime.fromtimestamp(summary.stat().st_mtime) if summary.is_file() else None

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether the run wrote its summary."""
        return bool(self.summary)

    def setting(self, key: str, default: Any = None) -> Any:
        """A configuration value, looked up at the top level and then one level deep."""
        for section in (self.config, *self.config.values()):
            if isinstance(section, Mapping) and not isinstance(section.get(key), Mapping | None):
                return section[key]
        return default

    def result(self, metric: str) -> float:
        """The final value: the summary's, else the last epoch's that has one; NaN if there is none."""
        value = _number(self.summary.get(metric))
        if math.isfinite(value):
            return value
        return next((point[metric] for point in reversed(self.epochs) if math.isfinite(point[metric])), math.nan)

    def best_epoch(self) -> tuple[int, float]:
        """The best epoch and its validated top-1, as `student.run.run_files.best_epoch` says."""
        return best_epoch((point.epoch, point["top1"]) for point in self.epochs if math.isfinite(point["top1"]))


def is_run(path: Path) -> bool:
    """Whether the directory holds a run."""
    return RunFiles(path).config.is_file()


def is_finished(path: Path) -> bool:
    """Whether the directory holds a run that wrote its summary."""
    return is_run(path) and RunFiles(path).summary.is_file()


def recipe_before(path: Path) -> dict[str, Any]:
    """The recipe fields of the run in a directory; empty where there is none yet."""
    return dict(read_json(RunFiles(path).config).get("recipe", {})) if is_run(path) else {}


def precision_before(path: Path) -> str | None:
    """The precision of the run in a directory; None where there is none yet."""
    precision = read_json(RunFiles(path).config).get("train", {}).get("precision") if is_run(path) else None
    return precision if isinstance(precision, str) else None


def threads_before(path: Path) -> int:
    """The threads of torch in which the run in a directory began; 0 where it does not say, or there is none yet."""
    threads = read_json(RunFiles(path).config).get("train", {}).get("threads") if is_run(path) else None
    return threads if isinstance(threads, int) and threads > 0 else 0


def views_before(path: Path) -> int | None:
    """The number of views that the run in a directory cycles through; None where they never end, or there is none."""
    num_views = read_json(RunFiles(path).config).get("data", {}).get("num_views") if is_run(path) else None
    return num_views if isinstance(num_views, int) else None


def read_run(path: Path) -> Run:
    """The run in a directory, finished or not.

    Raises:
        RunError: naming the file, the line and what is wrong with it. A last line without its newline is being written,
            or was when the run was killed, and is left out.
    """
    if not is_run(path):
        got = f", but {what}" if (what := what_is(path)) else f" (expected {RunFiles(path).config})"
        raise RunError(f"{path}: no run here{got}; give the --out of a train-student")
    files = RunFiles(path)
    points: dict[str, dict[tuple[int, int], Point]] = {"step": {}, "epoch": {}}
    for kind, point in _metric_lines(files.metrics):
        if kind in points:
            points[kind][point.epoch, point.step] = point  # said again after a resume: as said last
    return Run(
        path=path,
        config=_config(files.config),
        steps=_in_order(points["step"]),
        epochs=_in_order(points["epoch"]),
        summary=read_json(files.summary) if files.summary.is_file() else {},
    )


def _config(path: Path) -> dict[str, Any]:
    """The configuration of a run; RunError naming file and field when a setting is of another type than it has."""
    config = read_json(path)
    for part, cls in (("recipe", StudentRecipe), ("train", TrainSettings)):
        section = config.get(part, {})
        if not isinstance(section, dict):
            raise RunError(f"{path}: {part}: expected an object, got {type(section).__name__}; restore the file")
        for values in (config, section):
            known = {item.name for item in fields(cls) if item.name not in _TABLES}
            settings = {name: value for name, value in values.items() if name in known and value is not None}
            try:
                check_fields(cls, settings, part)
            except ValueError as error:
                raise RunError(f"{path}: {error}; restore the file") from error
    return config


def finite_json(value: Any) -> Any:
    """The value with every number that is not finite as None: JSON has neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metric_lines(path: Path) -> Iterator[tuple[str, Point]]:
    for number, line in whole_lines(path):
        if not line.strip():
            continue
        head = metric_line(line, f"{path}, line {number}")
        yield head.kind, _point(head, json.loads(line))


def _point(head: MetricLine, line: Mapping[str, Any]) -> Point:
    flat = {**line, **(head.val or {})} if head.kind == "epoch" else line
    # The validation loss would hide the training loss under the same name.
    flat = {**flat, "loss": line.get("loss")}
    names = METRICS + VALIDATION
    values = {name: value for name in names if math.isfinite(value := _number(flat.get(name)))}
    return Point(step=head.step, epoch=head.epoch, values=values)


def _in_order(points: Mapping[tuple[int, int], Point]) -> tuple[Point, ...]:
    return tuple(points[key] for key in sorted(points))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < _LARGEST else math.nan
