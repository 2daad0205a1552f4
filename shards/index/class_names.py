"""Read and write class names in files: the user's list for --class-names, and the copy that lies beside an index.

The user's list has one class a line, in the order of the labels: UTF-8 (a byte order mark is taken off), blanks around
a name and empty lines do not count. A name may hold blanks and commas. A line that begins with # or has a column with a
number is refused: as a class it would move the labels of those after it.

The copy beside an index (`shards.classes.json`) brings the names back where the index is deleted or damaged.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.atomic import atomic_file
from shards.documents import read_document, read_utf8
from shards.errors import Problem, ShardError, problems_text
from shards.text.figures import count

_NUMBERED = re.compile(r"[0-9]+\s*[,;\t].*|.*[,;\t]\s*[0-9]+")


def read_class_names(path: Path, flag: str = "--class-names") -> tuple[str, ...]:
    """Read one class a line, in the order of the labels.

    Args:
        flag: what messages call the file.

    Errors:
        ValueError for a file that cannot be read or holds fewer than two names, counting all lines that are no names.
    """
    where = f"{flag} {path}"
    text = read_utf8(path, where, "one class a line")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    problems = list(_wrong_lines(lines))
    if problems:
        raise ValueError(
            problems_text(where, problems, what=f"{len(problems)} of {count(len(lines), 'line')} are no class names")
        )
    if len(lines) < 2:
        raise ValueError(f"{where}: expected at least two classes, one a line, got {len(lines)}")
    return tuple(name for _, name in lines)


def _wrong_lines(lines: Sequence[tuple[int, str]]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for number, name in lines:
        other = first.setdefault(name, number)
        if name.startswith("#"):
            yield Problem(f"line {number}: {name!r}: a comment", "comment", "remove comments: each line is a class")
        elif _NUMBERED.fullmatch(name):
            advice = "keep the column of names alone, in the order of the labels"
            yield Problem(f"line {number}: {name!r}: a column of numbers", "line of a table", advice)
        elif other != number:
            yield Problem(f"line {number}: {name!r}: also line {other}", "repeated name", "name each class once")
        elif any(ord(c) < 32 or ord(c) == 127 for c in name):
            advice = "a name has no tabs and no other control characters: keep the names alone"
            yield Problem(f"line {number}: {name!r}: has control characters", "control characters", advice)


def names_path(index_path: Path) -> Path:
    """Return the path of the copy of an index's class names."""
    return index_path.with_suffix(".classes.json")


def write_copy(index_path: Path, class_names: Sequence[str]) -> None:
    """Write the class names beside an index, or remove those of the one before; OSError when that is impossible."""
    path = names_path(index_path)
    if not class_names:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as file:
        file.write(json.dumps(list(class_names), ensure_ascii=False, indent=0).encode() + b"\n")


def read_copy(index_path: Path) -> tuple[str, ...]:
    """Read the class names beside an index; () when there is no such file.

    Errors:
        ShardError when the file is damaged.
    """
    path = names_path(index_path)
    if not path.exists():
        return ()
    advice = "give the names with --class-names, or remove this file"
    return tuple(read_document(path, list[str], error=ShardError, advice=advice))
