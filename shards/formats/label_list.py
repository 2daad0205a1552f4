"""Lists of labels: a line for each image, with its path and its class, as CSV, TSV or text.

Of more than two columns the header says which are meant. What ImageNet comes with is known by its content:
`LOC_val_solution.csv` (the first word of `PredictionString` is the class) and a column of numbers alone, the ground
truth of the devkit, whose numbers have an order of their own that only the devkit's `meta.mat` tells.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.documents import open_regular

_PATHS = (
    *("path", "file", "filename", "file_name", "filepath"),
    *("image", "image_name", "imageid", "image_id", "name", "id"),
)
_CLASSES = ("label", "class", "class_name", "classname", "category", "target", "wnid", "synset", "breed", "label_name")
_BOXES = "predictionstring"
_WHOLE = re.compile(r"([0-9]{1,9})(?:\.0)?")


class LabelLine(NamedTuple):
    """A line of a list: its number, what it calls the image ("" for the next one by name), and the class."""

    number: int
    image: str
    label: str


def parse_labels(text: str, where: str, knows: Callable[[str], bool]) -> list[LabelLine]:
    """The lines of a list of labels.

    Args:
        where: what messages call the list. knows: whether there is an image of that name; tells a header from a line.

    Errors:
        ValueError for a list that is empty or whose columns nobody can tell.
    """
    rows = _rows(text)
    if not rows:
        raise ValueError(f"{where}: expected a line for each image, got none")
    if all(len(cells) == 1 and cells[0].isdigit() for _, cells in rows):
        return [LabelLine(number, "", cells[0]) for number, cells in rows]
    header = [cell.lower() for cell in rows[0][1]]
    named = any(cell in (*_PATHS, *_CLASSES, _BOXES) for cell in header) and not knows(rows[0][1][0])
    unknown = len(header) == 2 and len(rows) > 1 and not knows(rows[0][1][0]) and knows(rows[1][1][0])
    has_header = named or unknown
    of_image, of_label = _columns(header, where) if named else (0, 1)
    first_word = named and header[of_label] == _BOXES
    lines = []
    for number, cells in rows[has_header:]:
        if len(cells) != len(header) or len(cells) < 2:
            raise ValueError(
                f"{where}: line {number}: expected {max(2, len(header))} columns, path and class, got {len(cells)}; "
                "separate them by commas, tabs or a blank"
            )
        label = cells[of_label].split()[0] if first_word and cells[of_label] else cells[of_label]
        lines.append(LabelLine(number, cells[of_image], label))
    if not lines:
        raise ValueError(f"{where}: expected a line for each image, got a header alone")
    return lines


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, cut into columns."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for delimiter in "\t,;":
        if all(delimiter in line for _, line in lines[:2]):
            cells = csv.reader([line for _, line in lines], delimiter=delimiter, skipinitialspace=True)
            return [(lines[at][0], [cell.strip() for cell in row]) for at, row in enumerate(cells)]
    return [(number, line.strip().rsplit(None, 1)) for number, line in lines]


def _columns(header: Sequence[str], where: str) -> tuple[int, int]:
    """Find the columns of the path and the class."""
    images = [at for at, cell in enumerate(header) if cell in _PATHS]
    labels = [at for at, cell in enumerate(header) if cell in (*_CLASSES, _BOXES)]
    if len(header) == 2 and len(images) + len(labels) == 1:
        images, labels = (images, [1 - images[0]]) if images else ([1 - labels[0]], labels)
    if not images or len(labels) != 1:
        raise ValueError(
            f"{where}: expected a header with one column of paths (such as path) and one of classes (label), got "
            f"{', '.join(header)[:200]}; rename the columns, or keep these two"
        )
    return images[0], labels[0]


def as_numbers(labels: Sequence[str]) -> list[int] | None:
    """The labels as numbers ("3" and "3.0" are 3), where all are numbers; else None.

    Two that differ by leading zeros, such as "07" and "007", are names.
    """
    matches = [match for label in labels if (match := _WHOLE.fullmatch(label))]
    if len(matches) < len(labels) or len({int(match[1]) for match in matches}) < len({match[1] for match in matches}):
        return None
    return [int(match[1]) for match in matches]


def devkit_names(path: Path) -> dict[int, str]:
    """Number → wnid of the 1,000 classes, from the `meta.mat` of ImageNet's devkit.

    Errors:
        ValueError when it cannot be read, or scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(f"{path}: reading the devkit's meta.mat needs scipy; pip install scipy") from None
    try:
        with open_regular(path) as file:
            synsets = loadmat(file, squeeze_me=True)["synsets"]
        rows = [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_children"])) for row in synsets]
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: expected meta.mat of ILSVRC2012's devkit, got {type(error).__name__}: {error}; copy it again"
        ) from error
    return {number: wnid for number, wnid, num_children in rows if num_children == 0}
