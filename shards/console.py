"""The only printer: results to stdout, progress and remarks to stderr, bars with rate and time left.

Everything passes through `visible` here, so that no name from a file can command a terminal.
"""

import contextlib
import errno
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from shards.text.escapes import visible
from shards.text.figures import byte_size, count, duration, plural

STANDARD_OUTPUT = "standard output"
_MOST_LINES, _MOST_CHARS = 6, 600  # of a message
RUNS_NEXT_ITSELF = "deit_cache.runs_next_itself"
"""Key of click's `Context.meta` under which a command that calls others says that their hints are not wanted."""


_drawn: list["Bar"] = []
"""The bars on the terminal."""


class Bar:
    """Progress: a bar with rate and time left on a terminal, a plain line every few seconds otherwise.

    Lines that are written meanwhile stand above it.
    """

    LINE_EVERY_S = 10.0
    LEAST_TIMED_S = 0.5

    def __init__(self, label: str, total: int, unit: str, *, rate: bool = True, start_s: float | None = None) -> None:
        """Show it at nothing done of `total`.

        Args:
            unit: in the singular; bytes are written as sizes. rate: show units per second, unless the notes tell a
                better one.
            start_s: when the work began, by `time.monotonic`; default: now.
        """
        from tqdm import tqdm

        self._tty, self._rate = sys.stderr.isatty(), rate
        self._sizes = unit == "byte"
        amount = "" if self._sizes else " {n_fmt}/{total_fmt}"
        shown = f"{{desc}} {{percentage:3.0f}} %|{{bar:16}}|{amount}{{postfix}}"
        self._bar = tqdm(
            total=total,
            desc=visible(label),
            bar_format=shown,
            disable=not self._tty,
            dynamic_ncols=True,
        )
        self._label, self._unit, self._total = label, unit, total
        now = time.monotonic()
        self._done, self._start, self._next = 0, now if start_s is None else start_s, now + self.LINE_EVERY_S
        self._timed: tuple[float, int] | None = None
        if self._tty:
            _drawn.append(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
        if self in _drawn:
            _drawn.remove(self)

    def clear(self) -> None:
        """Take the bar off the terminal until `refresh`."""
        self._bar.clear()

    def refresh(self) -> None:
        """Draw the bar."""
        self._bar.refresh()

    def start_at(self, done: int) -> None:
        """Begin at what was done before this run: it does not count into the rate."""
        self._done = done
        self._bar.initial = self._bar.n = done
        self._bar.refresh()

    def to(self, done: int, note: str = "", *, line: bool = False) -> None:
        """Now at `done` of the total, which grows when there is more; `note` stands behind the rate.

        Args:
            line: without a terminal a line is written now; default: every few seconds.
        """
        grown, self._total = done > self._total, max(self._total, done)
        advanced, self._done = done - self._done, done
        now = time.monotonic()
        amount = f"{byte_size(done)} of {byte_size(self._total)}" if self._sizes else ""
        shown = [*([amount] if amount and self._tty else []), *self._pace(now), *([note] if note else [])]
        if advanced and self._timed is None:
            self._timed = now, done  # what came before was also start-up and compilation: it is no rate
        self._bar.total = self._total
        self._bar.set_postfix_str(visible(", ".join(shown)), refresh=False)
        self._bar.update(advanced)
        if not self._tty and advanced and (line or now >= self._next or (done == self._total and not grown)):
            amount = amount or f"{done:,}/{self._total:,} {plural(self._total, self._unit)}"
            say(", ".join([f"{self._label}: {amount}", *shown]))
            self._next = now + self.LINE_EVERY_S

    def _pace(self, now: float) -> Iterator[str]:
        """Units per second and the time left, as far as they are known; at the end the time that all took."""
        rate = math.nan
        if self._timed is not None and now - self._timed[0] >= self.LEAST_TIMED_S:
            rate = (self._done - self._timed[1]) / (now - self._timed[0])
        if self._rate and rate > 0:
            yield f"{byte_size(rate)}/s" if self._sizes else f"{rate:,.1f}/s"
        if self._done >= self._total:
            yield f"in {duration(now - self._start)}"
        elif rate > 0:
            yield f"{duration((self._total - self._done) / rate)} left"


def close_bars() -> None:
    """Leave all bars as they stand, so that an error message stands below them."""
    for bar in tuple(_drawn):
        bar.close()


@contextlib.contextmanager
def _above_bars() -> Iterator[None]:
    """Take the bars off the terminal while a line is written, and draw them below it."""
    for bar in _drawn:
        bar.clear()
    yield
    for bar in _drawn:
        bar.refresh()


def say(text: str) -> None:
    """A line for the reader: progress and remarks go to stderr, results to stdout.

    Where standard error cannot be written nobody reads it: that ends no run.
    """
    with contextlib.suppress(OSError), _above_bars():
        click.echo(visible(text), err=True)


def command_line(words: Sequence[object]) -> str:
    """A command of ours as the user types it in this shell: the program as it was started, the words quoted."""
    context = click.get_current_context(silent=True)
    name = (context.find_root().info_name if context else None) or "deit-cache"
    if not name.endswith(".py"):
        return shlex.join([name, *map(str, words)])
    started = sys.argv[0]  # with its folder, which click leaves out
    return shlex.join(["python", started if Path(started).name == name else name, *map(str, words)])


def runs_next_itself() -> bool:
    """Whether a command that calls others, one after the other, is running this one."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(RUNS_NEXT_ITSELF))


def say_next(*commands: Sequence[object]) -> None:
    """Say which commands come next, a line each, ready to paste; nothing inside a command that runs them itself."""
    if click.get_current_context(silent=True) is not None and not runs_next_itself():
        for number, words in enumerate(commands):
            say(f"{'      ' if number else 'next: '}{command_line(words)}")


def setting_lines(reasons: Sequence[str]) -> list[str]:
    """The lines that say which settings a command chose for the data, one with its reason on each; none for none."""
    return ["automatic settings:", *(f"  {reason}" for reason in reasons)] if reasons else []


def shortened(text: str) -> str:
    """A message of at most 6 lines and 600 characters: what is cut comes out of its middle, since it begins with what
    and where, and ends with what to do next; --debug shows all of it.
    """
    rows = text.splitlines()
    if len(rows) > _MOST_LINES:
        rows = [
            *rows[: _MOST_LINES - 2],
            f"… {count(len(rows) - _MOST_LINES + 1, 'more line')} (--debug shows them)",
            rows[-1],
        ]
    text = "\n".join(rows)
    if len(text) > _MOST_CHARS:
        mark = " … (--debug shows all) … "
        num_shown = _MOST_CHARS - len(mark)
        text = text[: num_shown * 2 // 3] + mark + text[-(num_shown - num_shown * 2 // 3) :]
    return text


def result(text: object) -> None:
    """A line of what was asked for, on stdout; OSError naming it when it is closed, full or gone."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", STANDARD_OUTPUT)
    with _naming_output(), _above_bars():
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
