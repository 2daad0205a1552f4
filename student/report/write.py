"""`report`: one self-contained HTML page, PNG figures and a CSV, of several runs or of a sweep.

What draws is imported after the runs have been read, so that a refusal does not wait for matplotlib.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import atomic_file
from shards.errors import RunError
from shards.names import as_path
from shards.own_folder import is_sweep_folder, is_weights, suggestion, what_is
from shards.text.escapes import csv_cell, visible
from student.report.charts import Level
from student.run.run_reader import VALIDATION, Run, is_run, read_run
from student.sweep.sweep_directory import Sweep, read_sweep
from teacher_cache.network.weights_metadata import BEST_WEIGHTS
from teacher_cache.store.spec import TeacherSpec

_RESULTS = (*VALIDATION, "teacher_agreement", "epochs", "steps", "images", "seconds")
_SETTINGS = ("model", "distill", "distill_weight", "temperature", "seed", "views_used", "teachers")
_NOT_OF_SPEC = ("kind", "weight")  # what a configuration says of a teacher in the loop, beside its fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Name the files of a report and the unfinished runs; a file that was not requested is None.

    `teacher` is the line that it drew, None where there is none.
    """

    html: Path
    pngs: tuple[Path, ...]
    csv: Path | None
    unfinished: tuple[Run, ...] = ()
    teacher: Level | None = None


def write_report(
    paths: Sequence[Path],
    *,
    html: Path | None = None,
    png_dir: Path | None = None,
    csv_path: Path | None = None,
    teacher: str = "",
) -> ReportFiles:
    """Report run directories, or one sweep directory.

    Args:
        paths: runs, or exactly one sweep.
        html: where the page goes; None: `report.html` in the sweep, or beside the first run.
        png_dir: where PNG figures go; None writes none.
        csv_path: where the CSV goes; None writes none.
        teacher: its top-1 in percent, or the directory of the run that trained it; drawn as a line. "" draws none. A
            run stands for the weights that taught the students, of its last or best epoch; where no student was taught
            by it, of the best one.

    Raises:
        ValueError: no path, a sweep among other paths, or a teacher that is neither. RunError: a directory that is no
            run and no sweep, or a damaged file.
    """
    results = read(paths)
    level = teacher_level(teacher, results) if teacher else None
    from student.report.runs_page import runs_page
    from student.report.sweep_page import sweep_page

    if isinstance(results, Sweep):
        page, html = sweep_page(results, teacher=level), html or results.path / "report.html"
    else:
        page, html = runs_page(results, teacher=level), html or results[0].path.parent / "report.html"
    _write(html, page)
    if csv_path is not None:
        _write(csv_path, report_csv(results))
    pngs = _pngs(results, png_dir, level) if png_dir is not None else ()
    return ReportFiles(
        html=html,
        pngs=pngs,
        csv=csv_path,
        unfinished=() if isinstance(results, Sweep) else tuple(run for run in results if not run.finished),
        teacher=level,
    )


def teacher_level(teacher: str, results: Sweep | Sequence[Run]) -> Level:
    """Return the teacher's top-1 as a line of the charts: of a number in percent, or of the run that trained it.

    Args:
        teacher, results: as of `write_report`, and what it reports.
    """
    try:
        level = Level("teacher", float(teacher))
    except ValueError:
        level = _level_of(read_run(as_path("teacher", teacher)), results)
    if not 0 <= level.y <= 100:
        raise ValueError(
            f"teacher: expected its top-1 in percent or a run that was evaluated (--val-shards), got {teacher!r} "
            f"with top-1 {level.y}"
        )
    return level


def _level_of(teacher: Run, results: Sweep | Sequence[Run]) -> Level:
    """Return the level of those weights of a teacher's run that taught the students, and name their epoch."""
    last, best = teacher.result("top1"), teacher.result("best_top1")
    epochs, best_epoch = teacher.result("epochs"), teacher.result("best_epoch") + 1
    if math.isnan(best + best_epoch + epochs):
        return Level("teacher", last)  # it kept no best epoch, or has not finished
    if best_epoch != epochs and _taught_by_last_epoch(teacher.path, results):
        return Level(f"teacher, last epoch {epochs:g} of {epochs:g}", last)
    return Level(f"teacher, best epoch {best_epoch:g} of {epochs:g}", best)


