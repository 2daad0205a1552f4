"""The one lock of this project: a file that one process holds while it works on what lies beside it.

The kernel frees it when the process ends, however it ends; and a worker that was forked from the holder and outlives it
does not keep it (filelock closes it in the child, which a plain `flock` would not).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        raise ArtefactError(
            f"{path}: cannot be locked ({error}); choose a folder that this user may write, on a file system with locks"
        ) from error
    try:
        yield True
    finally:
        if remove:
            path.unlink(missing_ok=True)  # while it is held: who waits for it notices and makes it anew
        lock.release()
