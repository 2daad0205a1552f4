"""A list of images with their labels: what every input format becomes, and what the writer of shards takes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from shards.formats.file_tree import FileTree


class SourceImage(NamedTuple):
    """An image of a source.

    Attributes:
        path: from the root of the source. key: of its sample. label: its class, -1 in a list without labels.
        size: in bytes; -1 for an unknown one. mtime_ns: time of change (ns).
        offset: where its bytes are in an archive; -1 for a file of its own.
    """

    path: str
    key: str
    label: int
    size: int
    mtime_ns: int
    offset: int = -1

    def __repr__(self) -> str:
        """The fields; without an offset as journals of earlier versions have hashed it."""
        shown = self._asdict()
        if self.offset < 0:
            del shown["offset"]
        return f"SourceImage({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageList:
    """All images of one set.

    Attributes:
        tree: where the bytes of the images are.
        class_names: a label is a place in them; () when the labels are numbers without names.
        num_classes: of the labels; 0 where there are none and nobody has named the classes.
        images: sorted by path.
        ignored: how many files were passed over, by what they are called.
        without_images: class names that have no image.
        remarks: sentences for the reader, on how the source was understood.
        labelled: whether its images have labels.
    """

    tree: FileTree
    class_names: tuple[str, ...]
    num_classes: int
    images: list[SourceImage]
    ignored: Mapping[str, int] = field(default_factory=dict)
    without_images: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    labelled: bool = True

    def digest(self) -> str:
        """sha256 (hex) over classes and images: path, size and time of change of each."""
        sha = hashlib.sha256(repr(self.class_names).encode())
        for image in self.images:
            sha.update(repr(image).encode())
        return sha.hexdigest()

    def read(self, image: SourceImage, most_bytes: int) -> bytes:
        """The bytes of an image; OSError when they cannot be read or are more than `most_bytes`."""
        return self.tree.read(image.path, image.offset, image.size, most_bytes)


def key_of(path: str) -> str:
    """The key of the sample of an image: its path without the suffix.

    As a key ends at the first dot of the file name, other dots are written %2E (and % is written %25), so that
    different files have different keys.
    """
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0]
    return f"{folder}{slash}{stem.replace('%', '%25').replace('.', '%2E')}"
