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
    """Replace a file by `data`, as `atomic_file` does, and remove what killed writers of this very file have left.

    A writer holds a lock on its temporary file, so what can be locked has no writer any more, on any machine.

    Errors:
        OSError where it cannot be written, or the file system has no locks.
    """
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f".{path.name}.") and entry.name.endswith(TEMPORARY):
            _remove_unlocked(path.with_name(entry.name))
    while True:
        try:
            with atomic_file(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not os.fstat(file.fileno()).st_nlink:
                    raise _RemovedError  # by another writer, who found it before it was locked
                file.write(data)
                return
        except _RemovedError:
            continue


class _RemovedError(Exception):
    """The temporary file was taken for one of a killed writer."""


def _remove_unlocked(left: Path) -> None:
    with suppress(FileNotFoundError, BlockingIOError), open(left, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have renamed it since it was opened, and begun another of that name, which is not locked here.
        if os.fstat(file.fileno()).st_ino == os.stat(left).st_ino:
            left.unlink()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that becomes `path` when the block ends well, and disappears otherwise.

    After kill -9 the temporary file may stay behind; its name starts with a dot and ends in `TEMPORARY`, so nothing
    takes it for a finished file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}{TEMPORARY}")
    try:
        with open(temporary, "w+b") as file:
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


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
