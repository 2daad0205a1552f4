"""Keep remote shards on the local disk: each one is fetched once, whole, and then read like a local one.

A command fetches what it needs before it begins, several shards at once (`fetch_missing`). A reader fetches a shard
that is still missing when it opens it (`local_shard`). The transfer itself, with everything that a server can do wrong,
is in `transfer`.
"""

import glob
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.atomic import TEMPORARY
from shards.documents import matching
from shards.errors import ShardError
from shards.index.sources import base_name, is_remote
from shards.index.transfer import TransferCancelledError, TransferOrder, fetch, no_progress
from shards.locks import FOR_EVER, locked
from shards.text.figures import byte_size, count
from shards.world import ALONE, World

STALL_S = 60.0
_AT_ONCE = 8
"""Shards that one process fetches at the same time."""
_POLL_S = 0.05
_END_S = 1.0


class Fetched(NamedTuple):
    """Progress of fetching: complete files, and bytes."""

    num_files: int
    num_bytes: int
    of_files: int
    of_bytes: int


def default_cache_dir() -> Path:
    """Return the default folder of fetched shards: below $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "deit-teacher-cache" / "shards"


def cached_path(url: str, cache_dir: Path | None = None) -> Path:
    """Return the path of a remote file's copy, fetched or not; its name tells urls with one base name apart."""
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{base_name(url)}"
    return (cache_dir or default_cache_dir()) / name


