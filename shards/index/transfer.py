"""Fetch one file from a server that may be slow, cut off, lie or never end, bounded in time, bytes and tries.

fsspec does the transfer, in a thread that this one watches: the temporary file must grow at a least rate and not past
the expected size. What may go away by itself (a dropped connection, a cut transfer, an answer of 5xx, a stall) is tried
again (`shards.index.server_rules`); what will not (not found, forbidden, too many bytes) is an error at once.

A worker of the pool is a fork and must not use the network client of its parent: it starts one process of its own, at
its first shard, which fetches for it until it ends.
"""

import errno
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from shards.atomic import TEMPORARY
from shards.errors import ShardError, fewer_workers
from shards.index.server_rules import TRIES, may_pass, open_azure, pauses, s3_options, session_options
from shards.index.sources import AZURE_SCHEMES
from shards.pool.worker_process import is_worker

LEAST_BYTES_PER_S = 4096
"""Averaged over the time that a stall may last: below it a transfer is given up, for it would never end."""
_POLL_S = 0.05
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


class TransferOrder(NamedTuple):
    """What to fetch, and its size; `target` "" asks for the size alone, and `expected_bytes` is then -1."""

    url: str
    target: str
    expected_bytes: int
    stall_s: float


class TransferCancelledError(Exception):
    """The transfer was cancelled by the function that watches its progress."""


def no_progress(num_bytes: int) -> None:
    """Ignore the progress."""


class _Course:
    """How far a transfer has come, and whether anybody still wants it; its thread and the one that watches share it."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.unwanted = False

    def took(self, num_bytes: int) -> None:
        """Count what came; InterruptedError ends the transfer from inside when nobody wants it any more."""
        self.num_bytes += num_bytes
        if self.unwanted:
            raise InterruptedError("given up")


_GONE = (404, 410)


class _TransferError(Exception):
    """A try that failed, and whether another may succeed."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


def fetch(order: TransferOrder, on_bytes: Callable[[int], None] = no_progress) -> int:
    """Fetch the file to its target; return the number of its bytes.

    Of an order for the size alone it returns the size, or -1 where the server gives none.

    Args:
        on_bytes: gets the number of bytes of this try, many times a second, and may raise
            `TransferCancelledError`; not in a worker.

    Errors:
        ShardError naming url, what came and what to do, after the last try.
    """
    waits_s = pauses()
    while True:
        try:
            return _by_helper(order) if is_worker() else _once(order, on_bytes)
        except _TransferError as error:
            if error.again and waits_s:
                time.sleep(waits_s.pop(0))
                continue
            often = f" ({TRIES - len(waits_s)} tries)" if len(waits_s) < TRIES - 1 else ""
            raise ShardError(f"{order.url}: {error}{often}") from error
        finally:
            if order.target and sys.exc_info()[0] is not None:
                Path(order.target).unlink(missing_ok=True)


