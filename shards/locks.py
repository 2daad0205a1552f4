"""The locks of this project: a file that one process holds while it works on what lies beside it, or a part of a file.

The kernel frees it when the process ends, however it ends; and a worker that was forked from the holder and outlives it
does not keep it (filelock closes it in the child, which a plain `flock` would not).
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from shards.errors import ArtefactError

FOR_EVER = -1.0
_POLL_S = 0.02


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0, remove: bool = False) -> Iterator[bool]:
    """Hold the lock file while the block runs.

    Args:
        path: in a folder that exists; the file is made, and stays unless `remove`.
        wait_s: how long to wait for another holder, seconds; FOR_EVER for as long as it takes.
        remove: take the file away with the lock, where it must not lie in a finished artefact.

    Yields:
        True; False when another holder, in this process or another, kept it for longer than `wait_s`.

    Errors:
        ArtefactError where the file cannot be made, or the file system has no locks.
    """
    lock = FileLock(path.absolute(), timeout=wait_s, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=_POLL_S)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        raise _unusable(path, error) from error
    try:
        yield True
    finally:
        if remove:
            path.unlink(missing_ok=True)  # while it is held: who waits for it notices and makes it anew
        lock.release()


class NumberedLocks:
    """Many locks in one file, known by their numbers; this process holds those that it has taken until it ends.

    They keep other processes out, not other threads of this one. A worker that was forked from the holder has none.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file, which is made; with None every lock is free.

        Errors:
            ArtefactError where the file cannot be made.
        """
        self._path, self._descriptor = path, -1
        if path is not None:
            try:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise _unusable(self._path, error) from error

    def take(self, number: int) -> bool:
        """Hold a lock; False when another process holds it.

        Errors:
            ArtefactError where the file system has no locks.
        """
        if self._descriptor < 0:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise _unusable(self._path, error) from error
        return True

    def release(self, number: int) -> None:
        """Let a lock go."""
        if self._descriptor >= 0:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """Let all of them go; from now on every lock is free to this process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _unusable(path: Path | None, error: Exception) -> ArtefactError:
    return ArtefactError(
        f"{path}: cannot be locked ({error}); choose a folder that this user may write, on a file system with locks"
    )
