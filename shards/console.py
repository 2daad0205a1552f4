"""The only printer: results to stdout, progress and remarks to stderr, bars with rate and time left.

Everything passes through `visible` here, so that no name from a file can command a terminal.
"""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType

import click

from shards.text.escapes import visible

STANDARD_OUTPUT = "standard output"


class Bar:
    """Progress: a bar with rate and time left on a terminal, a plain line every few seconds otherwise."""

    LINE_EVERY_S = 10.0

    def __init__(self, label: str, total: int, unit: str, *, rate: bool = True) -> None:
        """Show it at nothing done of `total`; `rate` shows units per second, unless the notes tell a better one."""
        from tqdm import tqdm

        self._tty, self._rate = sys.stderr.isatty(), rate
        speed = " {rate_fmt}," if rate else ""
        shown = "{desc} {percentage:3.0f} %|{bar:16}| {n_fmt}/{total_fmt}" + speed + " {remaining} left{postfix}"
        self._bar = tqdm(
            total=total,
            desc=visible(label),
            unit=f" {unit}",
            bar_format=shown,
            disable=not self._tty,
            dynamic_ncols=True,
            smoothing=0.1,
        )
        self._label, self._unit, self._total = label, unit, total
        self._done, self._start, self._next = 0, time.monotonic(), time.monotonic() + self.LINE_EVERY_S
        self._first = 0

    def __enter__(self) -> "Bar":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bar."""
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def start_at(self, done: int) -> None:
        """What was done before this run: it does not count into the rate."""
        self._first = self._done = done
        self._bar.initial = self._bar.n = done
        self._bar.refresh()

    def to(self, done: int, note: str = "") -> None:
        """Now at `done` of the total, which grows when there is more; `note` stands behind the rate."""
        grown, self._total = done > self._total, max(self._total, done)
        self._bar.total = self._total
        self._bar.set_postfix_str(visible(note), refresh=False)
        advanced, self._done = done - self._done, done
        self._bar.update(advanced)
        now = time.monotonic()
        if not self._tty and advanced and (now >= self._next or (done == self._total and not grown)):
            rate = (done - self._first) / max(now - self._start, 1e-9)
            left = (self._total - done) / rate if rate > 0 else float("inf")
            tail = f", {duration(left)} left" if done < self._total else f" in {duration(now - self._start)}"
            speed = f", {rate:.1f}/s" if self._rate else ""
            say(f"{self._label}: {done}/{self._total} {self._unit}{speed}{tail}{', ' + note if note else ''}")
            self._next = now + self.LINE_EVERY_S

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._bar.clear()
        say(text)
        self._bar.refresh()


def say(text: str) -> None:
    """A line for the reader: progress and remarks go to stderr, results to stdout.

    Where standard error cannot be written nobody reads it: that ends no run.
    """
    with contextlib.suppress(OSError):
        click.echo(visible(text), err=True)


def shortened(text: str, lines: int = 6, characters: int = 600) -> str:
    """A message that fits: what is cut comes out of its middle, since it begins with what and where, and ends with what
    to do next; --debug shows all of it.
    """
    rows = text.splitlines()
    if len(rows) > lines:
        rows = [*rows[: lines - 2], f"… {len(rows) - lines + 1} more lines (--debug shows them)", rows[-1]]
    text = "\n".join(rows)
    if len(text) > characters:
        mark = " … (--debug shows all) … "
        kept = characters - len(mark)
        text = text[: kept * 2 // 3] + mark + text[-(kept - kept * 2 // 3) :]
    return text


def result(text: object) -> None:
    """A line of what was asked for, on stdout; OSError naming it when it is closed, full or gone."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", STANDARD_OUTPUT)
    with _naming_output():
        click.echo(visible(str(text)))


def flush_output() -> None:
    """Bring everything to stdout now, where it can still be said that it failed; OSError as of `result`."""
    if sys.stdout is not None:
        with _naming_output():
            sys.stdout.flush()


def drop_output() -> None:
    """Forget what could not be written to stdout: Python would try, and complain, once more at its end."""
    try:
        flush_output()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def hold_standard_streams() -> None:
    """Open what is closed of standard input, output and error: a file opened next would be one of them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one


@contextlib.contextmanager
def _naming_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STANDARD_OUTPUT
        raise


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds; "?" when nobody knows."""
    if seconds == float("inf"):
        return "?"
    minutes, secs = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{secs:02}s" if minutes else f"{seconds:.1f}s"
