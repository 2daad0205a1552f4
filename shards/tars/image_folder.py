"""An ImageFolder tree as a list of samples: folders below the root are classes, images below them are samples."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.documents import read_regular
from shards.errors import ShardError
from shards.index.shard_index import SUFFIXES

IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave behind; and AppleDouble's "._*"


class SourceImage(NamedTuple):
    """An image of the tree: its path from the root, its key, label, size in bytes and time of change (ns)."""

    path: str
    key: str
    label: int
    size: int
    mtime_ns: int


class Folder(NamedTuple):
    """The tree: class names (a label is a place in them) and the images, sorted by path."""

    class_names: tuple[str, ...]
    images: list[SourceImage]

    def digest(self) -> str:
        """sha256 (hex) over classes and images: path, size and time of change of each."""
        sha = hashlib.sha256(repr(self.class_names).encode())
        for image in self.images:
            sha.update(repr(image).encode())
        return sha.hexdigest()


def list_folder(source: Path, class_names: Sequence[str] = ()) -> Folder:
    """List `source`; nothing is opened yet.

    Args:
        class_names: all classes in the order of their labels, where some may have no folder here, such as those of a
            teacher over a subset of its classes; default: the folders, sorted.

    A key is the path without the image suffix. As a key ends at the first dot of the file name, other dots are written
    %2E (and % is written %25), so that different files have different keys.

    Errors:
        ShardError for a missing or empty tree, a class without images, files that are no images (by suffix) and are
        not in `IGNORED_NAMES`, and two files that would have one key.
    """
    if not source.is_dir():
        raise ShardError(f"{source}: expected a folder with one folder per class, got no folder; check the path")
    classes = [entry for entry in _entries(source) if _require_class(entry)]
    if not classes:
        raise ShardError(f"{source}: expected one folder per class, got none; check the path")
    names = tuple(class_names) or tuple(entry.name for entry in classes)
    labels = {name: label for label, name in enumerate(names)}
    if len(labels) != len(names):
        raise ValueError("class_names: expected each class once; remove the repeated names")
    images: list[SourceImage] = []
    for entry in classes:
        if entry.name not in labels:
            raise ShardError(f"{entry.path}: not among the {len(names)} class names given; add it or move it away")
        label = labels[entry.name]
        before = len(images)
        images.extend(_images(entry.path, entry.name, label, (os.path.realpath(entry.path),)))
        if len(images) == before:
            raise ShardError(f"{entry.path}: expected images, got none; remove the folder or fill it")
    images.sort()
    _require_unique_keys(source, images)
    return Folder(names, images)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, without what file managers leave behind."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ShardError(f"{folder}: cannot be listed: {error}; check its permissions") from error
    kept = [entry for entry in entries if entry.name not in IGNORED_NAMES and not entry.name.startswith("._")]
    for entry in kept:
        if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in entry.name):
            raise ShardError(f"{entry.path!r}: expected a UTF-8 name without control characters; rename it")
    return kept


def _require_class(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir():
        raise ShardError(f"{entry.path}: expected only class folders here, got a file; move it into a class or away")
    return True


def _images(folder: str, relative: str, label: int, above: tuple[str, ...]) -> Iterator[SourceImage]:
    for entry in _entries(folder):
        path = f"{relative}/{entry.name}"
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in above:
                raise ShardError(f"{entry.path}: a link to a folder that holds it ({real}); remove the link")
            yield from _images(entry.path, path, label, (*above, real))
            continue
        stem, dot, suffix = entry.name.rpartition(".")
        if not dot or not stem or suffix.lower() not in SUFFIXES:
            known = ", ".join(f".{suffix}" for suffix in SUFFIXES)
            raise ShardError(f"{entry.path}: expected an image ({known}), got another file; move it out of the tree")
        try:
            status = entry.stat()
        except OSError as error:
            raise ShardError(f"{entry.path}: cannot be read: {error}; check the link or its permissions") from error
        key = f"{relative}/{stem.replace('%', '%25').replace('.', '%2E')}"
        yield SourceImage(path, key, label, status.st_size, status.st_mtime_ns)


def _require_unique_keys(source: Path, images: list[SourceImage]) -> None:
    paths: dict[str, str] = {}
    for image in images:
        other = paths.setdefault(image.key, image.path)
        if other != image.path:
            raise ShardError(
                f"{source}: {other} and {image.path} would have one key, {image.key!r}; a key is the path without the "
                "suffix: rename one"
            )


def read_class_names(path: Path) -> tuple[str, ...]:
    """One class a line, in the order of the labels; ValueError when the file cannot be read."""
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--class-names {path}: cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())
