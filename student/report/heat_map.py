"""The heat map λ × τ as a real table: colour for the eye, numbers in every cell for everyone.

Rows are λ, columns are τ, hard distillation has a column of its own and the baseline a row of one cell across. Below
the columns stands what the cache's record loses at that τ, so that one sees whether a column is limited by the record.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from student.learn.losses.table import loss_named
from student.report.charts import ink_on, ramp
from student.report.page import escape
from student.report.stats import SeedGroup, told_apart
from student.sweep.grid import Grid

GOOD_ERROR, FAIR_ERROR = 0.10, 0.30
"""Relative error of the student's gradient below which a record is called faithful, and above which limiting."""


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
    """What a map shows: the metric, how many decimals, its unit for the caption."""

    metric: str
    digits: int
    unit: str


def fidelities(facts: Mapping[str, Any]) -> dict[float, RecordError]:
    """What the sweep recorded about its cache, by τ."""
    return {
        float(row["temperature"]): RecordError(
            float(row["temperature"]),
            *(math.nan if row.get(key) is None else float(row[key]) for key in RecordError._fields[1:]),
        )
        for row in facts.get("fidelity", ())
    }


def heat_map(
    found: Sequence[SeedGroup],
    grid: Grid,
    *,
    style: MapStyle,
    views_used: int | None,
    best: SeedGroup | None,
    noise: float,
    fidelity: Mapping[float, RecordError],
    caption: str,
) -> str:
    """The map of one number of views as an HTML table with its colour scale.

    Args:
        best: outlined; cells that `noise` cannot tell from it are marked "≈".
        fidelity: shown under the columns when not empty.
    """
    shown = {group.cell.setting: group for group in found if group.cell.views_used == views_used}
    # One scale for all maps of a page: colours of different numbers of views can be compared.
    means = [m for group in found if math.isfinite(m := group.mean(style.metric))]
    scale = (min(means), max(means)) if means else (0.0, 1.0)
    columns = grid.columns()
    draw = _Drawer(style, scale, best, noise)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.column_names())
    rows = _baseline_row(draw, shown.get(("none", 0.0, None, views_used)), len(columns))
    for weight in sorted(weight for weight in grid.weights if weight > 0):
        cells = "".join(draw.cell(shown.get((kind, weight, tau, views_used))) for kind, tau in columns)
        rows += f'<tr><th scope="row">λ {weight:g}</th>{cells}</tr>'
    foot = _fidelity_rows(columns, fidelity) if fidelity else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="map">'
        f'<caption hidden>{escape(caption)}</caption><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody>{foot}</table></div>{_scale(scale, style) if means else ''}"
    )


@dataclass(frozen=True, slots=True)
class _Drawer:
    style: MapStyle
    scale: tuple[float, float]
    best: SeedGroup | None
    noise: float

    def cell(self, group: SeedGroup | None, *, span: int = 1) -> str:
        """One cell: mean, spread over seeds, each seed on hover."""
        wide = f' colspan="{span}"' if span > 1 else ""
        if group is None:
            return f'<td class="none"{wide}><small>not in grid</small></td>'
        mean, spread = group.mean(self.style.metric), group.spread(self.style.metric)
        if not math.isfinite(mean):
            return f'<td class="none"{wide}><small>{escape(_missing(group))}</small></td>'
        digits = self.style.digits
        low, high = self.scale
        colour = ramp((mean - low) / (high - low) if high > low else 0.5)
        seeds = ", ".join(f"seed {s}: {v:.{digits}f}" for s, v in group.by_seed(self.style.metric).items())
        title = f"{group.label}: {seeds}"
        is_best = self.best is not None and group.cell.setting == self.best.cell.setting
        equal = self.best is not None and not is_best and math.isfinite(self.noise)
        mark = " ★" if is_best else " ≈" if equal and self.best and not told_apart(group, self.best, self.noise) else ""
        num, planned = len(group.values(self.style.metric)), len(group.results)
        second = f"± {spread:.{digits}f}" if math.isfinite(spread) else "1 seed" if planned == 1 else ""
        part = f" {num}/{planned}" if num < planned else ""
        return (
            f'<td{wide}{" class=best" if is_best else ""} style="background:{_hex(colour)};color:{ink_on(colour)}" '
            f'title="{escape(title)}">{mean:.{digits}f}{mark}<small>{second}{part}</small></td>'
        )


def _missing(group: SeedGroup) -> str:
    states = {result.status.state for result in group.results}
    return "failed" if "failed" in states else "running" if "running" in states else "not yet"


def _baseline_row(draw: _Drawer, group: SeedGroup | None, width: int) -> str:
    if group is None:
        return ""
    return f'<tr><th scope="row">no teacher</th>{draw.cell(group, span=width)}</tr>'


def error_word(error: float) -> tuple[str, str]:
    """CSS class and word for a relative gradient error."""
    if not math.isfinite(error):
        return "", "not measured"
    if error <= GOOD_ERROR:
        return "ok", "faithful"
    return ("warn", "fair") if error <= FAIR_ERROR else ("bad", "limiting")


def _fidelity_rows(columns: Sequence[tuple[str, float | None]], fidelity: Mapping[float, RecordError]) -> str:
    cells, words = "", ""
    for kind, tau in columns:
        found = fidelity.get(tau) if tau is not None else None
        if not loss_named(kind).needs_probabilities:
            cells, words = cells + "<td>exact</td>", words + '<td class="ok">faithful</td>'
            continue
        error = found.gradient_error if found else math.nan
        css, word = error_word(error)
        cells += f"<td>{f'{error:.3f}' if math.isfinite(error) else '–'}</td>"
        words += f'<td class="{css}">{word}</td>'
    return (
        f'<tfoot><tr><th scope="row">record error</th>{cells}</tr>'
        f'<tr class="w"><th scope="row"></th>{words}</tr></tfoot>'
    )


def _scale(scale: tuple[float, float], style: MapStyle) -> str:
    stops = ",".join(_hex(ramp(i / 10)) for i in range(11))
    low, high = (f"{value:.{style.digits}f}{style.unit}" for value in scale)
    return (
        f'<div class="ramp" style="background:linear-gradient(90deg,{stops})" aria-hidden="true"></div>'
        f'<div class="ends note"><span>{low}</span><span>{high}</span></div>'
    )


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
