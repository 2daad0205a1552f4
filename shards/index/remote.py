"""Remote shards on the local disk: fetched once, whole, by one process; then read like local ones.

The transfer itself, with everything that a server can do wrong, is in `transfer`.
"""

import glob
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.atomic import TEMPORARY
from shards.errors import ShardError
from shards.index.sources import base_name, is_remote
from shards.index.transfer import TransferOrder, fetch
from shards.locks import FOR_EVER, locked
from shards.text.figures import byte_size

STALL_S = 60.0


def default_cache_dir() -> Path:
    """Where fetched shards are kept unless told otherwise: below $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "deit-teacher-cache" / "shards"


def cached_path(url: str, cache_dir: Path | None = None) -> Path:
    """Where the copy of a remote file lies, fetched or not; its name tells urls with one base name apart."""
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{base_name(url)}"
    return (cache_dir or default_cache_dir()) / name


def local_shard(url: str, expected_bytes: int | None, cache_dir: Path | None = None, stall_s: float = STALL_S) -> Path:
    """A local path for `url`: itself when local, else its copy in `cache_dir`, fetched if it is not there yet.

    Args:
        expected_bytes: size in the index; None (no index yet) asks the server.
        stall_s: seconds without an answer or a new byte after which the transfer is given up.

    Errors:
        ShardError when the server fails or stalls, or the size is not the expected one.
    """
    if not is_remote(url):
        return Path(url)
    target = cached_path(url, cache_dir)
    if expected_bytes is not None and _size(target) == expected_bytes:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return _fetched(url, target, expected_bytes, stall_s)
    except OSError as error:
        raise ShardError(f"{url}: cannot be kept in {target.parent}: {error}; make room or choose another") from error


def _fetched(url: str, target: Path, expected_bytes: int | None, stall_s: float) -> Path:
    # One process fetches, the others wait for it.
    with locked(target.with_name(f".{target.name}.lock"), wait_s=FOR_EVER):
        num_bytes = expected_bytes if expected_bytes is not None else fetch(TransferOrder(url, "", -1, stall_s))
        if num_bytes < 0 or _size(target) != num_bytes:
            _require_room(url, target.parent, num_bytes)
            for left in target.parent.glob(f".{glob.escape(target.name)}.*{TEMPORARY}"):
                left.unlink(missing_ok=True)  # of a process that was killed: whoever fetches this holds the lock
            _fetch(url, target, num_bytes, stall_s)
    return target


def require_room_for_all(urls: Sequence[str], tar_bytes_S: NDArray[np.int64], cache_dir: Path | None = None) -> None:
    """Refuse, before the first step, remote shards that will not fit where their copies are kept.

    Args:
        tar_bytes_S: size of each shard, (S,), from the index; local shards and complete copies count nothing.

    Errors:
        ShardError with the sizes and the way out.
    """
    folder = cache_dir or default_cache_dir()
    missing = [
        int(num_bytes)
        for url, num_bytes in zip(urls, tar_bytes_S, strict=True)
        if is_remote(url) and _size(cached_path(url, cache_dir)) != num_bytes
    ]
    if not missing:
        return
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if sum(missing) > free:
        raise ShardError(
            f"{folder}: expected room for {len(missing)} of {len(urls)} remote shards that will be fetched, "
            f"{byte_size(sum(missing))}, got {byte_size(free)} free; make room, or name another folder by --shard-cache"
        )


def _require_room(url: str, folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ShardError(
            f"{url}: expected a file that fits {folder}, which has {free / 1e9:,.2f} GB free, got one of "
            f"{num_bytes / 1e9:,.2f} GB, as the index or the server says; make room, choose another folder by "
            "--shard-cache, or check the address"
        )


def _size(path: Path) -> int:
    """Bytes in a file, -1 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _fetch(url: str, target: Path, expected_bytes: int, stall_s: float) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        fetch(TransferOrder(url, str(temporary), expected_bytes, stall_s))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
