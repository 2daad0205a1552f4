"""Count the time of `distill` against its budget, over all calls for one folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Annotated

import msgspec

from shards.documents import read_document
from shards.errors import RunError
from shards.text.figures import duration, plural
from student.run.run_files import write_json

BUDGET_FILE = "budget.json"
_BETWEEN = "between commands"

_Seconds = dict[str, Annotated[float, msgspec.Meta(ge=0, le=1e9)]]


class _Spent(msgspec.Struct, omit_defaults=True):
    """What the file holds: seconds of each command in all calls, what was planned for it, and for all of it."""

    spent_s: _Seconds = {}
    planned_s: _Seconds = {}
    planned_whole_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0


class TimeBudget:
    """The clock of this call and of earlier ones, which the file says; the time between calls does not count.

    The file is written after each command, also one that fails or is stopped. After kill -9 the time of the command
    that ran is lost.

    Attributes:
        seconds: the budget. earlier_s: used by earlier calls.
    """

    def __init__(self, seconds: float, folder: Path, *, counts: bool = True) -> None:
        """Begin to count; RunError for a damaged file.

        Args:
            counts: False for a call that finds everything finished: its time does not count, and the file stays.
        """
        self.seconds, self._path, self._mark_s = seconds, folder / BUDGET_FILE, monotonic()
        self._counts = counts
        try:
            advice = "remove it to count from 0"
            self._file = read_document(self._path, _Spent, error=RunError, advice=advice)
        except FileNotFoundError:
            self._file = _Spent()
        self.earlier_s = sum(self._file.spent_s.values())

    @property
    def minutes(self) -> str:
        """The budget as it was typed: "15 minutes"."""
        number = self.seconds / 60
        return f"{number:g} {plural(number, 'minute')}"

    @property
    def used_s(self) -> float:
        """Seconds that all calls used until now."""
        return sum(self._file.spent_s.values()) + (monotonic() - self._mark_s if self._counts else 0.0)

    @property
    def left_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.seconds - self.used_s)

    @contextmanager
    def command(self, name: str) -> Iterator[None]:
        """Count what runs inside as the time of a command."""
        self._count(_BETWEEN)
        try:
            yield
        except BaseException:
            with suppress(RunError):  # the command's own error says more than that this file cannot be written
                self._count(name)
            raise
        self._count(name)

    def plan(self, planned_s: Mapping[str, float], whole_s: float) -> None:
        """Keep the seconds that are planned for commands, and for all with what is used already, for the last line."""
        self._file.planned_s, self._file.planned_whole_s = dict(planned_s), whole_s

    def first_words(self) -> str:
        """Say what earlier calls used; "" where there were none."""
        if self.earlier_s < 1:
            return ""
        left = f"{duration(self.left_s)} left" if self.left_s >= 1 else "none left"
        return f"budget: earlier calls used {duration(self.earlier_s)} of {self.minutes}, {left}"

    def last_words(self) -> str:
        """Say how long all calls took; above the budget also why: the plan, and which command took longer than it."""
        used_s = self.used_s
        words = f"this took {duration(used_s)} of {self.minutes} (--budget)"
        words += f", {duration(self.earlier_s)} in earlier calls" if self._counts and self.earlier_s >= 1 else ""
        if used_s <= self.seconds:
            return words
        whole_s = self._file.planned_whole_s
        reasons = [f"the shortest plan takes {duration(whole_s)}"] if whole_s > self.seconds else []
        if used_s > whole_s:
            reasons += self._latest()
        because = f", as {' and '.join(reasons)}" if reasons else ""
        return f"{words}: {duration(used_s - self.seconds)} more{because}"

    def _latest(self) -> list[str]:
        """Which command took longest beyond its plan; none where none took a second longer."""
        spent_s, planned_s = self._file.spent_s, self._file.planned_s
        late_s = {name: spent_s.get(name, 0.0) - planned for name, planned in planned_s.items()}
        latest = max(late_s, key=lambda name: late_s[name], default="")
        if not latest or late_s[latest] < 1:
            return []
        stops = " and without a stop" if self._counts and self.earlier_s >= 1 else ""
        took = f"{latest} took {duration(spent_s[latest])}, planned {duration(planned_s[latest])}"
        return [f"{took}: the plan is made from a few seconds of training{stops}"]

    def _count(self, name: str) -> None:
        if not self._counts:
            return
        now_s, spent_s = monotonic(), self._file.spent_s
        spent_s[name] = spent_s.get(name, 0.0) + now_s - self._mark_s
        self._mark_s = now_s
        write_json(self._path, msgspec.to_builtins(self._file))