def local_shard(
    url: str,
    expected_bytes: int | None,
    cache_dir: Path | None = None,
    stall_s: float = STALL_S,
    on_bytes: Callable[[int], None] = no_progress,
) -> Path:
    """Return a local path for `url`: itself when local, else its copy in `cache_dir`, fetched if it is not there yet.

    Args:
        expected_bytes: size in the index; None (no index yet) asks the server.
        stall_s: seconds without an answer or a new byte after which the transfer is given up.
        on_bytes: as of `transfer.fetch`.

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
        return _fetched(url, target, expected_bytes, stall_s, on_bytes)
    except OSError as error:
        raise ShardError(f"{url}: cannot be kept in {target.parent}: {error}; make room or choose another") from error


def _fetched(
    url: str, target: Path, expected_bytes: int | None, stall_s: float, on_bytes: Callable[[int], None]
) -> Path:
    # One process fetches, the others wait for it.
    with locked(target.with_name(f".{target.name}.lock"), wait_s=FOR_EVER):
        size = expected_bytes if expected_bytes is not None else _size_on_server(url, stall_s)
        if _size(target) != size:
            _require_room(url, target.parent, size)
            for left in matching(target.parent, f".{glob.escape(target.name)}.*{TEMPORARY}"):
                left.unlink(missing_ok=True)  # of a process that was killed: whoever fetches this holds the lock
            _fetch(url, target, size, stall_s, on_bytes)
    return target


def _size_on_server(url: str, stall_s: float) -> int:
    size = fetch(TransferOrder(url, "", -1, stall_s))
    if size < 0:
        raise ShardError(
            f"{url}: expected its size from the server (Content-Length) or from an index, got none",
            "let the server send it, or copy each shard (wget -P shards ADDRESS), then run check-shards shards",
        )
    return size


def sizes_on_server(urls: Sequence[str], *, should_stop: Callable[[], bool] = bool) -> list[int]:
    """Return the size of each remote file; -1 for a local file, and where the server gives no size.

    Several requests run at once. A failing server raises nothing here; fetching the file from it does.
    """
    sizes = [-1] * len(urls)

    def ask(number: int, go_on: Callable[[], None]) -> None:
        with suppress(ShardError):
            sizes[number] = fetch(TransferOrder(urls[number], "", -1, STALL_S), lambda _: go_on())

    for _ in _in_threads(ask, [number for number, url in enumerate(urls) if is_remote(url)], _AT_ONCE, should_stop):
        pass
    return sizes


def fetch_missing(
    urls: Sequence[str],
    tar_bytes_S: Sequence[int] | NDArray[np.int64],
    cache_dir: Path | None = None,
    *,
    limit_bytes: float | None = None,
    world: World = ALONE,
    patient: bool = False,
    should_stop: Callable[[], bool] = bool,
) -> Iterator[Fetched]:
    """Fetch the remote shards that are missing, several at once; yields many times a second how far it is.

    Args:
        tar_bytes_S: size of each shard, (S,); -1 where it is not known: such a one counts as a file alone.
        limit_bytes: as of `require_room_for_all`.
        world: processes that share a disk begin at different places of the list, each with its part of the threads.
        patient: a shard that cannot be fetched is left for the one who reads it; else it is an error at once.
        should_stop: ends the transfers; what is not complete is removed.

    Errors:
        ShardError naming the shard that cannot be fetched, or that all of them do not fit.
    """
    require_room_for_all(urls, tar_bytes_S, cache_dir, limit_bytes)
    missing = _missing(urls, tar_bytes_S, cache_dir)
    of_bytes = sum(max(0, size) for _, size in missing)
    received, complete = [0] * len(missing), [False] * len(missing)

    def get(number: int, go_on: Callable[[], None]) -> None:
        def on_bytes(num_bytes: int) -> None:
            go_on()
            received[number] = max(0, min(num_bytes, size - 1))  # the last byte counts when the file is complete

        url, size = missing[number]
        try:
            local_shard(url, size if size >= 0 else None, cache_dir, on_bytes=on_bytes)
            complete[number], received[number] = True, max(0, size)
        except ShardError:
            if not patient:
                raise

    first = len(missing) * world.rank // world.size
    order = [*range(first, len(missing)), *range(first)]

    def come() -> Fetched:
        return Fetched(sum(complete), min(sum(received), of_bytes), len(missing), of_bytes)

    for _ in _in_threads(get, order, max(1, _AT_ONCE // world.local_size), should_stop):
        yield come()
    if missing:
        yield come()


def _in_threads(
    work: Callable[[int, Callable[[], None]], None],
    numbers: Sequence[int],
    at_once: int,
    should_stop: Callable[[], bool],
) -> Iterator[None]:
    """Do `work` on every number in threads, in this order; yields while it goes on.

    The second argument of `work` raises `TransferCancelledError` when the work should end. The threads are daemons: one
    that hangs inside a library keeps no process alive. The first error ends all work, and is raised.
    """
    waiting, ended = iter(numbers), threading.Event()
    lock = threading.Lock()
    failures: list[BaseException] = []

    def go_on() -> None:
        if ended.is_set() or should_stop():
            raise TransferCancelledError

    def taken() -> int | None:
        with lock:
            return next(waiting, None)

    def run() -> None:
        try:
            while (number := taken()) is not None:
                go_on()
                work(number, go_on)
        except TransferCancelledError:
            return
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(at_once, len(numbers)))]
    try:
        _start(threads)
        while any(thread.is_alive() for thread in threads) and not failures and not should_stop():
            time.sleep(_POLL_S)
            yield
    finally:
        ended.set()
        until = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    if failures:
        raise failures[0]


def _start(threads: list[threading.Thread]) -> None:
    """Start threads, as many as the system allows, and drop the others; ShardError where there is none at all."""
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError as error:
            del threads[number:]
            if not threads:
                raise ShardError(
                    f"remote shards: no thread can be started ({error}); end other processes, or raise ulimit -u"
                ) from error
            return


def require_room_for_all(
    urls: Sequence[str],
    tar_bytes_S: Sequence[int] | NDArray[np.int64],
    cache_dir: Path | None = None,
    limit_bytes: float | None = None,
) -> None:
    """Refuse, before the first step, remote shards that will not fit where their copies are kept.

    Args:
        tar_bytes_S: size of each shard, (S,), from the index; local shards and complete copies need no room.
        limit_bytes: most bytes that the copies of these shards may take, complete ones too; None for no limit.

    Errors:
        ShardError with the sizes and the way out.
    """
    folder = cache_dir or default_cache_dir()
    remote = [max(0, int(size)) for url, size in zip(urls, tar_bytes_S, strict=True) if is_remote(url)]
    if limit_bytes is not None and sum(remote) > limit_bytes:
        raise ShardError(
            f"{folder}: expected copies of remote shards of at most {byte_size(limit_bytes)}, as --shard-cache-limit "
            f"says, got {count(len(remote), 'shard')} of {byte_size(sum(remote))} together; raise the limit, or name "
            "fewer shards"
        )
    missing = [max(0, size) for _, size in _missing(urls, tar_bytes_S, cache_dir)]
    if not missing:
        return
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if sum(missing) > free:
        raise ShardError(
            f"{folder}: expected room for {len(missing)} of {count(len(urls), 'remote shard')} that will be fetched, "
            f"{byte_size(sum(missing))}, got {byte_size(free)} free; make room, or name another folder by --shard-cache"
        )


def _missing(
    urls: Sequence[str], tar_bytes_S: Sequence[int] | NDArray[np.int64], cache_dir: Path | None
) -> list[tuple[str, int]]:
    """Address and size of every remote shard that has no complete copy."""
    sizes = ((url, int(size)) for url, size in zip(urls, tar_bytes_S, strict=True) if is_remote(url))
    return [(url, size) for url, size in sizes if size < 0 or _size(cached_path(url, cache_dir)) != size]


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


def _fetch(url: str, target: Path, expected_bytes: int, stall_s: float, on_bytes: Callable[[int], None]) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        fetch(TransferOrder(url, str(temporary), expected_bytes, stall_s), on_bytes)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