def _once(order: TransferOrder, on_bytes: Callable[[int], None] = no_progress) -> int:
    if not order.target:
        sizes: list[Any] = []
        _guarded(order, lambda course: sizes.append(_size_on_server(order.url)), on_bytes)
        return -1 if sizes[0] is None else int(sizes[0])
    # Each try has a file of its own: one that was given up may still make it, and then removes it.
    own = order._replace(target=f"{order.target.removesuffix(TEMPORARY)}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        _guarded(own, lambda course: _transfer(own, course), on_bytes)
        got = os.stat(own.target).st_size
        if got != order.expected_bytes:
            raise _TransferError(
                f"expected {order.expected_bytes} bytes, got {got}; the transfer was cut, or the shard was replaced "
                "after it was indexed: try again, or run check-shards again",
                again=got < order.expected_bytes,
            )
        os.replace(own.target, order.target)
        return got
    finally:
        Path(own.target).unlink(missing_ok=True)


def _size_on_server(url: str) -> Any:
    filesystem, path = _open(url)
    try:
        return filesystem.info(path).get("size")
    except FileNotFoundError as error:
        cause = error.__cause__  # fsspec says "not found" for every error of a web server
        if cause is None or getattr(cause, "status", None) in _GONE:
            raise
    raise cause  # outside of the block: in it, the two errors would be behind each other


def _transfer(order: TransferOrder, course: _Course) -> None:
    from fsspec.callbacks import Callback

    class Counted(Callback):  # type: ignore[misc]  # fsspec has no types
        """Count every piece that comes."""

        def relative_update(self, inc: int = 1) -> None:
            course.took(inc)

    filesystem, path = _open(order.url)
    course.took(0)  # before there is a file
    filesystem.get_file(path, order.target, callback=Counted())


def _open(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        import fsspec

        if scheme in AZURE_SCHEMES:
            return open_azure(url, ShardError)
        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            options["client_kwargs"] = session_options(ShardError)
        elif scheme in ("gs", "gcs"):
            options["session_kwargs"] = session_options(ShardError)
        elif scheme == "s3":
            # In parts, s3fs makes a list as long as the server says the file is; one stream is watched as it comes.
            options = {"max_concurrency": 1, **s3_options(ShardError)}
        opened: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
        return opened
    except ImportError as error:
        extra = "azure" if scheme in AZURE_SCHEMES else "remote"
        raise _TransferError(f"{error}; install the extra: pip install -e '.[{extra}]'", again=False) from error


def _guarded(order: TransferOrder, call: Callable[[_Course], None], on_bytes: Callable[[int], None]) -> None:
    """Run `call` in a thread and watch the target grow."""
    on_bytes(0)
    failure: list[BaseException] = []
    course = _Course()

    def run() -> None:
        try:
            call(course)
        except BaseException as error:
            failure.append(error)
        if course.unwanted and order.target:
            Path(order.target).unlink(missing_ok=True)

    # A daemon: a transfer that hangs inside a library cannot be stopped, and must not keep the process alive.
    thread = threading.Thread(target=run, name=f"fetch {order.url}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise _TransferError(f"no thread can be started ({error}); use {fewer_workers()}", again=False) from error
    try:
        _watch(order, thread, course, on_bytes)
    finally:
        course.unwanted = True
        thread.join(2 * _POLL_S)  # long enough for one that only has to notice it
    if failure:
        _raise(failure[0])


def _watch(order: TransferOrder, thread: threading.Thread, course: _Course, on_bytes: Callable[[int], None]) -> None:
    size, since = 0, time.monotonic()
    while thread.is_alive():
        thread.join(_POLL_S)
        now, elapsed = max(course.num_bytes, _size(order.target)), time.monotonic() - since
        on_bytes(now)
        if order.target and now > order.expected_bytes:
            raise _TransferError(
                f"expected {order.expected_bytes} bytes, got {now} and more; the server does not send the shard that "
                "was indexed: check the address, or run check-shards again",
                again=False,
            )
        if now - size >= LEAST_BYTES_PER_S * order.stall_s:
            size, since = now, time.monotonic()
        elif thread.is_alive() and elapsed > order.stall_s:
            came = (
                f"nothing came for {order.stall_s:g} s"
                if now == size
                else (f"only {now - size} bytes came in {order.stall_s:g} s")
            )
            raise _TransferError(
                f"{came} after {max(size, 0)} bytes; check the network and the server, then run the command again",
                again=True,
            )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size if path else 0
    except FileNotFoundError:
        return 0


def _raise(error: BaseException) -> None:
    if isinstance(error, _TransferError):
        raise error
    refused = _refusal(error)
    if refused is not None:
        raise _TransferError(str(refused), again=False) from error
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        raise error
    raise _TransferError(
        f"cannot be fetched: {type(error).__name__}: {error}. Check the address, the credentials and the network",
        again=may_pass(error),
    ) from error


def _refusal(error: BaseException | None) -> ShardError | None:
    """Return the refusal of ours that a client library has wrapped in an error of its own, None where there is none."""
    while error is not None and not isinstance(error, ShardError):
        error = error.__cause__ or error.__context__
    return error


_helpers: dict[int, "subprocess.Popen[str]"] = {}
"""The process that fetches for a worker, by the worker's number: a fork of it starts its own."""


def _by_helper(order: TransferOrder) -> int:
    """The same in a process that a worker starts at its first order and keeps; it ends with the worker."""
    helper = _helpers.get(os.getpid()) or _start_helper()
    assert helper.stdin is not None and helper.stdout is not None, "pipes"
    try:
        helper.stdin.write(json.dumps(order) + "\n")
        helper.stdin.flush()
        report = json.loads(helper.stdout.readline())
    except (BrokenPipeError, ValueError):
        raise _TransferError(f"the fetching process ended with {_end_helper()}", again=True) from None
    if "bytes" in report:
        return int(report["bytes"])
    _end_helper()  # what was given up may hang in one of its threads
    raise _TransferError(str(report["error"]), again=bool(report["again"]))


def _start_helper() -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-m", "shards.index.transfer", str(os.getpid())]
    helper = subprocess.Popen(
        words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    _helpers[os.getpid()] = helper
    return helper


def _end_helper() -> int:
    """End the process of this worker; its exit code."""
    helper = _helpers.pop(os.getpid())
    helper.kill()
    with helper:  # closes the pipes
        return helper.wait()


def _end_with(parent: int) -> None:
    """End this process soon after its parent: only a helper process may do that, never a command of the user."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


def main() -> None:
    """Fetch every order that comes as a line of JSON, and say how it went; the argument is who wants them."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    for line in sys.stdin:
        try:
            report: dict[str, Any] = {"bytes": _once(TransferOrder(*json.loads(line)))}
        except _TransferError as error:
            report = {"error": str(error), "again": error.again}
        except OSError as error:
            report = {"error": f"cannot be kept: {error}; make room or choose another place", "again": False}
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
    os._exit(0)  # a transfer that was given up may still hang in its thread


if __name__ == "__main__":
    main()
