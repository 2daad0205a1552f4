"""Share a file among the processes of one machine while they live; the kernel deletes it with its last holder.

The file has no name: the kernel frees it with its last holder, however that one ends. Who comes later finds it through
the holders' own descriptors: every holder leaves a symbolic link `KEY.PID.FD` → /proc/PID/fd/FD in the folder. A link
whose holder is gone points nowhere and is swept by whoever comes next. Where there is no /proc, or a process cannot see
the others, it makes a file of its own.
"""

import hashlib
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import RunError, unreadable_now
from shards.locks import FOR_EVER, locked
from shards.pool.worker_process import close_in_workers

SEAL_BYTES = 64
"""At the start of the file: the seal, which says that it is complete and whose it is. Content begins behind it."""

_FOLDER = "deit-teacher-cache"


class NodeFile:
    """A shared, nameless, complete file; `descriptor` may be mapped. Close it, or use `with`."""

    def __init__(self, descriptor: int, link: Path) -> None:
        self.descriptor, self._link, self._pid = descriptor, link, os.getpid()
        close_in_workers(self)  # a worker that kept it would keep the room on the disk

    def __enter__(self) -> "NodeFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it go: others keep it, and the last one frees it."""
        if self.descriptor >= 0:
            if self._pid == os.getpid():  # a forked child closes its descriptor; the link is its parent's
                self._link.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


def scratch_folder(scratch: Path | None = None) -> Path:
    """The folder of this user's shared files below `scratch`, made if need be; None is the system's (TMPDIR).

    RunError where it cannot be made or is another's.
    """
    root = scratch or Path(tempfile.gettempdir())
    folder = root / f"{_FOLDER}-{os.getuid()}-{platform.node()}"  # scratch may be on a disk that machines share
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.lstat()
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error}); choose a writable folder by --scratch") from error
    if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.getuid():
        raise RunError(f"{folder}: expected a folder of this user, got another's; choose another --scratch")
    return folder


def shared_file(folder: Path, key: str, make: Callable[[int], None]) -> NodeFile:
    """The file that `key` names on this machine: that of a living holder, or one that `make` fills now.

    Args:
        folder: of `scratch_folder`; processes share files that they look for in the same one.
        key: decides the content.
        make: writes the content to a descriptor, from SEAL_BYTES on. One process makes, the others wait for it; when
            it is killed meanwhile the next one makes.

    Errors:
        RunError where the folder cannot be written; whatever `make` raises.
    """
    name, seal = _name_and_seal(key)
    with one_at_a_time(folder, key):
        descriptor = _found(folder, name, seal)
        return _shared(folder, name, _made(folder, seal, make) if descriptor is None else descriptor)


def held_file(folder: Path, key: str) -> NodeFile | None:
    """The file that `key` names if a living process of this machine holds it; None where none does."""
    name, seal = _name_and_seal(key)
    descriptor = _found(folder, name, seal)
    return None if descriptor is None else _shared(folder, name, descriptor)


@contextmanager
def one_at_a_time(folder: Path, key: str) -> Iterator[None]:
    """Let one process of this machine after the other do the block; RunError where the folder cannot be written."""
    with locked(folder / f"{_name_and_seal(key)[0]}.lock", wait_s=FOR_EVER, remove=True):
        yield


def _name_and_seal(key: str) -> tuple[str, bytes]:
    digest = hashlib.sha256(key.encode())
    return digest.hexdigest()[:24], digest.digest()


def _shared(folder: Path, name: str, descriptor: int) -> NodeFile:
    """The file of a descriptor, with the link by which others find it."""
    link = folder / f"{name}.{os.getpid()}.{descriptor}"
    link.unlink(missing_ok=True)
    link.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    return NodeFile(descriptor, link)


def _found(folder: Path, name: str, seal: bytes) -> int | None:
    """The descriptor of a living holder's file; links that lead nowhere, or to something else, are taken away."""
    for link in folder.iterdir():
        if not link.is_symlink():
            continue
        if not link.name.startswith(f"{name}."):
            with suppress(PermissionError):  # its holder lives
                if not link.exists():
                    link.unlink(missing_ok=True)
            continue
        with suppress(PermissionError):
            descriptor = _opened(link, seal)
            if descriptor is not None:
                return descriptor
            link.unlink(missing_ok=True)
    return None


def _opened(link: Path, seal: bytes) -> int | None:
    """The file behind a link if it is the one meant: numbers of processes and descriptors are given out again.

    OSError where nobody can tell: too many files are open, or its holder lives and lets nobody look.
    """
    try:
        descriptor = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if unreadable_now(error):
            raise
        return None  # its holder is gone, or its number is another's
    try:
        status = os.fstat(descriptor)
        good = stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and os.pread(descriptor, len(seal), 0) == seal
    except OSError:
        good = False
    if good:
        return descriptor
    os.close(descriptor)
    return None


def _made(folder: Path, seal: bytes, make: Callable[[int], None]) -> int:
    """A new nameless file, filled, then sealed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        close_in_workers(file)
        make(file.fileno())
        os.pwrite(file.fileno(), seal, 0)
        return os.dup(file.fileno())
