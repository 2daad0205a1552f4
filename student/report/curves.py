"""The curves of a sweep: over epochs, over τ, over the number of views; means with the range of the seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from student.learn.losses.table import NONE
from student.report.charts import Level, Series, changes
from student.report.drawing import line_chart
from student.report.page import html, legend
from student.report.stats import SeedGroup, beside, best
from student.run.run_reader import Run


class _Curve(NamedTuple):
    metric: str
    title: str
    y_label: str
    factor: float = 1.0


_CURVES = (
    _Curve("top1", "Top-1 on the validation set", "top-1, %"),
    _Curve("teacher_agreement", "Agreement with the teacher", "training images, %", 100.0),
    _Curve("base_loss", "Loss on the labels", "base loss"),
    _Curve("student_entropy", "Entropy of the student", "nats"),
)


def sweep_curves(all_groups: Sequence[SeedGroup], top: SeedGroup | None, teacher: Level | None) -> Markup:
    """Curves of the baseline and of the best λ of hard and of each τ, and top-1 against τ; `teacher` is its top-1."""
    picked = _chosen(all_groups, top)
    figures = []
    for shown in _CURVES:
        series = [line for colour, group in enumerate(picked) if (line := _mean_curve(group, shown, colour)).x]
        if changes(series):
            level = teacher if shown.metric == "top1" else None
            chart = line_chart(series, title=shown.title, x_label="epoch", y_label=shown.y_label, level=level)
            figures.append(html.figure(shown.title, chart, key=legend(series, level)))
    here = [group for group in beside(all_groups, top) if group.values("top1")]
    figures += [*_tau_curves(here), *_lambda_curves(here)]
    return html.grid(figures) if figures else html.empty("No finished cell yet.")


def _chosen(all_groups: Sequence[SeedGroup], top: SeedGroup | None) -> list[SeedGroup]:
    """The groups worth a curve: baseline, best of each loss and τ (at most four with a τ), at the best cell's views."""
    here = [
        group for group in beside(all_groups, top) if group.runs and (top is not None or group.cell.views_used is None)
    ]
    families: dict[tuple[str, float | None], list[SeedGroup]] = {}
    for group in here:
        families.setdefault((group.cell.distill, group.cell.temperature), []).append(group)
    champions = [champion for family in families.values() if (champion := best(family)) is not None]
    warm = sorted((g for g in champions if g.cell.temperature is not None), key=lambda g: -g.mean("top1"))[:4]
    return [group for group in champions if group.cell.temperature is None] + sorted(warm, key=_tau)


def _tau(group: SeedGroup) -> float:
    return group.cell.temperature or 0.0


def _mean_curve(group: SeedGroup, shown: _Curve, colour: int) -> Series:
    """Mean and range over the finished seeds, at the epochs that all of them have."""
    per_run = [_by_epoch(run, shown.metric) for run in group.runs]
    epochs = sorted(set.intersection(*(set(values) for values in per_run))) if per_run else []
    columns = [[shown.factor * values[epoch] for values in per_run] for epoch in epochs]
    several = len(per_run) > 1
    return Series(
        name=group.teaching,
        x=[epoch + 1.0 for epoch in epochs],
        y=[statistics.fmean(column) for column in columns],
        low=[min(column) for column in columns] if several else (),
        high=[max(column) for column in columns] if several else (),
        colour=colour,
    )


def _by_epoch(run: Run, metric: str) -> dict[int, float]:
    return {point.epoch: point[metric] for point in run.epochs if math.isfinite(point[metric])}


def _tau_curves(all_groups: Sequence[SeedGroup]) -> list[Markup]:
    """Top-1 against τ, one line per loss and λ: the map's rows as lines, where an optimum is easier to see."""
    lines: dict[tuple[str, float], list[SeedGroup]] = {}
    for group in all_groups:
        if group.cell.temperature is not None:
            lines.setdefault((group.cell.distill, group.cell.distill_weight), []).append(group)
    losses = list(dict.fromkeys(name for name, _ in lines))
    series = []
    for colour, ((name, weight), line) in enumerate(sorted(lines.items())):
        ordered = sorted(line, key=_tau)
        if len(ordered) > 1:
            which = f"{name} " if len(losses) > 1 else ""
            series.append(_range_line(f"{which}λ {weight:g}", ordered, [_tau(group) for group in ordered], colour))
    return _top1_against(series, "τ", f"Top-1 against τ ({', '.join(losses)})", log_x=True)


def _lambda_curves(all_groups: Sequence[SeedGroup]) -> list[Markup]:
    """Top-1 against λ, one line per loss and τ; all begin at the baseline, λ = 0."""
    base = [group for group in all_groups if group.cell.distill == NONE]
    lines: dict[tuple[str, float | None], list[SeedGroup]] = {}
    for group in all_groups:
        if group.cell.distill != NONE:
            lines.setdefault((group.cell.distill, group.cell.temperature), list(base)).append(group)
    several = len({distill for distill, tau in lines if tau is not None}) > 1
    series = []
    for colour, ((distill, tau), line) in enumerate(lines.items()):
        ordered = sorted(line, key=lambda group: group.cell.distill_weight)
        if len(ordered) > 1:
            name = distill if tau is None else f"{distill} τ {tau:g}" if several else f"τ {tau:g}"
            series.append(_range_line(name, ordered, [group.cell.distill_weight for group in ordered], colour))
    return _top1_against(series, "λ", "Top-1 against λ")


def _top1_against(series: Sequence[Series], what: str, title: str, *, log_x: bool = False) -> list[Markup]:
    """The chart of some lines; none where they show nothing."""
    if not changes(series):
        return []
    chart = line_chart(series, title=f"Top-1 against {what}", x_label=what, y_label="top-1, %", log_x=log_x)
    return [html.figure(title, chart, key=legend(series))]


def _range_line(name: str, line: Sequence[SeedGroup], xs: Sequence[float], colour: int) -> Series:
    several = any(len(group.values("top1")) > 1 for group in line)
    return Series(
        name=name,
        x=xs,
        y=[group.mean("top1") for group in line],
        low=[min(group.values("top1")) for group in line] if several else (),
        high=[max(group.values("top1")) for group in line] if several else (),
        colour=colour,
        marks=True,
    )


def views_curve(all_groups: Sequence[SeedGroup]) -> Markup:
    """Top-1 against the number of views used, for the baseline and the best settings."""
    by_setting: dict[tuple[object, ...], list[SeedGroup]] = {}
    for group in all_groups:
        if group.values("top1") and group.cell.views_used is not None:
            by_setting.setdefault((*group.cell.setting[:3], group.cell.teachers), []).append(group)
    picked = [line for line in by_setting.values() if len(line) > 1]
    picked.sort(key=lambda line: (line[0].cell.distill != NONE, -max(group.mean("top1") for group in line)))
    series = []
    for colour, line in enumerate(picked[:6]):
        line.sort(key=lambda group: group.cell.views_used or 0)
        series.append(
            _range_line(line[0].teaching, line, [float(group.cell.views_used or 0) for group in line], colour)
        )
    charts = _top1_against(series, "views used", "Top-1 against views used", log_x=True)
    return html.grid(charts) if charts else html.empty("No setting has finished with two numbers of views yet.")
