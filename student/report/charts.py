"""Define the parts of a chart: lines, bands and a level across, and numbers as texts; `drawing` draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4", "4 2", "12 3 3 3")
"""Dash patterns of the lines by colour, in points; "" is a solid line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line: x and y of equal length, NaN in y leaves a gap; `low` and `high` make a band when given.

    `colour` is an index of the page's series colours. `marks` draws a dot on each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int = 0
    marks: bool = False


class Level(NamedTuple):
    """A value that does not change, drawn across the chart: what the teacher reaches."""

    name: str
    y: float


def changes(series: Sequence[Series]) -> bool:
    """Whether a chart of these lines shows anything: at least two different values, at two different places."""
    points = [(x, y) for line in series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    return len({x for x, _ in points}) > 1 and len({y for _, y in points}) > 1


def number(value: float) -> str:
    """Four significant digits, thousands apart; an en dash for what is not there."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def fixed(value: float, digits: int) -> str:
    """A number with fixed decimals; an en dash if there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
