"""A few ways to train beside each other, as PNG: a dot for each seed, a bar at the mean."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from student.report.drawing import save_png


def arms_png(
    arms: Sequence[tuple[str, Sequence[float]]], path: Path, *, title: str = "", label: str = "top-1, %"
) -> None:
    """Draw arms from top to bottom, in the order given.

    Args:
        arms: label and values by seed, at least one each.
        label: of the values' axis.
    """
    figure = Figure(figsize=(6.4, 1.3 + 0.36 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for place, (_, values) in enumerate(arms):
        axes.plot(values, [place] * len(values), "o", color="#0072b2", markersize=5, alpha=0.7)
        mean = statistics.fmean(values)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color="#c8501a", linewidth=2)
        axes.annotate(f"{mean:.1f}", (mean, place), (4, 5), textcoords="offset points", fontsize=7, color="#5a6473")
    axes.set_yticks(range(len(arms)), [name for name, _ in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.25)
    axes.set_title(title, fontsize=9)
    save_png(figure, path)
