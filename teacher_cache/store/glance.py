"""A look at a cache on a local disk without the array library: what it is for, before anything heavy is imported."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import CacheError
from shards.own_folder import FolderKind
from teacher_cache.store.header import Header, header_from_attributes, is_cache, read_root
from teacher_cache.store.place import Place, read_file

LOCK_NAME = ".creating.lock"
"""Held in the folder of a cache while it is made."""


class _Files:
    """The objects of a folder by name, read only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [read_file(self._folder / key) for key in keys]

    def write(self, key: str, data: bytes) -> None:
        raise AssertionError("a glance writes nothing")


def header_at(url: str | Path) -> Header | None:
    """What the root of a cache says; None when it is not on a local disk, or when there is none.

    Errors:
        ValueError for a place that cannot be one; CacheError for a root that is damaged or not of a cache.
    """
    place = Place.parse(url, writable=False)
    if place.folder is None:
        return None
    attributes = read_root(_Files(place.folder), place.url)
    return None if attributes is None else header_from_attributes(attributes, place.url)


def local_header(url: str | Path) -> Header | None:
    """What a cache on a local disk says; None for a remote one; CacheError when there is none."""
    header, place = header_at(url), Place.parse(url, writable=False)
    if header is None and place.folder is not None:
        raise CacheError(f"{place.url}: no cache here (no zarr.json); make one with cache-teacher")
    return header


def _has_root(folder: Path) -> bool:
    """Whether the root is one of ours: a finished cache."""
    try:
        root: Mapping[str, Any] = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        return is_cache(root.get("attributes"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _begun(entry: Path) -> bool:
    """Arrays without a root: metadata, and at most their chunks."""
    if not entry.is_dir():
        return entry.name == LOCK_NAME
    files = (path.relative_to(entry) for path in entry.rglob("*") if not path.is_dir())
    return all(file.name.startswith("zarr.json") or "c" in file.parts for file in files)


CACHE_FOLDER = FolderKind(what="a cache", command="cache-teacher", is_ours=_has_root, begun=_begun)
"""Any root of ours is one, whatever it was made for: whether that fits is said elsewhere."""
