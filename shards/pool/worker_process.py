"""The life of a worker process, from the fork to its end.

A worker has one thread, hears no signals of the group, and does tasks one after the other until its socket closes. Once
a second it shows that it moves, and looks whether its parent is still there.
"""

import contextlib
import gc
import mmap
import os
import pickle
import signal
import socket
import struct
import traceback
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

from shards.errors import ArtefactError, memory_remedy
from shards.pool import parcels

BEAT_S = 1.0
NO_TASK = -1
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Schedulers and terminals signal the whole group; when to stop is for the main process to decide.


class Closable(Protocol):
    """Something that can be closed; closing it again does nothing."""

    def close(self) -> None:
        """Let it go."""


_UNSHARED: "weakref.WeakSet[Closable]" = weakref.WeakSet()
"""What a worker closes of what it inherits: the parents' ends of all sockets, or others would never end; big files."""


def close_in_workers(thing: Closable) -> None:
    """Let every worker that is forked from now on close its copy of `thing`, so that the parent's is the last one."""
    _UNSHARED.add(thing)


_inside = False


def is_worker() -> bool:
    """Whether this process is a worker: it shares its parent's memory and none of its threads."""
    return _inside


class Done(NamedTuple):
    """A task's number (`NO_TASK` for a worker that can do none) and its result; the error if it failed."""

    number: int
    value: Any
    failed: bool


class Beats:
    """Signs of life: a count for each worker, in memory that it shares with its parent."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, 8 * workers)

    def count(self, place: int) -> int:
        """Count how often the worker at a place has shown that it moves."""
        count: int = struct.unpack_from("<q", self._memory, 8 * place)[0]
        return count

    def add(self, place: int) -> None:
        """Show it."""
        struct.pack_into("<q", self._memory, 8 * place, self.count(place) + 1)


def start_worker(
    work: Callable[[Any], Any],
    start: Callable[[], None] | None,
    ours: socket.socket,
    theirs: socket.socket,
    beats: Beats,
    place: int,
) -> int:
    """The process id of a new worker that takes tasks from the socket `theirs`; OSError when there can be none more.

    Signals wait until the child has made up its mind about them. Python's warning about threads is left out: what
    threads of this process hold locked, a worker does not use.
    """
    parent = os.getpid()
    close_in_workers(ours)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _live(work, start, theirs, beats, place, parent)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(
    work: Callable[[Any], Any],
    start: Callable[[], None] | None,
    channel: socket.socket,
    beats: Beats,
    place: int,
    parent: int,
) -> NoReturn:
    """The life of a worker; it ends in `os._exit`, so nothing that the parent has registered runs here."""
    global _inside
    _inside = True
    try:
        _settle_in(beats, place, parent)
        todo = start
        while True:
            number, task = parcels.receive(channel)
            done = _outcome(work, number, task, todo)
            todo = None
            try:
                parcels.send(channel, done)
            except OSError as error:
                _send_failure(channel, error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent is gone or wants no more
    except BaseException as error:
        with contextlib.suppress(OSError):
            _send_failure(channel, error)
    finally:
        os._exit(1)


def _settle_in(beats: Beats, place: int, parent: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    for thing in list(_UNSHARED):
        thing.close()
    gc.freeze()  # what the parent made is shared; looking through it would copy it

    def beat(number: int, frame: object) -> None:
        if os.getppid() != parent:
            os._exit(1)
        beats.add(place)

    signal.signal(signal.SIGALRM, beat)
    signal.setitimer(signal.ITIMER_REAL, BEAT_S, BEAT_S)


def _outcome(work: Callable[[Any], Any], number: int, task: Any, start: Callable[[], None] | None) -> Done:
    try:
        if start is not None:
            start()
        return Done(number, work(task), False)
    except Exception as error:
        return Done(number, _portable(error), True)


def _send_failure(channel: socket.socket, error: BaseException) -> None:
    parcels.send(channel, Done(NO_TASK, _portable(error), True))


def _portable(error: BaseException) -> BaseException:
    """The error as something that pickles; that of a defect has its traceback as a note, for --debug."""
    if isinstance(error, MemoryError):
        return ArtefactError(f"a worker process ran out of memory; {memory_remedy()}")
    if not isinstance(error, (ArtefactError, OSError)):
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    number, words = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    arguments = (words,) if number is None else (number, words)
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, (ArtefactError, OSError))]
    makers: list[Callable[[], BaseException]] = [lambda: error, *(partial(kind, *arguments) for kind in kinds)]
    for make in makers:
        with contextlib.suppress(Exception):  # of a kind that cannot be made of words, or whose pickle does not open
            made = make()
            copy = pickle.loads(pickle.dumps(made))
            if type(copy) is type(made) and str(copy) == str(made):
                return made
    return RuntimeError(f"{type(error).__name__}: {error}")
