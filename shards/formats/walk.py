"""Walk over a tree of files: which are images, which are passed over, and what is wrong with the others."""

import stat
from collections import Counter
from collections.abc import Iterator, Sequence

from shards.documents import kind_of_file
from shards.errors import Problem, ShardError, problems_text, system_words, unreadable_now
from shards.formats.file_tree import FileTree, TreeEntry
from shards.formats.image_list import SourceImage, key_of
from shards.index.index_checks import SUFFIXES

IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave behind; and AppleDouble's "._*"."""
IGNORED_FOLDERS = ("__MACOSX", "@eaDir", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that systems and programs leave behind; and all whose names begin with a dot."""
FILE_SUFFIXES = (*SUFFIXES, "jfif", "jpe", "pjpeg", "pjp")
"""How files of the accepted formats are called; the last four are JPEGs."""
OTHER_PICTURES = ("gif", "bmp", "tif", "tiff", "heic", "heif", "avif", "jp2", "jxl", "psd", "ico", "ppm", "pgm")
"""Pictures that must be converted first."""
OF_A_FILE_MANAGER = "file of a file manager"
"""What messages call such a file."""


_PASS_OVER = (
    "convert pictures of other formats, move other files away, or leave all of them out with --ignore-unknown; "
    "--skip-bad left-out.txt leaves out images that cannot be read, too, and lists them in that new file"
)


class ImageWalk:
    """A walk over a tree that notes what is wrong and goes on.

    Attributes:
        problems: what is wrong. ignored: how many files and folders were passed over, by what they are called.
    """

    def __init__(self, tree: FileTree, *, ignore_unknown: bool, lists: Sequence[str] = ()) -> None:
        """Look at nothing yet.

        Args:
            ignore_unknown: pass over files that are no images of an accepted format (by suffix), counted.
            lists: paths of files that belong to the source and are no images.
        """
        self.problems: list[Problem] = []
        self.ignored: Counter[str] = Counter()
        self._tree = tree
        self._ignore_unknown = ignore_unknown
        self._lists = frozenset(lists)

    def entries(self, folder: str) -> list[TreeEntry]:
        """The entries of a folder by name, without what systems and file managers leave behind."""
        try:
            entries = self._tree.entries(folder)
        except OSError as error:
            self._note_refused(error)
            return []
        wanted = []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_folder and (entry.name.startswith(".") or entry.name in IGNORED_FOLDERS):
                self.ignored["hidden or helper folder"] += 1
            elif is_file_managers(entry.name):
                self.ignored[OF_A_FILE_MANAGER] += 1
            elif any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in entry.name):
                self.note(repr(path), "expected a UTF-8 name without control characters", "unusable name", "rename it")
            elif path not in self._lists:
                wanted.append(entry)
        return wanted

    def classes(self) -> list[str]:
        """The folders of the root; any other file there is a problem, or passed over."""
        names = []
        for entry in self.entries(""):
            suffix = suffix_of(entry.name)
            if entry.is_folder:
                names.append(entry.name)
            elif self._ignore_unknown and suffix not in FILE_SUFFIXES:
                self.ignored[_called(suffix)] += 1
            else:
                advice = "move it into a class or away; images side by side need a list of their labels: --labels FILE"
                advice = advice if suffix in FILE_SUFFIXES else _PASS_OVER
                self.note(entry.name, "expected only class folders here, got a file", "file beside the classes", advice)
        return names

    def images(self, folder: str, label: int, above: tuple[str, ...] = ()) -> Iterator[SourceImage]:
        """The images below a folder of the tree, in the order of their names."""
        above = (*above, self._tree.identity(folder))
        for entry in self.entries(folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not entry.is_folder:
                yield from self._image(entry.name, path, label)
            elif (real := self._tree.identity(path)) in above:
                self.note(path, f"a link to a folder that holds it ({real})", "link in a circle", "remove the link")
            else:
                yield from self.images(path, label, above)

    def all_images(self, label: int) -> list[SourceImage]:
        """All images of the tree, by path; ShardError where there are none, and counting what is wrong."""
        images = sorted(self.images("", label))
        self.note_equal_keys(images)
        if self.problems:
            raise ShardError(problems_text(self._tree.name, self.problems))
        if not images:
            raise ShardError(f"{self._tree.name}: expected images, got none; check the path")
        return images

    def _image(self, name: str, path: str, label: int) -> Iterator[SourceImage]:
        suffix = suffix_of(name)
        if suffix not in FILE_SUFFIXES:
            self._stray(path, suffix)
            return
        try:
            status = self._tree.status(path)
        except OSError as error:
            if unreadable_now(error, or_disk=True):
                self._note_refused(error)
            else:
                self.note(path, f"cannot be read: {error.strerror}", "unreadable", "check the link")
            return
        if not stat.S_ISREG(status.mode):
            got = kind_of_file(status.mode)
            self.note(path, f"expected a regular file, got {got}", "no regular file", "remove it")
            return
        yield SourceImage(path, key_of(path), label, status.size, status.mtime_ns, status.offset)

    def _stray(self, path: str, suffix: str) -> None:
        """A file that is no image of an accepted format: passed over, or a problem of its suffix."""
        called = _called(suffix)
        if self._ignore_unknown:
            self.ignored[called] += 1
        elif suffix in OTHER_PICTURES:
            text = f"expected a JPEG, PNG or WebP image, got a {called} picture"
            self.note(path, text, f"{called} picture", _PASS_OVER)
        elif suffix == "cls":
            advice = "these are WebDataset shards already: check-shards writes their index"
            self.note(path, "expected an image, got the label of a sample", "label file .cls", advice)
        else:
            known = ", ".join(f".{suffix}" for suffix in SUFFIXES)
            self.note(path, f"expected an image ({known}), got another file", f"file {called}", _PASS_OVER)

    def _note_refused(self, error: OSError) -> None:
        """Note what the system says of a file or folder, and what helps."""
        text, _, advice = system_words(error).partition("; ")
        self.problems.append(Problem(text, "unreadable", advice))

    def note(self, path: str, what: str, kind: str, advice: str) -> None:
        """Note a problem of a path."""
        self.problems.append(Problem(f"{path}: {what}", kind, advice))

    def note_equal_keys(self, images: Sequence[SourceImage]) -> None:
        """Note every image whose key another image has."""
        paths: dict[str, str] = {}
        advice = "a key is the path without the suffix: rename one of each two"
        for image in images:
            other = paths.setdefault(image.key, image.path)
            if other != image.path:
                text = f"{other} and {image.path} would have one key, {image.key!r}"
                self.problems.append(Problem(text, "two files of one key", advice))


def is_file_managers(name: str) -> bool:
    """Whether a file of that name is one that a file manager left behind."""
    return name in IGNORED_NAMES or name.startswith("._")


def suffix_of(name: str) -> str:
    """The suffix in lower case, without the dot; "" where there is none or nothing before it."""
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem else ""


def _called(suffix: str) -> str:
    return f".{suffix}" if suffix else "without a suffix"