def _taught_by_last_epoch(teacher: Path, results: Sweep | Sequence[Run]) -> bool:
    """Tell whether the students of this teacher learnt from the weights of its last epoch alone."""
    from teacher_cache.network.teacher import weights_of_cache

    runs = [result.run for result in results.results] if isinstance(results, Sweep) else results
    specs = {spec for run in runs if run is not None for spec in _teachers(run)}
    files = {weights_of_cache(teacher, spec) for spec in specs} - {teacher}  # the folder: neither file
    return bool(files) and teacher / BEST_WEIGHTS not in files


def _teachers(run: Run) -> Iterator[TeacherSpec]:
    """Yield what the configuration of a run says of each network that taught it; RunError naming a damaged file."""
    identity: Mapping[str, Any] = run.config.get("teacher", {})
    try:
        for one in identity.get("teachers", [identity]):
            kind = one.get("kind")
            if kind in ("cache", "online"):
                fields = one["teacher"] if kind == "cache" else {k: v for k, v in one.items() if k not in _NOT_OF_SPEC}
                yield TeacherSpec.from_json(fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / 'config.json'}: teacher: {error}; restore the file") from error


def read(paths: Sequence[Path]) -> Sweep | list[Run]:
    """Read what the paths hold: one sweep, or runs; errors as `write_report`."""
    if not paths:
        raise ValueError("report: expected run directories or one sweep directory, got none")
    sweeps = [path for path in paths if is_sweep_folder(path)]
    if sweeps and len(paths) > 1:
        raise ValueError(f"report: {sweeps[0]} is a sweep; report it alone, or give its cells/* as runs")
    if sweeps:
        return read_sweep(paths[0])
    for path in paths:
        if not is_run(path):
            got = "neither a run (config.json) nor a sweep (sweep.json)" if path.exists() else "no such folder"
            got += f", but {what}" if (what := what_is(path)) else ""
            meant = suggestion(path, lambda other: is_run(other) or is_sweep_folder(other))
            meant = meant or (f"give its run {path.parent}" if is_weights(path) and is_run(path.parent) else "")
            raise RunError(f"{path}: {got}; {meant or 'give the --out of train-student, train-teacher or ablate'}")
    return [read_run(path) for path in paths]


def report_csv(results: Sweep | Sequence[Run]) -> str:
    """One line per run: name, state, settings, results; empty fields for what is not there, never a number."""
    from student.report.runs_page import labels

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "state", *_SETTINGS, *_RESULTS))
    if isinstance(results, Sweep):
        for result in results.results:
            model = result.run.setting("model", "") if result.run is not None else ""
            row = {"model": model, **result.cell.to_json()}
            writer.writerow(map(csv_cell, (result.cell.name, result.status.state, *_row(row, result.run))))
    else:
        for run, name in zip(results, labels(results), strict=True):
            row = {key: run.setting(key) for key in _SETTINGS}
            writer.writerow(map(csv_cell, (name, "done" if run.finished else "unfinished", *_row(row, run))))
    return text.getvalue()


def _row(settings: dict[str, object], run: Run | None) -> list[object]:
    settings_of_run = ["" if settings.get(key) is None else settings[key] for key in _SETTINGS]
    values = [run.result(metric) if run is not None else math.nan for metric in _RESULTS]
    return [*settings_of_run, *("" if not math.isfinite(value) else repr(value) for value in values)]


def _pngs(results: Sweep | list[Run], folder: Path, teacher: Level | None) -> tuple[Path, ...]:
    from student.report.png import run_pngs, sweep_pngs

    return tuple(sweep_pngs(results, folder) if isinstance(results, Sweep) else run_pngs(results, folder, teacher))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(visible(text).encode())
