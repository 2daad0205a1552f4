"""Small figures as inline SVG, and the colours of the maps.

A chart is 400 units wide, as wide as a phone's column and a third of a laptop's, so its text stays about 12 px
everywhere. Colours come from CSS variables (`--s0` … `--s7`, `--ink`, `--muted`, `--grid`), so one figure serves a
light and a dark page; lines differ by dash as well as by colour. Numbers need no mouse: a table stands beside.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 34
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4", "4 2", "12 3 3 3")
_HOVER_POINTS = 40
_PATH_POINTS = 240


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


@dataclass(frozen=True, slots=True)
class _Axis:
    """Data range to pixels; `first` may exceed `last` in pixels (y grows downwards)."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    level: Level | None = None,
) -> Markup:
    """An SVG figure of lines with bands and hover titles; a sentence in its place when there is nothing to draw.

    Args:
        title: read by screen readers and shown on hover over the ground.
        x_label, y_label: with units.
        log_x: logarithmic (base 2) x axis.
        level: a line across.
    """
    points = [(x, y) for line in series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup('<p class="empty">{}: nothing recorded.</p>').format(title)
    xs = [math.log2(x) if log_x else x for x, _ in points]
    x_axis = _Axis(*_padded(min(xs), max(xs), 0.0), _LEFT, WIDTH - _RIGHT)
    seen = _seen(series) + ([level.y] if level is not None else [])
    y_axis = _Axis(*_padded(*_span(seen), 0.05), HEIGHT - _BOTTOM, _TOP)
    x_values = sorted({x for x, _ in points})
    body = _axes(x_axis, y_axis, x_label, y_label, log_x_values=x_values if log_x else None)
    # A nested svg clips to its own box, without the page-wide ids that a clip path needs.
    box = f"{_LEFT} {_TOP - 4} {WIDTH - _LEFT - _RIGHT + 6} {HEIGHT - _TOP - _BOTTOM + 4}"
    x, y, width, height = box.split()
    lines = "".join(_line(line, x_axis, y_axis, log_x=log_x, x_label=x_label) for line in series)
    if level is not None:
        said = escape(f"{level.name}: {number(level.y)}")
        lines += f'<path class="t" d="M{_LEFT} {y_axis(level.y):.1f}H{WIDTH - _RIGHT}"><title>{said}</title></path>'
    return Markup(  # every text in it went through `escape`
        f'<svg class="c" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{body}<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">{lines}</svg></svg>'
    )


def _seen(series: Sequence[Series]) -> list[float]:
    """The finite values and band edges."""
    values = [value for line in series for part in (line.y, line.low, line.high) for value in part]
    return [value for value in values if math.isfinite(value)]


def _axes(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str, *, log_x_values: Sequence[float] | None) -> str:
    parts = []
    ticks, text = nice_ticks(y_axis.low, y_axis.high, 5)
    for value, label in zip(ticks, text, strict=True):
        y = y_axis(value)
        parts.append(f'<path class="g" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" class="e">{label}</text>')
    if log_x_values is None:
        ticks, text = _from_the_start(x_axis, *nice_ticks(x_axis.low, x_axis.high, 6))
    else:
        ticks, text = [math.log2(x) for x in log_x_values], [f"{x:g}" for x in log_x_values]
    for value, label in zip(ticks, text, strict=True):
        parts.append(f'<text x="{x_axis(value):.1f}" y="{HEIGHT - _BOTTOM + 15}" class="m">{label}</text>')
    parts.append(f'<path class="a" d="M{_LEFT} {HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    parts.append(f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2:.0f}" y="{HEIGHT - 3}" class="m l">{escape(x_label)}</text>')
    parts.append(f'<text x="2" y="11" class="l">{escape(y_label)}</text>')
    return "".join(parts)


def _from_the_start(axis: _Axis, ticks: list[float], text: list[str]) -> tuple[list[float], list[str]]:
    """The ticks with one where the data begin, when there is room for it: an axis of epochs begins at 1, not at 5."""
    if len(ticks) < 2 or ticks[0] - axis.low < 0.6 * (ticks[1] - ticks[0]) or axis.low != round(axis.low):
        return ticks, text
    return [axis.low, *ticks], [f"{axis.low:.0f}", *text]


def _line(line: Series, x_axis: _Axis, y_axis: _Axis, *, log_x: bool, x_label: str) -> str:
    xs = [x_axis(math.log2(x) if log_x else x) for x in line.x]
    colour = f"var(--s{line.colour % 8})"
    parts = []
    kept = thin(line.y, _PATH_POINTS)
    if line.low and line.high:
        around = [i for i in kept if math.isfinite(line.low[i]) and math.isfinite(line.high[i])]
        edge = [(xs[i], y_axis(line.high[i])) for i in around] + [(xs[i], y_axis(line.low[i])) for i in around[::-1]]
        if len(around) > 1:
            parts.append(f'<path d="M{_join(edge)}Z" fill="{colour}" fill-opacity=".16"/>')
    dash = DASHES[line.colour % len(DASHES)]
    stroke = f'stroke="{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")
    for piece in _pieces([(xs[i], y_axis(line.y[i])) for i in kept]):
        if len(piece) > 1:
            parts.append(f'<path class="s" {stroke} d="M{_join(piece)}"/>')
        if line.marks or len(piece) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in piece]
    for i in _evenly(len(xs), _HOVER_POINTS):
        if math.isfinite(line.y[i]):
            spread = f" ({number(line.low[i])} – {number(line.high[i])})" if line.low and line.high else ""
            label = escape(f"{line.name}, {x_label} {number(line.x[i])}: {number(line.y[i])}{spread}")
            parts.append(
                f'<circle class="h" cx="{xs[i]:.1f}" cy="{y_axis(line.y[i]):.1f}" r="6"><title>{label}</title></circle>'
            )
    return "".join(parts)


