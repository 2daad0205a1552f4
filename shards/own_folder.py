"""Refuse to write into a directory that another program made; and suggest directories for a misspelt one."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from shards.atomic import TEMPORARY
from shards.documents import NotRegularError, read_regular
from shards.errors import advisable, too_many_files
from shards.names import nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKind:
    """What a command makes of a folder.

    Attributes:
        what: "a run". command: which one makes it.
        is_ours: whether a folder holds the mark of one.
        begun: whether an entry of the folder is what a making leaves that was interrupted before the mark was written.
        utf8: whether its name must be UTF-8: torch writes no checkpoints to other names.
    """

    what: str
    command: str
    is_ours: Callable[[Path], bool]
    begun: Callable[[Path], bool]
    utf8: bool = False


def named(*patterns: str) -> Callable[[Path], bool]:
    """Whether an entry has one of these names."""
    return lambda entry: any(fnmatchcase(entry.name, pattern) for pattern in patterns)


_NOBODYS = named(".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", ".nfs*", f".*{TEMPORARY}")
"""What systems leave in folders that are empty to their users, and a kill in the middle of writing a file."""


_MOST_ENTRIES = 1000
_SUGGESTED = 3
ZARR_ROOT = "zarr.json"
"""In the folder of a cache, and in that of every group and array of Zarr."""
CACHE_KIND = "deit teacher cache"
"""What the attributes of a cache's root have as their `kind`."""


_ABSENT = (FileNotFoundError, NotADirectoryError, NotRegularError)
"""No file of that name is there. After any other error it is unknown whether there is one."""


def is_cache_folder(folder: Path) -> bool:
    """Whether a folder holds the root of a finished cache."""
    return zarr_kind(folder) == _CACHE


INDEX_NAME = "shards.index"
"""In a folder of shards."""
RUN_CONFIG = "config.json"
"""In the folder of a run; others have a file of this name as well."""


SWEEP_FILE = "sweep.json"
"""In the folder of a sweep."""


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds the configuration of a run; OSError where it holds one that cannot be read."""
    try:
        config = json.loads(read_regular(folder / RUN_CONFIG))
    except (*_ABSENT, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"recipe", "train"} <= set(config)


def is_shards_folder(folder: Path) -> bool:
    """Whether a folder holds shards with their index; OSError where nobody may look."""
    return (folder / INDEX_NAME).is_file()


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder holds the grid of a sweep."""
    return (folder / SWEEP_FILE).is_file()


def is_weights(path: Path) -> bool:
    """Whether a path is called as a file of weights is, and is one file."""
    return path.suffix in (".safetensors", ".pth", ".pt", ".bin") and path.is_file()


class _Kind(NamedTuple):
    """A kind of things that users have: what it is called, and which flags and which command take it."""

    what: str
    is_one: Callable[[Path], bool]
    flags: tuple[str, ...] = ()
    command: str = ""


