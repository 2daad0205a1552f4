"""The PNG files of a report: a map for each number of views of a sweep, curves of runs."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from student.learn.losses.table import NONE
from student.report.charts import Level
from student.report.drawing import line_figure, map_figure, save_png
from student.report.runs_page import curve, labels
from student.report.stats import SeedGroup, groups
from student.run.run_reader import Run
from student.sweep.grid import Grid
from student.sweep.sweep_directory import Sweep


def sweep_pngs(sweep: Sweep, folder: Path) -> Iterator[Path]:
    """Write one map of top-1 per number of views and set of teachers; none for a sweep of nothing but baselines."""
    all_groups = groups(sweep)
    if not any(group.cell.distill != NONE for group in all_groups):
        return
    for views, teachers in itertools.product(sweep.grid.views_used, sweep.grid.teachers):
        shown = [group for group in all_groups if group.cell.views_used == views]
        name = "top1-map" + (f"-{views}-views" if views is not None else "") + (f"-{teachers}" if teachers else "")
        path = folder / f"{name}.png"
        _save_map(shown, sweep.grid, views, teachers, path)
        yield path


def run_pngs(runs: Sequence[Run], folder: Path, teacher: Level | None = None) -> Iterator[Path]:
    """Write top-1 (with the teacher's) and loss curves of several runs, where they have any; yields the files."""
    for metric, label in (("top1", "top-1 on the validation set, %"), ("loss", "training loss")):
        lines = [curve(run, name, metric, n) for n, (run, name) in enumerate(zip(runs, labels(runs), strict=True))]
        lines = [line for line in lines if line.y]
        if lines:
            level = teacher if metric == "top1" else None
            path = folder / f"{metric}.png"
            save_png(line_figure(lines, x_label="epoch", y_label=label, level=level, legend=True), path)
            yield path


def _save_map(all_groups: Sequence[SeedGroup], grid: Grid, views: int | None, teachers: str, path: Path) -> None:
    weights = sorted(weight for weight in grid.weights if weight > 0)
    by_setting = {group.cell.setting: group for group in all_groups}
    columns = grid.columns()
    cells = [[by_setting.get((kind, weight, tau, views, teachers)) for kind, tau in columns] for weight in weights]
    base = next((group for group in all_groups if group.cell.distill == NONE), None)
    figure = map_figure(
        [[group.mean("top1") if group else math.nan for group in row] for row in cells],
        [[_text(group).replace(" ±", "\n±") for group in row] for row in cells],
        rows=[f"λ {weight:g}" for weight in weights],
        columns=grid.column_names(),
        title=_title(base) + (f"; taught by {teachers}" if teachers else ""),
        label="top-1, %",
    )
    save_png(figure, path)


def _text(group: SeedGroup | None) -> str:
    """Mean ± spread over the seeds; "" without a value."""
    if group is None or not group.values("top1"):
        return ""
    spread = group.spread("top1")
    return f"{group.mean('top1'):.2f}" + (f" ± {spread:.2f}" if math.isfinite(spread) else "")


def _title(base: SeedGroup | None) -> str:
    return f"no teacher: {_text(base)} %" if _text(base) else "top-1, %"
