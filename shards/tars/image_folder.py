"""An ImageFolder tree as a list of samples: folders below the root are classes, images below them are samples."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.documents import kind_of_file
from shards.errors import Problem, ShardError, problems_text
from shards.index.index_checks import SUFFIXES, require_classes
from shards.names import nearest

IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave behind; and AppleDouble's "._*"
FILE_SUFFIXES = (*SUFFIXES, "jfif", "jpe", "pjpeg", "pjp")
"""How files of the accepted formats are called; the last four are JPEGs."""
OTHER_PICTURES = ("gif", "bmp", "tif", "tiff", "heic", "heif", "avif", "jp2", "jxl", "psd", "ico", "ppm", "pgm")
"""Pictures that must be converted first."""


class SourceImage(NamedTuple):
    """An image of the tree: its path from the root, its key, label, size in bytes and time of change (ns)."""

    path: str
    key: str
    label: int
    size: int
    mtime_ns: int


class Folder(NamedTuple):
    """The tree.

    Attributes:
        class_names: a label is a place in them. images: sorted by path.
        ignored: how many files were passed over, by suffix. without_images: class names that have no folder.
    """

    class_names: tuple[str, ...]
    images: list[SourceImage]
    ignored: Mapping[str, int]
    without_images: tuple[str, ...]

    def digest(self) -> str:
        """sha256 (hex) over classes and images: path, size and time of change of each."""
        sha = hashlib.sha256(repr(self.class_names).encode())
        for image in self.images:
            sha.update(repr(image).encode())
        return sha.hexdigest()


def list_folder(source: Path, class_names: Sequence[str] = (), *, ignore_unknown: bool = False) -> Folder:
    """List `source`; nothing is opened yet.

    Args:
        class_names: all classes in the order of their labels, where some may have no folder here, such as those of a
            teacher over a subset of its classes; default: the folders, sorted.
        ignore_unknown: pass over files that are no images of an accepted format (by suffix), counted.

    A key is the path without the image suffix. As a key ends at the first dot of the file name, other dots are written
    %2E (and % is written %25), so that different files have different keys.

    Errors:
        ShardError counting everything that is wrong: a missing or empty tree, classes without images or not among the
        names, files that are no images (by suffix) and are not in `IGNORED_NAMES`, what is no regular file, and files
        that would have one key.
    """
    if not source.is_dir():
        if source.is_file() and ".tar" in source.suffixes:
            raise ShardError(f"{source}: expected a folder with one folder per class, got a tar; unpack it first")
        raise ShardError(f"{source}: expected a folder with one folder per class, got no folder; check the path")
    walk = _Walk(str(source), ignore_unknown)
    classes = [entry for entry in walk.entries("") if walk.is_class(entry)]
    if not classes and not walk.problems:
        raise ShardError(f"{source}: expected one folder per class, got none; check the path")
    names = tuple(class_names) or tuple(entry.name for entry in classes)
    if classes:
        require_classes(source, names, len(names))
    labels = {name: label for label, name in enumerate(names)}
    if len(labels) != len(names):
        raise ValueError("class_names: expected each class once; remove the repeated names")
    images: list[SourceImage] = []
    for entry in classes:
        if entry.name not in labels:
            walk.problems.append(_not_a_class(entry.name, names))
            continue
        before, wrong = len(images), len(walk.problems)
        images.extend(walk.images(entry.name, labels[entry.name], (os.path.realpath(entry.path),)))
        if len(images) == before and wrong == len(walk.problems):
            advice = "remove the folder or fill it"
            walk.problems.append(Problem(f"{entry.name}: expected images, got none", "class without images", advice))
    images.sort()
    walk.problems.extend(_equal_keys(images))
    if walk.problems:
        raise ShardError(problems_text(str(source), walk.problems))
    found = {image.label for image in images}
    without = tuple(name for label, name in enumerate(names) if label not in found)
    return Folder(names, images, dict(walk.ignored), without)


class _Walk:
    """A walk over a tree that notes what is wrong and goes on."""

    def __init__(self, root: str, ignore_unknown: bool) -> None:
        self.problems: list[Problem] = []
        self.ignored: Counter[str] = Counter()
        self._root = root
        self._ignore_unknown = ignore_unknown

    def entries(self, relative: str) -> list[os.DirEntry[str]]:
        """The entries of a folder by name, without what file managers leave behind."""
        try:
            with os.scandir(os.path.join(self._root, relative)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._note(relative or ".", f"cannot be listed: {error.strerror}", "unreadable", "check the permissions")
            return []
        kept = []
        for entry in entries:
            if entry.name in IGNORED_NAMES or entry.name.startswith("._"):
                continue
            if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in entry.name):
                name = repr(f"{relative}/{entry.name}" if relative else entry.name)
                self._note(name, "expected a UTF-8 name without control characters", "unusable name", "rename it")
            else:
                kept.append(entry)
        return kept

    def is_class(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry of the root is a folder; anything else is a problem, or passed over."""
        if entry.is_dir():
            return True
        suffix = _suffix(entry.name)
        if self._ignore_unknown and suffix not in FILE_SUFFIXES:
            self.ignored[f".{suffix}" if suffix else "without a suffix"] += 1
        else:
            advice = "move it into a class or away"
            self._note(entry.name, "expected only class folders here, got a file", "file beside the classes", advice)
        return False

    def images(self, relative: str, label: int, above: tuple[str, ...]) -> Iterator[SourceImage]:
        """The images below a folder of the tree, in the order of their names."""
        for entry in self.entries(relative):
            path = f"{relative}/{entry.name}"
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in above:
                    self._note(
                        path, f"a link to a folder that holds it ({real})", "link in a circle", "remove the link"
                    )
                else:
                    yield from self.images(path, label, (*above, real))
            elif self._is_image(entry, path):
                stem = entry.name.rpartition(".")[0]
                key = f"{relative}/{stem.replace('%', '%25').replace('.', '%2E')}"
                status = entry.stat()
                yield SourceImage(path, key, label, status.st_size, status.st_mtime_ns)

    def _is_image(self, entry: os.DirEntry[str], path: str) -> bool:
        suffix = _suffix(entry.name)
        if suffix not in FILE_SUFFIXES:
            self._stray(path, suffix)
            return False
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            advice = "check the link or its permissions"
            self._note(path, f"cannot be read: {error.strerror}", "unreadable", advice)
            return False
        if not stat.S_ISREG(mode):
            got = kind_of_file(mode)
            self._note(path, f"expected a regular file, got {got}", "no regular file", "remove it")
            return False
        return True

    def _stray(self, path: str, suffix: str) -> None:
        """A file that is no image of an accepted format: passed over, or a problem of its suffix."""
        called = f".{suffix}" if suffix else "without a suffix"
        if self._ignore_unknown:
            self.ignored[called] += 1
        elif suffix in OTHER_PICTURES:
            text = f"expected a JPEG, PNG or WebP image, got a picture of another format ({called})"
            self._note(path, text, f"{called} picture", "convert pictures of other formats to PNG or JPEG")
        else:
            known = ", ".join(f".{suffix}" for suffix in SUFFIXES)
            advice = "move other files out of the tree, or pass over them with --ignore-unknown"
            self._note(path, f"expected an image ({known}), got another file", f"file {called}", advice)

    def _note(self, path: str, what: str, kind: str, advice: str) -> None:
        self.problems.append(Problem(f"{path}: {what}", kind, advice))


def _suffix(name: str) -> str:
    """In lower case, without the dot; "" where there is none or nothing before it."""
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem else ""


def _not_a_class(name: str, names: Sequence[str]) -> Problem:
    near = nearest(name, names)
    said = f"; the nearest is {near[0]!r}" if near else ""
    text = f"{name}: this folder is not among the {len(names)} class names given{said}"
    return Problem(text, "folder that is no class", "add the names, correct them, or move the folders away")


def _equal_keys(images: Sequence[SourceImage]) -> Iterator[Problem]:
    paths: dict[str, str] = {}
    for image in images:
        other = paths.setdefault(image.key, image.path)
        if other != image.path:
            text = f"{other} and {image.path} would have one key, {image.key!r}"
            yield Problem(text, "two files of one key", "a key is the path without the suffix: rename one of each two")
