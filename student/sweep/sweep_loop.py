"""Train every cell of a grid, N students on each pass over the data; a failed or killed cell is tried again.

The loop knows cells, claims and failures; a function of the caller trains a group of cells (`TrainGroup`) and yields
progress and one `CellOutcome` per cell. A cell that failed is tried again by the same command, alone, so
that it cannot take its neighbours down twice. Several processes may work on one sweep (`--spread`): each starts at its
own place in the list, walks round, and leaves the cells that another process holds.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shards.errors import CacheError, ShardError, system_words, too_many_files
from shards.world import ALONE, World
from student.run.run_files import RunFiles
from student.sweep.grid import Cell, Grid
from student.sweep.sweep_directory import CellStatus, SweepDirectory

if TYPE_CHECKING:
    from student.run.run_events import Event


class CellJob(NamedTuple):
    """One student to train: the cell and the run directory that it must fill."""

    cell: Cell
    out: Path


class CellOutcome(NamedTuple):
    """How the training of one cell ended; `error` is empty when its run is complete."""

    name: str
    error: str = ""


class CellProgress(NamedTuple):
    """An event of the run that trains these cells, for the progress display."""

    names: tuple[str, ...]
    event: "Event"


class Halted(NamedTuple):
    """A signal asked to stop: running cells are saved, no other starts; the process should exit with `exit_code`."""

    exit_code: int


TrainGroup = Callable[[Sequence[CellJob]], Iterator[CellOutcome | CellProgress | Halted]]
"""Trains one group of cells that share their batches: progress, one outcome per cell, or a halt."""


class Tally(NamedTuple):
    """Numbers of cells of the whole sweep."""

    num_done: int
    num_failed: int
    num_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlanned:
    """The first event: the grid is on disk."""

    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class CellsStarted:
    """These cells are trained from now on, in one pass."""

    names: tuple[str, ...]
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEnded:
    """The run of this cell is complete, or ended with an error, which the status of the cell keeps; "" is no error."""

    name: str
    error: str
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepHalted:
    """The last event of a sweep that a signal stopped; the process should exit with `exit_code`."""

    exit_code: int
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFinished:
    """The last event: every cell of this process was tried."""

    tally: Tally


SweepEvent = SweepPlanned | CellsStarted | CellProgress | CellEnded | SweepHalted | SweepFinished
"""What a sweep says, in the order of these; all but `CellProgress` count the cells."""


def run_sweep(
    out: Path,
    grid: Grid,
    train: TrainGroup,
    *,
    common: Mapping[str, Any],
    facts: Mapping[str, Any],
    together: int = 1,
    world: World = ALONE,
) -> Iterator[SweepEvent]:
    """Train the missing cells of the grid; called again: resume, retry failed cells, do nothing when all are done.

    Args:
        out: directory of the sweep.
        grid: the requested cells; an existing sweep in `out` grows by them.
        train: trains one group of cells that share their batches.
        common: settings of all cells; must equal those of the existing sweep.
        facts: what the report says about the cache; stored unchanged.
        together: students per pass.
        world: this process among those that share the sweep.

    Raises:
        RunError: `out` holds a sweep with other settings. ShardError, CacheError: from `train`; the cells in flight
            are tried again by the same command.
    """
    directory = SweepDirectory(out)
    grid = directory.prepare(grid, common=common, facts=facts)
    yield SweepPlanned(tally=_tally(directory, grid))
    groups = _groups(directory, grid, together)
    start = world.rank * len(groups) // world.size
    for group in (*groups[start:], *groups[:start]):
        if (yield from _run_group(directory, grid, group, train)):
            return
    yield SweepFinished(tally=_tally(directory, grid))


def _groups(directory: SweepDirectory, grid: Grid, together: int) -> list[tuple[Cell, ...]]:
    """Return the groups in order: cells that never failed, `together` at a time; then each failed cell alone."""
    failed = [cell for cell in grid.cells() if directory.status(cell).state == "failed"]
    names = {cell.name for cell in failed}
    fresh = [tuple(cell for cell in group if cell.name not in names) for group in grid.groups(together)]
    return [*(group for group in fresh if group), *((cell,) for cell in failed)]


def _run_group(
    directory: SweepDirectory, grid: Grid, group: Sequence[Cell], train: TrainGroup
) -> Generator[SweepEvent, None, bool]:
    """Train the missing cells of a group that no other process holds; return whether the sweep is to halt."""
    with ExitStack() as claims:
        claimed = [cell for cell in group if claims.enter_context(directory.claim(cell))]
        # Read after the claim: another process may have finished the cell since the groups were made.
        cells = {cell.name: cell for cell in claimed if directory.status(cell).state != "done"}
        if not cells:
            return False
        attempts = {name: directory.status(cell).attempts + 1 for name, cell in cells.items()}
        for name, cell in cells.items():
            directory.set_status(cell, CellStatus(state="running", attempts=attempts[name]))
        yield CellsStarted(names=tuple(cells), tally=_tally(directory, grid))
        began = time.monotonic()
        for report in _outcomes(train, [CellJob(cell, directory.run_path(cell)) for cell in cells.values()]):
            if isinstance(report, CellProgress):
                yield report
                continue
            if isinstance(report, Halted):
                yield SweepHalted(exit_code=report.exit_code, tally=_tally(directory, grid))
                return True
            name, error = _checked(directory, cells[report.name], report)
            status = CellStatus(
                state="failed" if error else "done",
                error=error,
                attempts=attempts[name],
                seconds=(time.monotonic() - began) / len(cells),
            )
            directory.set_status(cells[name], status)
            yield CellEnded(name=name, error=error, tally=_tally(directory, grid))
    return False


def _outcomes(train: TrainGroup, jobs: Sequence[CellJob]) -> Iterator[CellOutcome | CellProgress | Halted]:
    """Yield what `train` yields, and a failed outcome for every cell that it leaves without one.

    Damaged shards or a damaged cache concern every cell: they end the sweep with their own message.
    """
    open_names = {job.cell.name for job in jobs}
    error = "the trainer ended without a word about this cell"
    try:
        for report in train(jobs):
            if isinstance(report, CellOutcome):
                open_names.discard(report.name)
            yield report
            if isinstance(report, Halted):
                return
    except (ShardError, CacheError):
        raise
    except Exception as raised:
        if too_many_files(raised):
            raise  # no cell is at fault, and the next would meet it too
        # One student's error must not end the sweep: it is stored with the cell and shown.
        error = system_words(raised) if isinstance(raised, OSError) else f"{type(raised).__name__}: {raised}"
    for job in jobs:
        if job.cell.name in open_names:
            yield CellOutcome(job.cell.name, error)


def _checked(directory: SweepDirectory, cell: Cell, outcome: CellOutcome) -> CellOutcome:
    """Return the outcome; a success without the summary of its run is a failure."""
    summary = RunFiles(directory.run_path(cell)).summary
    if not outcome.error and not summary.is_file():
        return CellOutcome(cell.name, f"the trainer reported success, but {summary} is missing")
    return outcome


def _tally(directory: SweepDirectory, grid: Grid) -> Tally:
    states = [directory.status(cell).state for cell in grid.cells()]
    return Tally(states.count("done"), states.count("failed"), len(states))
