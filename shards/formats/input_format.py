"""Define a format of input: how make-shards recognises it, and how it reads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shards.formats.file_tree import FileTree, open_tree
from shards.formats.image_list import ImageList


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the user gave to make shards of.

    Attributes:
        path: a folder or a file.
        class_names: all classes in the order of their labels; () to find them.
        labels: a file that says the label of each image.
        first_label: the number of the first class in `labels`, 0 or 1; None to find out.
        ignore_unknown: pass over files that are no images of an accepted format, counted.
        no_labels: the images have no labels, or theirs are not to be used.
        format_named: the user has named the format, so that nothing is guessed.
    """

    path: Path
    class_names: tuple[str, ...] = ()
    labels: Path | None = None
    first_label: int | None = None
    ignore_unknown: bool = False
    no_labels: bool = False
    format_named: bool = False

    @cached_property
    def tree(self) -> FileTree:
        """The files of the source; ShardError when it is no folder, zip or tar."""
        return open_tree(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat:
    """One format of input.

    Attributes:
        name: for --format. summary: a few words for messages.
        suits: whether a source looks like this format.
        read: the sets of a source by name, "" for a source that is one set; ShardError or ValueError for anything
            wrong with it, all of it at once.
        takes_labels: whether it reads a list of labels.
    """

    name: str
    summary: str
    suits: Callable[[Source], bool]
    read: Callable[[Source], Mapping[str, ImageList]]
    takes_labels: bool = False
