"""Measure how fast a run goes and how much of its time it waits for data."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Rate(NamedTuple):
    """Steps per second, and the share of the time that was spent waiting for data."""

    steps_per_s: float
    wait_share: float


class Ticker:
    """When a reader is told how far a run is: at the first step, soon after it, then every ten seconds."""

    SOON_S, EVERY_S = 2.0, 10.0

    def __init__(self) -> None:
        self._told, self._next_s = 0, -math.inf

    def due(self) -> bool:
        """Whether it is time; then the next one is planned."""
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + (self.EVERY_S if self._told else self.SOON_S)
        self._told += 1
        return True


class _Mark(NamedTuple):
    """Where a lap began."""

    step: int
    clock_s: float
    waited_s: float


class Pace:
    """The clock of a run; laps by name ("interval", "epoch"), each from its last reading to the next."""

    def __init__(self, waited_s: Callable[[], float], *, step: int = 0, seconds_before: float = 0.0) -> None:
        """Start now, at a step; `waited_s` says how long was waited so far; a resumed run brings its seconds."""
        self._start = time.perf_counter()
        self._before = seconds_before
        self._waited_s, self._paused = waited_s, 0.0
        self._marks: dict[str, _Mark] = {}
        self._first = _Mark(step, self._start, waited_s())

    @property
    def seconds(self) -> float:
        """Seconds of the whole run, interruptions left out."""
        return self._before + time.perf_counter() - self._start

    def rate(self, lap: str, step: int) -> Rate:
        """The rate since the lap was last read, at `step`; starts its next one."""
        mark, now = self._marks.get(lap, self._first), self._now(step)
        self._marks[lap] = now
        seconds = max(now.clock_s - mark.clock_s, 1e-9)
        return Rate((step - mark.step) / seconds, (now.waited_s - mark.waited_s) / seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (evaluating, saving) out of the rates."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    def _now(self, step: int) -> _Mark:
        return _Mark(step, time.perf_counter() - self._paused, self._waited_s())
