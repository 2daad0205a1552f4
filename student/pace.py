"""How fast a run goes and how much of its time it waits for data."""

import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Seconds and seconds waited since the start and since the last lap."""

    def __init__(self, seconds_before: float = 0.0, waited_before: float = 0.0) -> None:
        """Start now; a resumed run brings what it took before."""
        self._start = self._lap_start = time.perf_counter()
        self._waited = self._lap_waited = 0.0
        self._before = (seconds_before, waited_before)

    def timing(self, stream: Iterator[T]) -> Iterator[T]:
        """The stream, with the time that its consumer waits for it counted."""
        while True:
            asked = time.perf_counter()
            try:
                item = next(stream)
            except StopIteration:
                return
            finally:
                waited = time.perf_counter() - asked
                self._waited += waited
                self._lap_waited += waited
            yield item

    def lap(self) -> tuple[float, float]:
        """(seconds, seconds waited) since the last lap; starts the next one."""
        now = time.perf_counter()
        result = (now - self._lap_start, self._lap_waited)
        self._lap_start, self._lap_waited = now, 0.0
        return result

    def total(self) -> tuple[float, float]:
        """(seconds, seconds waited) of the whole run, interruptions left out."""
        return (self._before[0] + time.perf_counter() - self._start, self._before[1] + self._waited)
