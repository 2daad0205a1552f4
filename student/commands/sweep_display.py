"""Draw a sweep: a progress bar for the pass, with the time left of the whole sweep, and a table at the end."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from shards.console import result, say
from shards.text.figures import count, duration
from student.commands.training_display import MoreViews, TrainingDisplay, no_more
from student.sweep.sweep_loop import (
    CellFailed,
    CellProgress,
    CellsStarted,
    SweepEvent,
    SweepFinished,
    SweepPlanned,
    Tally,
)


class SweepDisplay:
    """Draws the events of a sweep; its training events are silent on ranks other than the first.

    Args:
        out: the sweep's directory. together: students per pass. processes: that share the sweep.
    """

    def __init__(
        self, out: Path, *, together: int, processes: int, quiet: bool, more_views: MoreViews = no_more
    ) -> None:
        """Nothing is shown before the first event; `more_views` as of `TrainingDisplay`."""
        self._out, self._together, self._processes, self._quiet = out, together, processes, quiet
        self._training = TrainingDisplay(quiet=quiet, beside=self.left, more_views=more_views)
        self._waiting, self._began, self._pass_left_s = 0, 0.0, float("inf")

    def explain(self, reasons: Sequence[str]) -> None:
        """Say which settings were chosen for these data, and why."""
        self._training.explain(reasons)

    def show(self, event: SweepEvent) -> None:
        """Draw one event."""
        if isinstance(event, CellProgress):
            self._pass_left_s = getattr(event.event, "eta_s", self._pass_left_s)
            self._training.show(event.event)
            return
        self._training.close()
        counts = _counts(event.tally)
        match event:
            case SweepPlanned():
                done = event.tally.num_done == event.tally.num_total
                say(f"{self._out}: {'already finished: ' if done else ''}{counts}")
            case CellsStarted(names=names, tally=tally):
                self._began, self._pass_left_s = time.monotonic(), float("inf")
                self._waiting = tally.num_total - tally.num_done - tally.num_failed - len(names)
                say(f"training {', '.join(names)}; {counts}")
            case CellFailed():
                say(f"error: {event.name}: {event.error}; {counts}; run the same command to retry")
            case SweepFinished():
                if self._began:
                    say(f"{self._out}: {counts}")
                if not self._quiet:
                    self._table()

    def left(self) -> str:
        """Return the time left of the whole sweep: this pass, and as many like it as the waiting cells need."""
        whole = time.monotonic() - self._began + self._pass_left_s
        passes = -(-self._waiting // (self._together * self._processes))
        left = self._pass_left_s + passes * whole
        return f"whole grid {duration(left)} left" if math.isfinite(left) else ""

    def _table(self) -> None:
        from student.report.text import sweep_lines
        from student.sweep.sweep_directory import read_sweep

        for line in sweep_lines(read_sweep(self._out)):
            result(line)


def _counts(tally: Tally) -> str:
    failed = f", {tally.num_failed} failed" if tally.num_failed else ""
    return f"{tally.num_done} of {count(tally.num_total, 'cell')} done{failed}"
