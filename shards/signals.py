"""SIGTERM, SIGUSR1 and Ctrl-C ask a run to stop after the step it is in; while it still starts, at once.

An exception that a handler raises can be swallowed or renamed by whatever code it hits: an import, a library in C++. So
a signal that ends a command at once ends the process, as kill -9 would; what is on disk survives that.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

REQUEUE_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: "try again later". Schedulers can be told to requeue on it."""

INTERRUPTED_EXIT_CODE = 130
"""What shells give for Ctrl-C: a loop of commands ends with it, and nothing is requeued."""

_REQUEUE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Windows has but one of them; there `platforms.require_unix` speaks when a command is run."""


@contextmanager
def requeue_at_once() -> Iterator[None]:
    """Inside the block SIGTERM and SIGUSR1 end the process at once with REQUEUE_EXIT_CODE, and Ctrl-C with its own.

    It is for a run that can be started again: while it imports, loads, plans, waits for its group or cleans up, nothing
    is there to be saved. `StopRequest` takes over where there is something to save. Only the main thread may install
    handlers; elsewhere signals do what they did.
    """
    with _handled(_end, (*_REQUEUE, signal.SIGINT)):
        yield


@contextmanager
def interrupt_at_once() -> Iterator[None]:
    """Inside the block Ctrl-C ends the process at once with its own code: no command has begun, or it is over."""
    with _handled(_end, [signal.SIGINT]):
        yield


@contextmanager
def interrupt_once() -> Iterator[None]:
    """Inside the block the first Ctrl-C raises KeyboardInterrupt as before; the next one ends the process at once."""
    hits: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        hits.append(number)
        if len(hits) > 1:
            _end(number, frame)
        raise KeyboardInterrupt

    with _handled(interrupt, [signal.SIGINT]):
        yield


def end_at_interrupt() -> None:
    """Let Ctrl-C end the process at once from now on: while Python shuts down, an exception has nowhere to go."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_at_once = False


def leave_at_once() -> None:
    """Let `end_program` end this process without the cleaning up of libraries, which could wait for other processes."""
    global _at_once
    _at_once = True


def end_program(code: int) -> None:
    """End the process now if `leave_at_once` was called; else return, so that Python ends it."""
    if _at_once:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # one that is closed, or that nobody reads any more
                stream.flush()
        os._exit(code)


def raise_interrupt(error: BaseException) -> None:
    """Raise KeyboardInterrupt if `error` came of one: torch's writers and readers turn it into errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Install a handler in this process for the length of the block; a signal that is ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pid = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:  # a child that was forked meanwhile: not the one that a scheduler asks
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        handler(number, frame)

    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: former for number, former in before.items() if former != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _end(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        os.write(2, b"error: interrupted; run the same command again to go on\n")
        os._exit(INTERRUPTED_EXIT_CODE)
    os.write(2, b"stopped before there was anything to save; run the same command again\n")
    os._exit(REQUEUE_EXIT_CODE)


class StopRequest:
    """Inside the block the signals are noted in `told` instead of ending the process; a second Ctrl-C does what it did.

    Only the main thread may install handlers; in another one `told` stays False and signals do what they did.
    """

    def __init__(self) -> None:
        self.told = False
        self.exit_code = REQUEUE_EXIT_CODE
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (*_REQUEUE, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.told:
                former = self._before[signal.Signals(number)]
                if callable(former):
                    former(number, frame)
                raise KeyboardInterrupt
            self.exit_code = INTERRUPTED_EXIT_CODE
            os.write(2, b"\nstopping soon; a line will say what is saved. Ctrl-C again ends at once\n")
        self.told = True
