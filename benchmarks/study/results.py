"""What the students of a study came to: top-1 by seed for each arm, and the paired comparison of two arms.

The same seed means the same initial weights, views and order of batches, so differences are taken seed by seed. With a
few seeds a normal quantile would flatter: the interval is Student's.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.study.settings import Question, Settings
from benchmarks.study.stages import sweep_path
from student.run.run_reader import Run, is_run, read_run

# Student's t, two-sided 95 %, for 1 to 10 degrees of freedom; beyond, 2.2 errs on the safe side.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """The finished students of an arm.

    Attributes:
        runs: by seed, those that have finished. wanted: how many the settings ask for.
    """

    label: str
    runs: Mapping[int, Run]
    wanted: int

    def by_seed(self, metric: str = "top1") -> dict[int, float]:
        """Final values by seed; those that are numbers."""
        values = {seed: run.result(metric) for seed, run in sorted(self.runs.items())}
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    def mean(self, metric: str = "top1") -> float:
        """Over seeds; NaN without any."""
        values = self.by_seed(metric).values()
        return statistics.fmean(values) if values else math.nan

    def spread(self, metric: str = "top1") -> float:
        """Standard deviation over seeds (n − 1); NaN for fewer than two."""
        values = list(self.by_seed(metric).values())
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def by_epoch(self) -> dict[int, float]:
        """Mean top-1 over seeds after so many epochs, where every finished student was evaluated."""
        seen: dict[int, list[float]] = {}
        for run in self.runs.values():
            for point in run.epochs:
                if math.isfinite(point["top1"]):
                    seen.setdefault(point.epoch + 1, []).append(point["top1"])
        return {epoch: statistics.fmean(v) for epoch, v in sorted(seen.items()) if len(v) == len(self.runs)}


class Paired(NamedTuple):
    """Arm minus reference over the seeds that both have: mean, standard error, half the 95 % interval, seeds.

    Error and interval are NaN for fewer than two seeds.
    """

    mean: float
    error: float
    interval: float
    num_seeds: int


def paired(arm: ArmResult, reference: ArmResult, metric: str = "top1") -> Paired:
    """The comparison of two arms, seed by seed."""
    ours, theirs = arm.by_seed(metric), reference.by_seed(metric)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    count = len(differences)
    if count < 2:
        return Paired(differences[0] if differences else math.nan, math.nan, math.nan, count)
    error = statistics.stdev(differences) / math.sqrt(count)
    quantile = _T95[count - 2] if count - 2 < len(_T95) else 2.2
    return Paired(statistics.fmean(differences), error, quantile * error, count)


def arm_results(settings: Settings, question: Question, work: Path) -> list[ArmResult]:
    """The arms of a question as far as they have finished; RunError for a damaged run."""
    sweeps = {sweep.name: sweep for sweep in settings.sweeps}
    arms = []
    for arm in question.arms:
        sweep_name, _, cell = arm.at.partition("/")
        seeds = range(sweeps[sweep_name].seeds)
        paths = {seed: sweep_path(work, sweep_name) / "cells" / f"{cell}-s{seed}" for seed in seeds}
        runs = {seed: read_run(path) for seed, path in paths.items() if is_run(path)}
        finished = {seed: run for seed, run in runs.items() if run.finished}
        arms.append(ArmResult(label=arm.label, runs=finished, wanted=len(seeds)))
    return arms


class Deviation(NamedTuple):
    """How far two runs are apart: losses that both logged, the largest difference, how many are equal to the bit."""

    num_losses: int
    largest: float
    num_equal: int


def deviation(one: Run, other: Run) -> Deviation:
    """Compare the losses that two runs logged for the same steps and epochs."""
    ours, theirs = _losses(one), _losses(other)
    gaps = [abs(ours[place] - theirs[place]) for place in ours if place in theirs]
    return Deviation(len(gaps), max(gaps, default=math.nan), sum(gap == 0 for gap in gaps))


def _losses(run: Run) -> dict[tuple[str, int], float]:
    logged = {("step", point.step): point["loss"] for point in run.steps}
    return logged | {("epoch", point.step): point["loss"] for point in run.epochs}
