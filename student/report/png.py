"""The same figures as PNG files, for papers and slides; matplotlib without its global state."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from shards.text.escapes import visible
from student.learn.losses.table import NONE
from student.report.charts import Level, ink_on, ramp
from student.report.runs_page import curve, labels
from student.report.stats import SeedGroup, groups
from student.run.run_reader import Run
from student.sweep.grid import Grid
from student.sweep.sweep_directory import Sweep

_COLOURS = ("#0072b2", "#c8501a", "#00805c", "#a8447f", "#8a6d00", "#5b4bb5", "#3d7fa6", "#5a6473")
_DPI = 160


def sweep_pngs(sweep: Sweep, folder: Path) -> Iterator[Path]:
    """Write one map of top-1 per number of views and set of teachers; none for a sweep of nothing but baselines."""
    found = groups(sweep)
    if not any(group.cell.distill != NONE for group in found):
        return
    for views, teachers in itertools.product(sweep.grid.views_used, sweep.grid.teachers):
        shown = [group for group in found if group.cell.views_used == views]
        name = "top1-map" + (f"-{views}-views" if views is not None else "") + (f"-{teachers}" if teachers else "")
        path = folder / f"{name}.png"
        save_png(_map_figure(shown, sweep.grid, views, teachers), path)
        yield path


def run_pngs(runs: Sequence[Run], folder: Path, teacher: Level | None = None) -> Iterator[Path]:
    """Write top-1 (with the teacher's) and loss curves of several runs; yields the files."""
    for metric, label in (("top1", "top-1 on the validation set, %"), ("loss", "training loss")):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        for number, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
            line = curve(run, name, metric, number)
            axes.plot(line.x, line.y, color=_COLOURS[number % 8], label=name)
        if teacher is not None and metric == "top1":
            axes.axhline(teacher.y, color="#14181f", linestyle=":", label=teacher.name)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        path = folder / f"{metric}.png"
        save_png(figure, path)
        yield path


def _map_figure(found: Sequence[SeedGroup], grid: Grid, views: int | None, teachers: str) -> Figure:
    weights = sorted(weight for weight in grid.weights if weight > 0)
    columns = grid.columns()
    by_setting = {group.cell.setting: group for group in found}
    cells = [[by_setting.get((kind, weight, tau, views, teachers)) for kind, tau in columns] for weight in weights]
    values = [[group.mean("top1") if group else math.nan for group in row] for row in cells]
    figure = Figure(figsize=(1.6 + 1.05 * len(columns), 1.7 + 0.62 * len(weights)), layout="constrained")
    axes = figure.subplots()
    finite = [value for row in values for value in row if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    cmap = ListedColormap([[channel / 255 for channel in ramp(i / 255)] for i in range(256)])
    image = axes.imshow(values, cmap=cmap, vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    for row, line in enumerate(cells):
        for column, group in enumerate(line):
            if group and math.isfinite(mean := group.mean("top1")):
                spread = group.spread("top1")
                ink = ink_on(ramp((mean - low) / (high - low) if high > low else 0.5))
                text = f"{mean:.2f}" + (f"\n± {spread:.2f}" if math.isfinite(spread) else "")
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(columns)), grid.column_names())
    axes.set_yticks(range(len(weights)), [f"λ {weight:g}" for weight in weights])
    base = next((group for group in found if group.cell.distill == NONE), None)
    axes.set_title(_title(base) + (f"; taught by {teachers}" if teachers else ""), fontsize=9)
    figure.colorbar(image, ax=axes, label="top-1, %")
    return figure


def _title(base: SeedGroup | None) -> str:
    if base is None or not base.values("top1"):
        return "top-1, %"
    spread = base.spread("top1")
    return f"no teacher: {base.mean('top1'):.2f}" + (f" ± {spread:.2f}" if math.isfinite(spread) else "") + " %"


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure; the same numbers give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):  # names of runs: neither formulas nor control characters
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(visible(text.get_text()))
    # No software version or date inside: the same numbers give the same file.
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
