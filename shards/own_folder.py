"""Refuse to write into a directory that is neither new, nor empty, nor made by the same command."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from shards.atomic import TEMPORARY


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
    """ValueError unless the folder is new, empty, or one of that kind.

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