def _join(points: Sequence[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def thin(values: Sequence[float], count: int) -> list[int]:
    """At most `count` indices of `values`, ascending, that keep both ends and the extremes of each stretch.

    Dropping every n-th point would hide the spikes that a loss curve is looked at for.
    """
    if len(values) <= count:
        return list(range(len(values)))
    kept = {0, len(values) - 1}
    stretches = max((count - 2) // 2, 1)
    for stretch in range(stretches):
        first, last = stretch * len(values) // stretches, (stretch + 1) * len(values) // stretches
        finite = [i for i in range(first, last) if math.isfinite(values[i])]
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
        else:
            kept.add(first)
    return sorted(kept)


def _evenly(length: int, count: int) -> list[int]:
    if length <= count:
        return list(range(length))
    return sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Range of the values with the highest 1 % left out when they would flatten the rest (a first step's loss)."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[math.ceil(0.99 * (len(ordered) - 1))]
    return (low, usual) if high - low > 4 * (usual - low) > 0 else (low, high)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high == low:
        pad = abs(high) * 0.05 or 0.5
        return low - pad, high + pad
    return low - share * (high - low), high + share * (high - low)


def nice_ticks(low: float, high: float, count: int) -> tuple[list[float], list[str]]:
    """About `count` round values inside [low, high] (steps of 1, 2 or 5 × 10^n) and their labels."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 1e5 or 0 < largest < 1e-3:
        # As many digits as it takes to tell neighbours apart.
        digits = max(1, math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9))
        return ticks, [_power(tick, digits) if tick else "0" for tick in ticks]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return ticks, [f"{tick:.{digits}f}" for tick in ticks]


def _power(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def number(value: float) -> str:
    """Four significant digits, thousands apart; an en dash for what is not there."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def ramp(share: float) -> tuple[int, int, int]:
    """The colour of a share in [0, 1]: dark blue over teal to light yellow, sRGB.

    Lightness rises linearly in OKLab (Ottosson 2020), so equal steps of the value look equal, also in grey and to the
    colour-blind; hue and chroma only help the eye to find its way back.
    """
    share = min(max(share, 0.0), 1.0)
    lightness = 0.30 + 0.63 * share
    hue = math.radians(280 - 175 * share)
    chroma = 0.085 + 0.05 * share
    return _oklab_to_srgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))


def _oklab_to_srgb(lightness: float, a: float, b: float) -> tuple[int, int, int]:
    """Matrices of Björn Ottosson, "A perceptual color space for image processing" (2020)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * _gamma(min(max(value, 0.0), 1.0))) for value in linear)
    return red, green, blue


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of WCAG 2.2 in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever contrasts more (at least 4.5 : 1 on every colour of the ramp)."""
    bright = luminance(colour)
    return "#000" if (bright + 0.05) / 0.05 >= 1.05 / (bright + 0.05) else "#fff"
