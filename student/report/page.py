"""The page around a report: one HTML file, no script, nothing loaded from anywhere; light and dark; phone to laptop.

The HTML is in templates/parts.html, one macro a part, and escapes whatever is not `Markup`: a name or an error message
of a run can never become markup.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from student.report.charts import DASHES, Level, Series


class Tile(NamedTuple):
    """A number that matters, its unit, and what it is."""

    value: str
    label: str
    unit: str = ""


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("student.report"), autoescape=True, undefined=StrictUndefined)


class _Parts:
    """The macros of templates/parts.html: `html.card(body, title="…")` is a framed part of a page."""

    def __getattr__(self, name: str) -> Callable[..., Markup]:
        macro: Callable[..., Markup] = getattr(_environment().get_template("parts.html").module, name)
        return macro


html = _Parts()


def page(title: str, subtitle: str, body: Markup) -> str:
    """A whole document."""
    loader = _environment().loader
    assert loader is not None, "the environment above has one"
    css, _, _ = loader.get_source(_environment(), "report.css")
    return str(html.page(title=title, subtitle=subtitle, css=Markup(css), body=body)) + "\n"


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
    return html.legend(lines)


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
    return html.table(caption=caption, head=head, rows=rows, kinds=kinds, best_row=best_row)
