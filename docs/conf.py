"""Settings of `make docs`: the pages of this folder, a reference of the Python names and of the commands, as a site.

The pages are Markdown. Docstrings are plain text, made ready for Sphinx by `as_restructured_text`.
"""

import re
from pathlib import Path
from typing import Any

from shards import __version__

project = "deit-teacher-cache"
author = "the authors of deit-teacher-cache"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
root_doc = "contents"
html_theme = "furo"
html_title = f"{project} {release}"
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
napoleon_custom_sections = [("Errors", "returns_style")]
napoleon_use_ivar = True  # autodoc already has an entry for each field of a named tuple
smartquotes = False
exclude_patterns = ["_build"]
ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Errors|Raises|Example|Examples):$")


def as_restructured_text(lines: list[str]) -> list[str]:
    """A docstring's paragraphs: prose or a section such as `Args:` with `code` in it, or indented lines."""
    text: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = paragraph.splitlines()
        if any(row.startswith(" ") for row in rows) and not SECTION.match(rows[0]):
            text += ["::", "", *("    " + row for row in rows), ""]
        else:
            parts = re.split(r"(`+[^`]+`+)", paragraph)
            parts[::2] = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
            parts[1::2] = ["``" + part.strip("`") + "``" for part in parts[1::2]]
            text += ["".join(parts), ""]
    return "\n".join(text).splitlines()


def docstring(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Replace a docstring's lines in place."""
    lines[:] = as_restructured_text(lines)


def outside_links(_app: Any, page: str, source: list[str]) -> None:
    """Show a link that leaves this folder, to code or README, as the file's name: a site holds no source files."""
    here = (ROOT / "docs" / page).parent

    def shown(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        return link[0] if target.is_relative_to(ROOT / "docs") else f"{link[1]} (`{target.relative_to(ROOT)}`)"

    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\((\.\.[^)#]*)\)", shown, source[0])


def setup(app: Any) -> None:
    """Connect the two rewrites."""
    app.connect("autodoc-process-docstring", docstring, priority=100)  # before napoleon, which reads the sections
    app.connect("source-read", outside_links)
