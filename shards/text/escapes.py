"""Escape text that comes from files, for terminals, Markdown and spreadsheets.

Names of files, classes, shards and runs are chosen by other people. A terminal obeys control characters, a Markdown
page obeys HTML, a spreadsheet obeys formulas: every text passes through one of these functions on its way out.
"""

import re
import unicodedata

_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format (direction marks among them), surrogates, line and paragraph separators."""
_HARMLESS = frozenset("\n\t\u200c\u200d")
"""Line ends and tabs are ours; scripts and emoji need the two joiners."""
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)|^[#+-]")
"""Underscores inside a word are no emphasis; #, + and - count at the beginning only."""
_FORMULA = ("=", "+", "-", "@")


def visible(text: str) -> str:
    r"""Replace what a terminal would obey by `\uXXXX`, as JSON writes it: JSON stays JSON, and nothing is lost.

    Newlines and tabs stay: a text may have several lines. Names pass through `one_line` instead.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _OBEYED and c not in _HARMLESS else c for c in text)


def one_line(name: object) -> str:
    """A name as one line of visible text: newlines and tabs are escaped like everything else."""
    return visible(str(name)).replace("\n", "\\u000a").replace("\t", "\\u0009")


def markdown(name: object) -> str:
    """A name as plain text inside a Markdown page, a cell of a table among them: no markup, no HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(name))


def markdown_code(name: object) -> str:
    """A name as a code span in a cell of a Markdown table; the fence is longer than any in the name."""
    text = one_line(name).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def csv_cell(value: object) -> object:
    """A value as a spreadsheet shows it: text that would be a formula begins with an apostrophe; numbers stay."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _escaped(character: str) -> str:
    """The UTF-16 units of a character as `\\uXXXX`."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