def _ends(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes and path.is_file()


_is_image = _ends(".jpg", ".jpeg", ".png", ".webp")
_OF_WEIGHTS = ("--weights", "--teacher-weights", "--init-weights", "--pretrained")
_KINDS = (
    _Kind("a teacher cache", is_cache_folder, ("--cache",), "cache-status"),
    _Kind("a sweep (its runs are in cells)", is_sweep_folder, (), "report"),
    _Kind("a run", is_run_folder, _OF_WEIGHTS, "report"),
    _Kind("shards", is_shards_folder, ("--shards",), "check-shards"),
    _Kind("a shard", _ends(".tar"), ("--shards",), "check-shards"),
    _Kind("a file of weights", is_weights, _OF_WEIGHTS, "export"),
    _Kind("an image", _is_image, (), "predict"),
    _Kind("an HTML page", _ends(".html")),
    _Kind("a folder of images", lambda path: _holds_image(path, 2), (), "make-shards"),
    _Kind("an empty folder", lambda path: path.is_dir() and not any(path.iterdir())),
)


def _kind(path: Path) -> _Kind | None:
    return next((kind for kind in _KINDS if _is(path, kind.is_one)), None)


def kind_at(path: Path) -> str:
    """Say which kind of things lies at a path: "shards", "a run"; "" for what has no name here, or cannot be read."""
    kind = _kind(path)
    return kind.what if kind else ""


def what_is(path: Path) -> str:
    """Say what lies at a path, and what takes it: "shards; --shards takes them"; "" for what has no name here.

    That is a flag of the command that runs, or else another command.
    """
    kind = _kind(path)
    if kind is None:
        return ""
    taker = next(iter(advisable(*kind.flags)), kind.command)
    return f"{kind.what}; {taker} takes {'them' if kind.what == 'shards' else 'it'}" if taker else kind.what


def _holds_image(folder: Path, deep: int) -> bool:
    """Whether an image lies in a folder or in a folder of it, as far as the first entries tell."""
    return any(_is_image(entry) or (deep > 1 and _holds_image(entry, deep - 1)) for entry in _entries(folder))


_CACHE, _ARRAY, _UNREADABLE = "a cache", "a Zarr array", "a folder with a damaged zarr.json, perhaps a cache"


def zarr_kind(folder: Path) -> str:
    """Which of the things into which no command writes a folder is; "" for none, such as other groups of Zarr."""
    try:
        root = json.loads(read_regular(folder / ZARR_ROOT))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if too_many_files(error):
            raise
        return f"a folder whose zarr.json cannot be read ({error.strerror}), perhaps a cache"
    except (ValueError, RecursionError):
        return _UNREADABLE
    if not isinstance(root, dict):
        return _UNREADABLE
    attributes = root.get("attributes")
    if isinstance(attributes, dict) and attributes.get("kind") == CACHE_KIND:
        return _CACHE
    return _ARRAY if root.get("node_type") == "array" else ""


def suggestion(path: Path, is_one: Callable[[Path], bool]) -> str:
    """Name what the user may have meant by a path that holds nothing of the wanted kind; "" where nothing is found.

    Args:
        is_one: whether a path holds what is wanted.

    What lies in the folder comes first, then paths beside it whose names are similar.
    """
    inner = [entry for entry in _entries(path) if _is(entry, is_one)]
    if inner:
        more = f" and {len(inner) - _SUGGESTED} more" if len(inner) > _SUGGESTED else ""
        return f"it holds {', '.join(entry.name for entry in inner[:_SUGGESTED])}{more}: give {inner[0]}"
    beside = {entry.name: entry for entry in _entries(path.parent) if entry.name != path.name and _is(entry, is_one)}
    near = nearest(path.name, beside) if path.name else []
    return f"did you mean {beside[near[0]]}?" if near else ""


def _is(entry: Path, is_one: Callable[[Path], bool]) -> bool:
    """Whether an entry is one, for a message: what cannot be looked at is called nothing."""
    with suppress(OSError):
        return is_one(entry)
    return False


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder by name, of a large one the first that the system lists; [] where none can be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in islice(entries, _MOST_ENTRIES))
    except OSError:
        return []


def require_file(flag: str, path: Path, suffix: str = "") -> None:
    """ValueError unless a file can be written there: its name ends right, and it is no folder and lies in none's place.

    Args:
        flag: what the user typed the path behind. suffix: such as ".png"; "" for any.
    """
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"{flag} {path}: expected a file name ending in {suffix}")
    if path.is_dir():
        raise ValueError(f"{flag} {path}: expected a file, got a folder; add a file name")
    if (kind := kind_at(path)) and path.suffix != suffix and kind != "an HTML page":
        raise ValueError(f"{flag} {path}: would replace {kind}; choose another name")
    if not path.parent.is_dir():
        got = "a file" if path.parent.exists() else "no folder"
        raise ValueError(f"{flag} {path}: expected a folder {path.parent} to write it in, got {got}; make it first")


def require_own(flag: str, folder: Path, kind: FolderKind) -> None:
    """ValueError unless the folder is new, empty, or one of that kind, and lies in no cache or array of Zarr.

    Args:
        flag: what the user typed the folder behind.
    """
    if kind.utf8 and any("\udc80" <= character <= "\udcff" for character in str(folder)):
        raise ValueError(f"{flag} {folder}: expected a name in UTF-8, got other bytes; choose another one")
    above = folder
    while not os.path.lexists(above) and above != above.parent:
        above = above.parent
    if not above.is_dir():
        what = "a link that leads nowhere" if above.is_symlink() and not above.exists() else "a file"
        raise ValueError(f"{flag} {folder}: expected a folder, got {what}: {above}; choose another place")
    for parent in reversed(folder.resolve().parents):
        if what := zarr_kind(parent):
            raise ValueError(f"{flag} {folder}: would lie inside {what}: {parent}; choose another place")
    if above != folder:
        if not os.access(above, os.W_OK | os.X_OK):
            raise ValueError(f"{flag} {folder}: cannot be made: {above} may not be written; choose another place")
        return
    if kind.is_ours(folder):
        return
    foreign = sorted(entry.name for entry in folder.iterdir() if not _NOBODYS(entry) and not kind.begun(entry))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        got = kind_at(folder) or "one"
        raise ValueError(
            f"{flag} {folder}: expected a new or empty folder, or {kind.what} made by {kind.command}; "
            f"got {got} with {', '.join(foreign[:3])}{more}. Nothing was changed; choose another place"
        )
