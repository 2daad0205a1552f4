"""SIGTERM and SIGUSR1 ask a run to stop after the step it is in."""

import signal
import threading
from types import FrameType
from typing import Any

REQUEUE_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: "try again later". Schedulers can be told to requeue on it."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Inside the block the signals are noted in `told` instead of ending the process.

    Only the main thread may install handlers; in another one `told` stays False and signals do what they did.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = True
