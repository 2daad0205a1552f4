"""The tables of a study as Markdown, and its figures through the project's report."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.study.commands import read_times
from benchmarks.study.figures import arms_png
from benchmarks.study.results import ArmResult, arm_results, deviation, paired
from benchmarks.study.settings import Question, Settings
from student.report.png import run_pngs


def study_tables(settings: Settings, work: Path, png_dir: Path | None = None) -> Iterator[str]:
    """The table of each question, then the hours; with `png_dir` a figure for each question that has results."""
    for question in settings.questions:
        arms = arm_results(settings, question, work)
        yield f"### {question.title}\n\n{_table(arms)}"
        yield f"Mean top-1 after so many epochs\n\n{_by_epoch(arms)}"
        if question.curves:
            yield from _equal_curves(arms)
        if png_dir is not None and any(arm.by_seed() for arm in arms):
            _figures(question, arms, png_dir)
    yield f"### Hours\n\n{_hours(work)}"


def _table(arms: Sequence[ArmResult]) -> str:
    heads = ("arm", "seeds", "top-1, %", "by seed", "CLS / DIST head", "minus the first row, paired", "95 % interval")
    columns = (*heads, "in standard errors")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for arm in arms:
        seeds = f"{len(arm.runs)} of {arm.wanted}"
        if not arm.by_seed():
            lines.append(f"| {arm.label} | {seeds} | not run yet | | | | | |")
            continue
        values = " ".join(f"{value:.2f}" for value in arm.by_seed().values())
        by_head = " / ".join(_number(arm.mean(f"{head}_top1"), 2) for head in ("cls", "dist"))
        mean = f"{arm.mean():.2f}" + (f" ± {arm.spread():.2f}" if math.isfinite(arm.spread()) else "")
        lines.append(f"| {arm.label} | {seeds} | {mean} | {values} | {by_head} | {_difference(arm, arms[0])} |")
    return "\n".join(lines)


def _by_epoch(arms: Sequence[ArmResult]) -> str:
    means = [arm.by_epoch() for arm in arms]
    epochs = sorted({epoch for mean in means for epoch in mean})
    lines = [f"| arm | {' | '.join(map(str, epochs))} |", "|---" * (len(epochs) + 1) + "|"]
    for arm, mean in zip(arms, means, strict=True):
        lines.append(f"| {arm.label} | {' | '.join(_number(mean.get(epoch, math.nan), 1) for epoch in epochs)} |")
    return "\n".join(lines)


def _difference(arm: ArmResult, reference: ArmResult) -> str:
    if arm is reference:
        return "| |"
    comparison = paired(arm, reference)
    if not math.isfinite(comparison.error):
        return f"{_signed(comparison.mean)} | – | –"
    ratio = _number(comparison.mean / comparison.error, 1).replace("-", "−") if comparison.error else "no spread"
    low, high = comparison.mean - comparison.interval, comparison.mean + comparison.interval
    return f"{_signed(comparison.mean)} | {_signed(low)} … {_signed(high)} | {ratio}"


def _equal_curves(arms: Sequence[ArmResult]) -> Iterator[str]:
    """Are the logged losses of each arm those of the first, and what did a student take?"""
    for arm in arms:
        taken = {seed: run.result("seconds") / 60 for seed, run in arm.runs.items()}
        if taken:
            yield f"{arm.label}: minutes by seed {', '.join(f'{value:.1f}' for value in taken.values())}"
    for arm in arms[1:]:
        for seed in sorted(set(arm.runs) & set(arms[0].runs)):
            equality = deviation(arm.runs[seed], arms[0].runs[seed])
            yield (
                f"{arm.label}, seed {seed}: {equality.num_equal} of {equality.num_losses} logged losses equal those of "
                f"“{arms[0].label}” to the bit, the largest difference is {equality.largest:.3g}"
            )


def _figures(question: Question, arms: Sequence[ArmResult], folder: Path) -> None:
    shown = [(arm.label, list(arm.by_seed().values())) for arm in arms if arm.by_seed()]
    arms_png(shown, folder / f"study-{question.name}.png", title=question.title)
    if question.curves:
        runs = [arm.runs[min(arm.runs)] for arm in arms if arm.runs]
        for path in run_pngs(runs, folder / ".curves"):
            path.replace(folder / f"study-{question.name}-{path.name}")
        (folder / ".curves").rmdir()


def _hours(work: Path) -> str:
    times = read_times(work)
    lines = ["| stage | wall, min | processor, min |", "|---|---|---|"]
    lines += [f"| {name} | {took['wall_s'] / 60:.1f} | {took['cpu_s'] / 60:.1f} |" for name, took in times.items()]
    total = [sum(took[key] for took in times.values()) / 60 for key in ("wall_s", "cpu_s")]
    return "\n".join([*lines, f"| all | {total[0]:.1f} | {total[1]:.1f} |"])


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if math.isfinite(value) else "–"
