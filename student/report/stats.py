"""Compute the statistics of a sweep: means and spreads over seeds, gains, what can be told apart, the cost.

Seeds are few, so nothing here pretends to a test: the spread is the sample standard deviation, the noise of the sweep
is pooled over its cells, and two cells count as told apart when their means differ by more than twice the standard
error of such a difference.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shards.text.figures import count
from student.learn.losses.table import NONE
from student.run.run_reader import Run
from student.sweep.grid import Cell
from student.sweep.sweep_directory import CellResult, Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """The cells that differ in nothing but the seed; `cell` is the first of them."""

    cell: Cell
    results: tuple[CellResult, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that finished."""
        return tuple(result.run for result in self.results if result.run is not None and result.run.finished)

    def values(self, metric: str) -> list[float]:
        """The finite final values of the finished runs, in order of seeds."""
        return [value for run in self.runs if math.isfinite(value := run.result(metric))]

    def by_seed(self, metric: str) -> dict[int, float]:
        """Final values by seed, of finished runs that have one."""
        values = {
            result.cell.seed: result.run.result(metric)
            for result in self.results
            if result.run is not None and result.run.finished
        }
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def mean(self, metric: str) -> float:
        """Mean over seeds; NaN without a value."""
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def spread(self, metric: str) -> float:
        """Sample standard deviation over seeds (n − 1); NaN for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def label(self) -> str:
        """The setting in words: "soft λ 0.5 τ 3", "hard λ 0.5", "no teacher, 12 views"."""
        return setting_label(self.cell)

    @property
    def teaching(self) -> str:
        """The setting without the number of views."""
        return setting_label(replace(self.cell, views_used=None))


def setting_label(cell: Cell) -> str:
    """A cell without its seed, in words."""
    if cell.distill == NONE:
        text = "no teacher"
    else:
        text = f"{cell.distill} λ {cell.distill_weight:g}"
        text += f" τ {cell.temperature:g}" if cell.temperature is not None else ""
        text += f" from {cell.teachers}" if cell.teachers else ""
    return text + (f", {count(cell.views_used, 'view')}" if cell.views_used is not None else "")


def groups(sweep: Sweep) -> tuple[SeedGroup, ...]:
    """The cells of a sweep gathered over seeds, in the grid's order."""
    by_setting: dict[tuple[object, ...], list[CellResult]] = {}
    for result in sweep.results:
        by_setting.setdefault(result.cell.setting, []).append(result)
    return tuple(SeedGroup(cell=results[0].cell, results=tuple(results)) for results in by_setting.values())


def best(all_groups: Sequence[SeedGroup]) -> SeedGroup | None:
    """The group of the highest mean; None when no cell has finished."""
    scored = [group for group in all_groups if math.isfinite(group.mean("top1"))]
    return max(scored, key=lambda group: group.mean("top1"), default=None)


def beside(all_groups: Sequence[SeedGroup], top: SeedGroup | None) -> list[SeedGroup]:
    """The groups of the best one's views and teachers, and those without a teacher; all where there is no best one."""
    if top is None:
        return list(all_groups)
    views, teachers = top.cell.views_used, top.cell.teachers
    if top.cell.distill == NONE:  # it has no teachers: show those of the first set
        teachers = next((group.cell.teachers for group in all_groups if group.cell.distill != NONE), teachers)
    return [
        g for g in all_groups if g.cell.views_used == views and (g.cell.distill == NONE or g.cell.teachers == teachers)
    ]


def baseline(all_groups: Sequence[SeedGroup], views_used: int | None) -> SeedGroup | None:
    """The group without a teacher at the same number of views."""
    return next((g for g in all_groups if g.cell.distill == NONE and g.cell.views_used == views_used), None)


def pooled_spread(all_groups: Sequence[SeedGroup]) -> float:
    """Standard deviation over seeds, pooled over all groups with two or more; NaN when there is none."""
    squares, degrees = 0.0, 0
    for group in all_groups:
        values = group.values("top1")
        if len(values) > 1:
            squares += (len(values) - 1) * statistics.variance(values)
            degrees += len(values) - 1
    return math.sqrt(squares / degrees) if degrees else math.nan


def told_apart(one: SeedGroup, other: SeedGroup, noise: float) -> bool:
    """Whether two means differ by more than 2 standard errors of a difference, for a noise per run of `noise`."""
    num_one, num_other = len(one.values("top1")), len(other.values("top1"))
    if not num_one or not num_other or not math.isfinite(noise):
        return False
    error = noise * math.sqrt(1 / num_one + 1 / num_other)
    return abs(one.mean("top1") - other.mean("top1")) > 2 * error


def paired_gain(group: SeedGroup, base: SeedGroup) -> list[float]:
    """Differences to the baseline, seed by seed: the same data order and views, so the pairing removes their noise."""
    ours, theirs = group.by_seed("top1"), base.by_seed("top1")
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def gains(group: SeedGroup, all_groups: Sequence[SeedGroup]) -> list[float]:
    """Points of top-1 over no teacher at the same number of views, seed by seed; [] for the baseline itself."""
    base = baseline(all_groups, group.cell.views_used)
    return paired_gain(group, base) if base is not None and base is not group else []


def mean_gain(differences: Sequence[float]) -> str:
    """The mean of gains with its sign; an en dash where there are none."""
    return f"{statistics.fmean(differences):+.2f}" if differences else "–"


def best_first(all_groups: Sequence[SeedGroup]) -> list[SeedGroup]:
    """The groups by their mean top-1, the highest first; those without one at the end."""
    return sorted(all_groups, key=lambda g: -g.mean("top1") if math.isfinite(g.mean("top1")) else math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCount:
    """Teacher forwards, in images: what the cache cost and what the finished students would have cost without it."""

    spent: float
    online: float
    """The teachers of every distilled student in its loop."""

    num_students: int
    per_student: float

    @property
    def saved(self) -> float:
        """Forwards not done, the cache paid for; negative as long as it has not paid off."""
        return self.online - self.spent

    @property
    def break_even(self) -> float:
        """Students after which the cache has paid for itself, in forwards."""
        return self.spent / self.per_student if self.per_student else math.nan


def forward_count(sweep: Sweep) -> ForwardCount:
    """Teacher forwards of the sweep; `spent` is NaN when the cache's facts are not known."""
    caches = len(sweep.facts.get("caches", ())) or 1
    seen = [
        _images_seen(result.run) * (len(result.cell.teachers.split("+")) if result.cell.teachers else caches)
        for result in sweep.results
        if result.cell.distill != NONE and result.run is not None and result.run.finished
    ]
    seen = [images for images in seen if math.isfinite(images)]
    spent = sweep.facts.get("cache", {}).get("forwards_spent")
    return ForwardCount(
        spent=float(spent) if spent is not None else math.nan,
        online=sum(seen),
        num_students=len(seen),
        per_student=statistics.fmean(seen) if seen else math.nan,
    )


def _images_seen(run: Run) -> float:
    """Return the images of the summary, else steps × batch."""
    images = run.result("images")
    if math.isfinite(images):
        return images
    batch = run.setting("batch_size")
    return run.epochs[-1].step * float(batch) if run.epochs and batch else math.nan
