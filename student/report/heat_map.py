"""The heat map λ × τ as a real table: colour for the eye, numbers in every cell for everyone.

Rows are λ, columns are τ, hard distillation has a column of its own and the baseline a row of one cell across. Below
the columns stands what the cache's record loses at that τ, so that one sees whether a column is limited by the record.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from student.learn.losses.table import NONE, loss_named
from student.report.colours import ink_on, ramp
from student.report.page import html
from student.report.stats import SeedGroup, told_apart
from student.sweep.grid import Grid

GOOD_ERROR, FAIR_ERROR = 0.10, 0.30
"""Relative error of the student's gradient below which a record is called faithful, and above which limiting."""


class Leader(NamedTuple):
    """The best setting of a map, if any; settings that `noise` cannot tell from it are marked "≈"."""

    group: SeedGroup | None = None
    noise: float = math.nan


class RecordError(NamedTuple):
    """What the record loses at τ, on the cache's own kept logits; NaN where nobody measured.

    `gradient_error`: relative error of the student's last-layer gradient; `kl`, `kl_p99`: nats, teacher to record,
    mean and 99th percentile; `bias`: relative error of the distillation loss; see `teacher_cache.record.fidelity`.
    """

    temperature: float
    gradient_error: float
    kl: float
    kl_p99: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MapStyle:
    """What a map shows: the metric, in percent when it is a share (`factor` 100), and how many decimals."""

    metric: str
    digits: int
    factor: float = 1.0

    def number(self, value: float) -> str:
        """A value without its unit."""
        return f"{self.factor * value:.{self.digits}f}"

    def text(self, value: float) -> str:
        """A value in percent."""
        return f"{self.number(value)} %"


def fidelities(facts: Mapping[str, Any]) -> dict[float, RecordError]:
    """Return the record errors that the sweep stored about its cache, by τ."""
    return {
        float(row["temperature"]): RecordError(
            float(row["temperature"]),
            *(math.nan if row.get(key) is None else float(row[key]) for key in RecordError._fields[1:]),
        )
        for row in facts.get("fidelity", ())
    }


def loss_errors(facts: Mapping[str, Any]) -> dict[tuple[str, float | None], float]:
    """Return the gradient error of each loss, by loss and τ; empty in sweeps that did not measure it."""
    return {
        (row["loss"], row["temperature"]): math.nan if row["gradient_error"] is None else float(row["gradient_error"])
        for row in facts.get("loss_errors", ())
    }


def heat_map(
    groups: Sequence[SeedGroup],
    grid: Grid,
    *,
    style: MapStyle,
    views_used: int | None,
    teachers: str = "",
    leader: Leader,
    facts: Mapping[str, Any],
    caption: str,
) -> Markup:
    """Draw the map of one number of views and one set of teachers as an HTML table with its colour scale.

    Args:
        leader: outlined.
        facts: of the sweep's cache; what its records cost is shown under the columns when it was measured.
    """
    shown = {group.cell.setting: group for group in groups if group.cell.views_used == views_used}
    # One scale for all maps of a page: colours of different numbers of views can be compared.
    means = [m for group in groups if math.isfinite(m := group.mean(style.metric))]
    scale = (min(means), max(means)) if means else (0.0, 1.0)
    columns = grid.columns()
    draw = _Drawer(style, scale, leader)
    rows: list[tuple[str, list[_MapCell]]] = []
    base = next((group for group in shown.values() if group.cell.distill == NONE), None)
    if base is not None:
        rows.append(("no teacher", [draw.cell(base, span=len(columns))]))
    for weight in sorted(weight for weight in grid.weights if weight > 0):
        cells = [draw.cell(shown.get((kind, weight, tau, views_used, teachers))) for kind, tau in columns]
        rows.append((f"λ {weight:g}", cells))
    errors, words = _record_rows(columns, facts) if facts.get("fidelity") else ([], [])
    low, high = (style.text(value) for value in scale) if means else ("", "")
    return html.heat_map(
        caption=caption,
        columns=grid.column_names(),
        rows=rows,
        errors=errors,
        words=words,
        stops=",".join(_hex(ramp(i / 10)) for i in range(11)),
        low=low,
        high=high,
    )


class _MapCell(NamedTuple):
    """What a cell of the map says, and how it looks; `kind` is a CSS class."""

    text: str
    second: str
    span: int = 1
    kind: str = ""
    colour: str = ""
    ink: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class _Drawer:
    style: MapStyle
    scale: tuple[float, float]
    leader: Leader

    def cell(self, group: SeedGroup | None, *, span: int = 1) -> _MapCell:
        """One cell: mean, spread over seeds, each seed on hover."""
        if group is None:
            return _MapCell("", "not in grid", span, "none")
        style = self.style
        mean, spread = group.mean(style.metric), group.spread(style.metric)
        if not math.isfinite(mean):
            return _MapCell("", _missing(group), span, "none")
        low, high = self.scale
        colour = ramp((mean - low) / (high - low) if high > low else 0.5)
        seeds = ", ".join(f"seed {s}: {style.number(v)}" for s, v in group.by_seed(style.metric).items())
        best, noise = self.leader
        is_best = best is not None and group.cell.setting == best.cell.setting
        is_equal = best is not None and not is_best and math.isfinite(noise) and not told_apart(group, best, noise)
        mark = " ★" if is_best else " ≈" if is_equal else ""
        num, planned = len(group.values(style.metric)), len(group.results)
        second = f"± {style.number(spread)}" if math.isfinite(spread) else "1 seed" if planned == 1 else ""
        return _MapCell(
            text=style.number(mean) + mark,
            second=second + (f" {num}/{planned}" if num < planned else ""),
            span=span,
            kind="best" if is_best else "",
            colour=_hex(colour),
            ink=ink_on(colour),
            title=f"{group.label}: {seeds}",
        )


def _missing(group: SeedGroup) -> str:
    states = {result.status.state for result in group.results}
    return "failed" if "failed" in states else "running" if "running" in states else "not yet"


def error_word(error: float) -> tuple[str, str]:
    """CSS class and word for a relative gradient error."""
    if not math.isfinite(error):
        return "", "not measured"
    if error <= GOOD_ERROR:
        return "ok", "faithful"
    return ("warn", "fair") if error <= FAIR_ERROR else ("bad", "limiting")


def _record_rows(
    columns: Sequence[tuple[str, float | None]], facts: Mapping[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Under each column the error of the record there for its loss, and a word with its CSS class."""
    divergence, losses = fidelities(facts), loss_errors(facts)
    errors: list[str] = []
    words: list[tuple[str, str]] = []
    for kind, tau in columns:
        if not loss_named(kind).needs_probabilities:
            errors.append("exact")
            words.append(("ok", "faithful"))
            continue
        error = losses.get((kind, tau), math.nan)
        if not losses and tau in divergence:  # a sweep of before, which measured the divergence alone
            error = divergence[tau].gradient_error
        errors.append(f"{error:.3f}" if math.isfinite(error) else "–")
        words.append(error_word(error))
    return errors, words


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
