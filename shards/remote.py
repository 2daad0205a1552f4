"""Remote shards on the local disk: fetched once, whole, by one process; then read like local ones.

fsspec does the transfer. A thread runs it while this one watches the temporary file grow, so that a server that stalls
is an error after `stall_s` seconds whatever the protocol.
"""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.atomic import TEMPORARY
from shards.errors import ShardError
from shards.sources import base_name, is_remote

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
        expected_bytes: size of the tar in the index; None (no index yet) takes the size the server tells.
        stall_s: seconds without a new byte after which the transfer is given up.

    Errors:
        ShardError when the server fails or stalls, or the size is not the expected one.
    """
    if not is_remote(url):
        return Path(url)
    target = cached_path(url, cache_dir)
    if _has_size(target, expected_bytes):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{target.name}.lock")):
        if not _has_size(target, expected_bytes):  # another process may have fetched it meanwhile
            _fetch(url, target, expected_bytes, stall_s)
    return target


def _has_size(path: Path, expected_bytes: int | None) -> bool:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    return expected_bytes is None or size == expected_bytes


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, target: Path, expected_bytes: int | None, stall_s: float) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    transfer = _Transfer(url, temporary)
    try:
        transfer.wait(stall_s)
        got = temporary.stat().st_size
        expected = expected_bytes if expected_bytes is not None else transfer.told_bytes
        if expected is not None and got != expected:
            raise ShardError(
                f"{url}: expected {expected} bytes, got {got}; the shard was replaced after it was indexed, or the "
                "transfer was cut: try again, or run check-shards again"
            )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class _Transfer:
    """One running download."""

    def __init__(self, url: str, path: Path) -> None:
        self.told_bytes: int | None = None
        self._url = url
        self._path = path
        self._error: BaseException | None = None
        # A daemon: a transfer that hangs inside a library cannot be stopped, and must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=f"fetch {url}", daemon=True)
        self._thread.start()

    def wait(self, stall_s: float) -> None:
        """Until it is done; ShardError when it failed or no byte came for `stall_s` seconds."""
        size, since = -1, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(_POLL_S)
            now = self._path.stat().st_size if self._path.exists() else -1
            if now != size:
                size, since = now, time.monotonic()
            elif self._thread.is_alive() and time.monotonic() - since > stall_s:
                raise ShardError(
                    f"{self._url}: no data for {stall_s:g} s after {max(size, 0)} bytes; "
                    "check the network and the server, then run the command again"
                )
        if self._error is not None:
            kind = type(self._error).__name__
            raise ShardError(
                f"{self._url}: cannot be fetched: {kind}: {self._error}. "
                "Check the address, the credentials and the network"
            ) from self._error

    def _run(self) -> None:
        try:
            filesystem, path = _open_filesystem(self._url)
            self.told_bytes = filesystem.info(path).get("size")
            filesystem.get_file(path, str(self._path))
        except BaseException as error:
            self._error = error


def _open_filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    except ImportError as error:
        raise ShardError(f"{url}: {error}; install the extra: pip install -e '.[remote]'") from error
