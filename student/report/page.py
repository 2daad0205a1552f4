"""The page around a report: one HTML file, no script, nothing loaded from anywhere; light and dark; phone to laptop.

The HTML is in templates/parts.html, one macro a part, and escapes whatever is not `Markup`: a name or an error message
of a run can never become markup. The functions here are the typed door to those macros.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from student.report.charts import DASHES, Level, Series

__all__ = ["Markup"]


class Tile(NamedTuple):
    """A number that matters, its unit, and what it is."""

    value: str
    label: str
    unit: str = ""


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("student.report"), autoescape=True, undefined=StrictUndefined)


def part(name: str, **values: Any) -> Markup:
    """The macro of that name, filled."""
    macro = getattr(_environment().get_template("parts.html").module, name)
    return Markup(macro(**values))


def page(title: str, subtitle: str, body: Markup) -> str:
    """A whole document."""
    loader = _environment().loader
    assert loader is not None, "the environment above has one"
    css, _, _ = loader.get_source(_environment(), "report.css")
    return str(part("page", title=title, subtitle=subtitle, css=Markup(css), body=body)) + "\n"


def tiles(items: Sequence[Tile]) -> Markup:
    """A row of tiles."""
    return part("tiles", items=items)


def section(title: str, body: Markup, note: str = "") -> Markup:
    """A heading, a sentence of explanation, and HTML."""
    return part("section", title=title, body=body, note=note)


def card(body: Markup, *, title: str = "", note: str = "") -> Markup:
    """A framed part of the page."""
    return part("card", title=title, body=body, note=note)


def grid(items: Iterable[Markup], *, wide: bool = False) -> Markup:
    """Parts beside each other, as many as fit; `wide` parts are twice as wide."""
    return part("grid", items=list(items), wide=wide)


def paragraph(text: str, kind: str = "note") -> Markup:
    """A sentence; `kind` is "note" or "lead", the one on top of a page."""
    return part("paragraph", text=text, kind=kind)


def empty(text: str) -> Markup:
    """A sentence where there is nothing to show."""
    return part("empty", text=text)


def figure(title: str, chart: Markup, caption: str = "", *, key: Markup | str = "") -> Markup:
    """A card with a chart, its legend and a caption."""
    return part("figure", title=title, chart=chart, caption=caption, key=key)


class _Key(NamedTuple):
    name: str
    colour: int
    dash: str
    is_level: bool


def legend(series: Sequence[Series], level: Level | None = None) -> Markup:
    """The lines of a chart by colour and dash, and its level."""
    lines = [_Key(line.name, line.colour, DASHES[line.colour % len(DASHES)], False) for line in series]
    if level is not None:
        lines.append(_Key(level.name, 0, "", True))
    return part("legend", lines=lines)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    caption: str,
    text_columns: Sequence[int] = (0,),
    wrap_columns: Sequence[int] = (),
    best_row: int = -1,
) -> Markup:
    """A table that scrolls sideways on a narrow screen and can be reached by keyboard; cells are text."""
    kinds = ["w" if i in wrap_columns else "t" if i in text_columns else "" for i in range(len(head))]
    return part("table", caption=caption, head=head, rows=rows, kinds=kinds, best_row=best_row)


def details(summary: str, text: str, *, is_open: bool = False) -> Markup:
    """Plain text that opens on demand."""
    return part("details", summary=summary, text=text, is_open=is_open)
