"""SIGTERM, SIGUSR1 and Ctrl-C ask a run to stop after the step it is in; while it still starts, at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Inside the block SIGTERM and SIGUSR1 end the process at once with REQUEUE_EXIT_CODE.

    It is for the seconds in which a run imports, loads and plans: nothing is there to be saved, everything on disk may
    be left as kill -9 would, and whatever import the signal hits could swallow an exception. `StopRequest` takes over
    where there is something to save. Only the main thread may install handlers; elsewhere signals do what they did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pid = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:  # a child that was forked meanwhile: not the one that a scheduler asks
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        os.write(2, b"stopped before there was anything to save; run the same command again\n")
        os._exit(REQUEUE_EXIT_CODE)

    before = {number: signal.signal(number, end) for number in _REQUEUE}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Inside the block the signals are noted in `told` instead of ending the process; a second Ctrl-C does end it.

    Only the main thread may install handlers; in another one `told` stays False and signals do what they did.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.told = False
        self.exit_code = REQUEUE_EXIT_CODE
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (*_REQUEUE, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.told:
                raise KeyboardInterrupt
            self.exit_code = INTERRUPTED_EXIT_CODE
            os.write(2, b"\nwill stop at the next point where everything is saved; Ctrl-C again ends at once\n")
        self.told = True
