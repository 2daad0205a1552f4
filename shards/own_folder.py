"""Refuse to write into a directory that another program made; and suggest directories for a misspelt one."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from shards.atomic import TEMPORARY
from shards.documents import NotRegularError, read_regular
from shards.errors import too_many_files
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
"""Nothing of that name is there, or something else; any other error says nothing of what is there."""


def is_cache_folder(folder: Path) -> bool:
    """Whether a folder holds the root of a finished cache."""
    return zarr_kind(folder) == _CACHE


INDEX_NAME = "shards.index"
"""In a folder of shards."""
RUN_CONFIG = "config.json"
"""In the folder of a run; others have a file of this name as well."""


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
    """Whether an entry is one; what cannot be looked at is not suggested."""
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
        raise ValueError(
            f"{flag} {folder}: expected a new or empty folder, or {kind.what} made by {kind.command}; "
            f"got one with {', '.join(foreign[:3])}{more}. Nothing was changed; choose another place"
        )
