"""Draw charts with matplotlib: inline SVG for a page, PNG for papers and slides; the one module that imports it.

A chart is 400 points wide, as wide as a phone's column and a third of a laptop's, so its text stays about 12 px
everywhere. It is drawn in the colours of the light page. In SVG they become the page's CSS variables (`--s0` …
`--s7`, `--ink`, `--muted`, `--grid`, `--line`), so one figure serves a light and a dark page; texts stay texts, in the
page's font. The same numbers give the same bytes: no date, no version, no random names.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from shards.atomic import atomic_file
from shards.text.escapes import visible
from student.report.charts import DASHES, Level, Series, number
from student.report.colours import GRID, INK, LINE, MUTED, SERIES, ink_on, ramp

WIDTH, HEIGHT = 400, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 34
_DPI = 230
_HOVER_POINTS = 40
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.linewidth": 1,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.major.pad": 5,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "lines.scale_dashes": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handlelength": 2.6,
    # Merges what differs by less than 0.3 points, so that a long training makes no long page; spikes stay.
    "path.simplify_threshold": 0.3,
}
_VARIABLES = {colour: f"var(--s{n})" for n, colour in enumerate(SERIES)} | {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    LINE: "var(--line)",
}


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    level: Level | None = None,
) -> Markup:
    """Draw lines with bands as inline SVG, with their numbers on hover.

    Args:
        series: at least one finite point together.
        title: read by screen readers; unique on its page.
        x_label, y_label: with units.
        log_x: logarithmic x axis with a tick at every x.
        level: a line across.
    """
    figure = line_figure(series, x_label=x_label, y_label=y_label, log_x=log_x, level=level)
    root = _svg(figure, title)
    for x, y, text in _hover_texts(series, x_label):
        _hover(root, figure.axes[0], x, y, text)
    if level is not None:
        y = HEIGHT - figure.axes[0].transData.transform((0, level.y))[1]
        box = {"class": "h", "x": f"{_LEFT}", "y": f"{y - 3:.1f}", "width": f"{WIDTH - _LEFT - _RIGHT}", "height": "6"}
        _titled(root, "rect", box, f"{level.name}: {number(level.y)}")
    svg = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    return Markup(svg)  # ElementTree escapes every text in it


def line_figure(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    level: Level | None = None,
    legend: bool = False,
) -> Figure:
    """Draw the figure of `line_chart`, with a legend inside where no page has one beside it."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")
        width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        axes = figure.add_axes((_LEFT / WIDTH, _BOTTOM / HEIGHT, width / WIDTH, height / HEIGHT), facecolor="none")
        axes.grid(axis="y")
        for line in series:
            _draw_line(axes, line)
        if level is not None:
            axes.axhline(level.y, color=INK, linewidth=1.2, linestyle=(0, (2, 4)), label=level.name)
        _scale_x(axes, sorted({x for line in series for x, y in _finite(line)}), log=log_x)
        figure.text((_LEFT + WIDTH - _RIGHT) / 2 / WIDTH, 3 / HEIGHT, x_label, ha="center", va="baseline")
        times = _scale_y(axes, [*_heights(series), *([level.y] if level is not None else [])])
        figure.text(2 / WIDTH, 1 - 11 / HEIGHT, f"{y_label} {times}".rstrip(), va="baseline")
        if legend:
            for handle in axes.legend().get_lines():
                handle.set_marker("")
    return figure


def _finite(line: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]


def _heights(series: Sequence[Series]) -> list[float]:
    """The finite values and band edges."""
    values = [value for line in series for part in (line.y, line.low, line.high) for value in part]
    return [value for value in values if math.isfinite(value)]


def _draw_line(axes: Axes, line: Series) -> None:
    """A line with its band; a point without finite neighbours is a dot, since no line reaches it."""
    colour, dash = SERIES[line.colour % len(SERIES)], DASHES[line.colour % len(DASHES)]
    if line.low and line.high:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
    beside = [math.nan, *line.y, math.nan]
    lonely = [i for i in range(len(line.y)) if not math.isfinite(beside[i]) and not math.isfinite(beside[i + 2])]
    axes.plot(
        line.x,
        line.y,
        color=colour,
        linestyle=(0, tuple(map(float, dash.split()))) if dash else "-",
        label=line.name,
        marker="o",
        markevery=slice(None) if line.marks else lonely,
        clip_on=not line.marks,  # whole dots at the edges; lines of many points may have spikes beyond the axis
    )


