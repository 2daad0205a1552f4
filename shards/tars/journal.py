"""The journal of make-shards: which tars of a folder are finished, and from which source and settings.

JSON lines: the settings first, then name and digest of each finished tar. A line that a kill cut short is the last one
and says nothing; every other line must parse.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from shards.atomic import TEMPORARY, atomic_file
from shards.documents import checked, matching, parse_json, read_regular
from shards.errors import ShardError
from shards.locks import locked
from shards.own_folder import INDEX_NAME, FolderKind, named

JOURNAL_NAME = ".make-shards.jsonl"
_DEFAULT = "as they are"  # of pixels, sides and quality, which are absent at the default
_ADVICE = "the journal of make-shards is damaged: remove the folder and run it again"


class FinishedTar(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One finished tar; fields with a default are absent at it, as in journals of earlier versions.

    Attributes:
        source: digest of the images it was made from.
        skipped: images that were left out, with the reason. turned, transparent: how many images have an EXIF
            orientation, or transparent pixels.
    """

    name: str
    digest: str
    source: str = ""
    skipped: tuple[str, ...] = ()
    turned: int = 0
    transparent: int = 0


SHARDS_FOLDER = FolderKind(
    what="shards",
    command="make-shards",
    is_ours=lambda folder: (folder / JOURNAL_NAME).is_file(),
    begun=named(".make-shards.*", "..make-shards.*"),
)
"""A folder that make-shards writes into: its journal is the first file there, and goes wherever the folder goes."""


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that the shards of a folder were begun with; empty where no shard is finished."""
    path = folder / JOURNAL_NAME
    if not path.is_file() or not _has_shards(folder):
        return {}
    try:
        settings = json.loads(read_regular(path).split(b"\n")[0])
    except (ValueError, RecursionError):
        return {}  # said by the journal itself when it is opened
    return settings if isinstance(settings, dict) else {}


class Journal:
    """The journal of one destination folder, locked while it is open; use it in a `with`."""

    def __init__(self, folder: Path, settings: Mapping[str, int | str], changes: Callable[[], str] = str) -> None:
        """Remember where and what; nothing is touched before the `with`.

        Args:
            changes: says how the source differs from the shards of the folder, for an error; "" where nobody knows:
                the tars are then made again, and must be as they are.
        """
        self._recorded: dict[str, FinishedTar] = {}
        self._written: Mapping[str, int | str] = settings  # what the file says
        self._folder = folder
        self._settings = dict(settings)
        self._changes = changes
        self._held = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Journal":
        """Lock the folder, remove what a killed run left half-written, and read the journal.

        Errors:
            ShardError when another process works here, or the journal is of another source or other settings.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            if not held.enter_context(locked(self._folder / ".make-shards.lock", remove=True)):
                raise ShardError(f"{self._folder}: another make-shards works here; wait for it to end")
            for leftover in matching(self._folder, f".*.tar.*{TEMPORARY}"):
                leftover.unlink()
            self._read(self._folder / JOURNAL_NAME)
            self._held = held.pop_all()
        self._rewrite()
        self._file = open(self._folder / JOURNAL_NAME, "ab")
        return self

    def _rewrite(self) -> None:
        """Write the file anew, without a line that was cut."""
        lines = [self._written, *map(msgspec.to_builtins, self._recorded.values())]
        with atomic_file(self._folder / JOURNAL_NAME) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)

    def finished(self, name: str, source: str) -> FinishedTar | None:
        """Return the note of a tar that an earlier run made of these images; None for none.

        Args:
            source: digest of the images it would be made from.
        """
        entry = self._recorded.get(name)
        same = entry is not None and (entry.source == source or (not entry.source and self._written == self._settings))
        return entry if same else None

    def expected(self, name: str) -> str:
        """Digest (hex) that a tar must have when it is made again; "" where it may have any.

        The tars of a finished set whose source has the same names and sizes, but other times of change, must stay.
        """
        entry = self._recorded.get(name)
        return entry.digest if entry and self._written != self._settings else ""

    def note(self, entry: FinishedTar) -> None:
        """Note a finished tar; it is on the disk when this returns."""
        assert self._file is not None
        if self._recorded.get(entry.name) in (entry, FinishedTar(entry.name, entry.digest)):
            return
        self._file.write(json.dumps(msgspec.to_builtins(entry)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._recorded[entry.name] = entry

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None and self._written != self._settings:  # every tar was made again and is the same
            self._written = self._settings
            self._rewrite()
        self._held.close()

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        lines = read_regular(path).split(b"\n")[:-1]  # what follows the last newline was cut by a kill
        parsed = [parse_json(line, path, error=ShardError, advice=_ADVICE) for line in lines] or [self._settings]
        settings = checked(parsed[0], dict[str, int | str], path, error=ShardError, advice=_ADVICE)
        entries = checked(parsed[1:], list[FinishedTar], path, error=ShardError, advice=_ADVICE)
        names = {**settings, **self._settings}
        differing = [name for name in names if self._settings.get(name) != settings.get(name)]
        if differing and not _has_shards(self._folder):
            return  # of a run that finished no shard: nothing was made with its settings
        self._recorded = {entry.name: entry for entry in entries}
        if differing == ["source_digest"] and not (self._folder / INDEX_NAME).exists():
            # An image was replaced before all shards were finished: those of other images are kept.
            self._recorded = {entry.name: entry for entry in entries if entry.source}
            return
        if differing == ["source_digest"] and not self._changes():
            self._written = settings
            return
        if differing:
            raise ShardError(f"{self._folder}: {self._difference(differing, settings)}")

    def _difference(self, differing: Sequence[str], settings: Mapping[str, int | str]) -> str:
        """Say why these shards cannot be continued, and what to do."""
        if set(differing) <= {"source_digest", "num_samples"}:
            changes = self._changes()
            if changes:
                return (
                    f"holds shards of other images: {changes}; the images or --split changed since then. A cache may "
                    "have been made from these shards: choose another folder, or remove this one and everything made "
                    "from it"
                )
            wanted, got = settings.get("num_samples"), self._settings.get("num_samples")
            return (
                f"holds unfinished shards of another source: expected as many images as there, {wanted}, got {got}, "
                f"so every image has another place: remove its *.tar and {JOURNAL_NAME}, or choose another folder"
            )
        words = [
            f"  {name}: existing shards: {settings.get(name, _DEFAULT)}; "
            f"requested: {self._settings.get(name, _DEFAULT)}"
            for name in sorted(differing)
            if name != "source_digest"
        ]
        return (
            "holds shards of another source or other settings\n" + "\n".join(words) + "\n"
            "choose another folder, or remove this one"
        )


def _has_shards(folder: Path) -> bool:
    return any(not path.name.startswith(".") for path in matching(folder, "*.tar"))
