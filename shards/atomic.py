"""Write files that appear whole or not at all: temporary name, fsync, rename, fsync of the directory."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".partial"


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file by `data`, as `atomic_file` does; OSError where it cannot be written."""
    with atomic_file(path) as file:
        file.write(data)


def _remove_unlocked(left: Path) -> None:
    # An error says that it is gone, has a writer, or that there are no locks here.
    with suppress(OSError), open(left, "rb", opener=_without_waiting) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have renamed it since it was opened, and begun another of that name, which is not locked here.
        if _is_at(file, left):
            left.unlink()


def _without_waiting(path: str, flags: int) -> int:
    """Open a file that may be anything: a FIFO would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _remove_left(path: Path) -> None:
    """Remove what killed writers of this very file have left beside it."""
    with suppress(OSError):  # no such folder, or none that may be listed: writing will say so
        for entry in os.scandir(path.parent):
            if entry.name.startswith(f".{path.name}.") and entry.name.endswith(TEMPORARY):
                _remove_unlocked(path.with_name(entry.name))


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that becomes `path` when the block ends well, and disappears otherwise.

    After kill -9 the temporary file stays until the next writer of `path`; its name starts with a dot and ends in
    `TEMPORARY`, so nothing takes it for a finished file. A writer holds a lock on its temporary file, so what can be
    locked has no writer any more, on any machine.
    """
    _remove_left(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}{TEMPORARY}")
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)  # still open: a lock on it ends after it has its name
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or os.fspath(error.filename) == str(temporary)):
            error.filename = str(path)  # what could not be written is the file, whatever it was called meanwhile
        raise
    _sync_directory(path.parent)


@contextmanager
def _locked(temporary: Path) -> Iterator[BinaryIO]:
    """Open a new file, locked where the file system has locks.

    It is made again where another writer has removed it before it was locked, as one of a killed writer. The same holds
    where it was the file of a process in another container, which has the same number: this one waits for its end.
    """
    while True:
        with open(temporary, "r+b", opener=_without_cutting) as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, temporary):
                file.truncate()  # what a killed writer has left
                yield file
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still has its name: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _without_cutting(path: str, flags: int) -> int:
    """Open a file, made where it is missing, and leave its bytes: it may be one that is being written."""
    return os.open(path, flags | os.O_CREAT, 0o666)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