def _scale_x(axes: Axes, values: Sequence[float], *, log: bool) -> None:
    """From the first value to the last; the first has a tick when there is room: an axis of epochs begins at 1."""
    low, high = _apart(values[0], values[-1])
    if log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    else:
        whole = all(value == round(value) for value in values)
        locator = MaxNLocator(6, steps=[1, 2, 5, 10], integer=whole)
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if whole and len(ticks) > 1 and ticks[0] - low >= 0.6 * (ticks[1] - ticks[0]):
            ticks = [low, *ticks]
        axes.set_xticks(ticks)
    axes.set_xlim(low, high)


def _scale_y(axes: Axes, values: Sequence[float]) -> str:
    """A little more than the values; returns the power or offset of the labels, "" in most charts."""
    low, high = _apart(*_span(values))
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    formatter = axes.yaxis.get_major_formatter()
    formatter.set_locs(list(axes.get_yticks()))
    axes.yaxis.get_offset_text().set_visible(False)
    return str(formatter.get_offset())


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Range of the values with the highest 1 % left out when they would flatten the rest (a first step's loss)."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[math.ceil(0.99 * (len(ordered) - 1))]
    return (low, usual) if high - low > 4 * (usual - low) > 0 else (low, high)


def _apart(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    pad = abs(high) * 0.05 or 0.5
    return low - pad, high + pad


def _svg(figure: Figure, title: str) -> ElementTree.Element:
    """The figure as an SVG element for an HTML page: no names of its own but those it refers to, CSS variables."""
    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        _draw(figure, file, format="svg", metadata={"Date": None})
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"|xlink:(?=href)', "", file.getvalue()[file.getvalue().index("<svg") :])
    referred = set(re.findall(r'(?:href="|url\()#(\w+)', text))
    root = ElementTree.fromstring(re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S))
    for element in root.iter():
        element.tail = None
        if element.tag != "text":
            element.text = None
        element.attrib = {k: _page_value(k, v) for k, v in element.items() if k != "id" or v in referred}
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
    root.attrib = {"class": "c", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    return root


def _page_value(name: str, value: str) -> str:
    """An attribute with the page's colours and font, and coordinates to a tenth of a point."""
    if name == "style":
        value = re.sub(r"font[\w-]*:[^;]*;?\s*", "", value)
        return re.sub(r"#[0-9a-f]{6}", lambda colour: _VARIABLES.get(colour[0], colour[0]), value)
    if name in ("d", "x", "y", "width", "height"):
        return re.sub(r"-?\d+\.\d+", lambda digits: f"{float(digits[0]):.1f}", " ".join(value.split()))
    return value


def _hover_texts(series: Sequence[Series], x_label: str) -> Iterator[tuple[float, float, str]]:
    for line in series:
        for i in _evenly(len(line.x), _HOVER_POINTS):
            if math.isfinite(line.y[i]):
                spread = f" ({number(line.low[i])} – {number(line.high[i])})" if line.low and line.high else ""
                yield line.x[i], line.y[i], f"{line.name}, {x_label} {number(line.x[i])}: {number(line.y[i])}{spread}"


def _evenly(length: int, count: int) -> list[int]:
    if length <= count:
        return list(range(length))
    return sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})


def _hover(root: ElementTree.Element, axes: Axes, x: float, y: float, text: str) -> None:
    right, up = axes.transData.transform((x, y))
    if axes.bbox.padded(1).contains(right, up):
        _titled(root, "circle", {"class": "h", "cx": f"{right:.1f}", "cy": f"{HEIGHT - up:.1f}", "r": "6"}, text)


def _titled(root: ElementTree.Element, tag: str, attributes: dict[str, str], text: str) -> None:
    ElementTree.SubElement(ElementTree.SubElement(root, tag, attributes), "title").text = text


def map_figure(
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    label: str,
) -> Figure:
    """Draw a heat map: a colour and a text for every cell, none where the value is NaN."""
    figure = Figure(figsize=(1.6 + 1.05 * len(columns), 1.7 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    finite = [value for row in values for value in row if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    cmap = ListedColormap([[channel / 255 for channel in ramp(i / 255)] for i in range(256)])
    image = axes.imshow(values, cmap=cmap, vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if math.isfinite(value):
                ink = ink_on(ramp((value - low) / (high - low) if high > low else 0.5))
                axes.text(column, row, texts[row][column], ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure on white ground, 230 dots per inch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):  # names of runs: neither formulas nor control characters
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(visible(text.get_text()))
    with matplotlib.rc_context(_STYLE), atomic_file(path) as file:
        _draw(figure, file, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})


def _draw(figure: Figure, file: IO[Any], **options: Any) -> None:
    """Write a figure. Letters that the font lacks, such as Japanese ones, are drawn as boxes without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(file, **options)
