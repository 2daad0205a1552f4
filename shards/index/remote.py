"""Remote shards on the local disk: fetched once, whole, by one process; then read like local ones.

fsspec does the transfer. A thread runs it while this one watches the temporary file grow, so that a server that stalls
is an error after `stall_s` seconds whatever the protocol.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.atomic import TEMPORARY
from shards.errors import ShardError
from shards.index.sources import base_name, is_remote
from shards.locks import FOR_EVER, locked

STALL_S = 60.0
_POLL_S = 0.05


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
        told_bytes = expected_bytes if expected_bytes is not None else _told_bytes(url, stall_s)
        if told_bytes is None or _size(target) != told_bytes:
            _fetch(url, target, told_bytes, stall_s)
    return target


def _size(path: Path) -> int:
    """Bytes in a file, -1 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _told_bytes(url: str, stall_s: float) -> int | None:
    """The size that the server tells; None when it tells none."""
    told: list[int | None] = []

    def ask() -> None:
        filesystem, path = _open_filesystem(url)
        told.append(filesystem.info(path).get("size"))

    _guarded(url, ask, Path(os.devnull), stall_s)
    return told[0]


def _fetch(url: str, target: Path, expected_bytes: int | None, stall_s: float) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")

    def transfer() -> None:
        filesystem, path = _open_filesystem(url)
        filesystem.get_file(path, str(temporary))

    try:
        _guarded(url, transfer, temporary, stall_s)
        got = _size(temporary)
        if expected_bytes is not None and got != expected_bytes:
            raise ShardError(
                f"{url}: expected {expected_bytes} bytes, got {got}; the transfer was cut, or the shard was replaced "
                "after it was indexed: try again, or run check-shards again"
            )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _guarded(url: str, call: Callable[[], None], growing: Path, stall_s: float) -> None:
    """Run `call` in a thread; ShardError when it fails, or when neither it ends nor `growing` grows for `stall_s`."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failure.append(error)

    # A daemon: a transfer that hangs inside a library cannot be stopped, and must not keep the process alive.
    thread = threading.Thread(target=run, name=f"fetch {url}", daemon=True)
    thread.start()
    size, since = _size(growing), time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        now = _size(growing)
        if now != size:
            size, since = now, time.monotonic()
        elif thread.is_alive() and time.monotonic() - since > stall_s:
            raise ShardError(
                f"{url}: nothing came for {stall_s:g} s after {max(size, 0)} bytes; "
                "check the network and the server, then run the command again"
            )
    if failure:
        kind = type(failure[0]).__name__
        raise ShardError(
            f"{url}: cannot be fetched: {kind}: {failure[0]}. Check the address, the credentials and the network"
        ) from failure[0]


def _open_filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    except ImportError as error:
        raise ShardError(f"{url}: {error}; install the extra: pip install -e '.[remote]'") from error
