"""Trains every cell of a grid, N students on each pass over the data, and never loses one.

The engine knows cells, claims and failures; how a group of cells is trained is a function it is given (`TrainGroup`),
which yields progress and one `CellOutcome` per cell. A cell that failed is tried again by the same command, alone, so
that it cannot take its neighbours down twice. Several processes may work on one sweep (`--spread`): each starts at its
own place in the list, walks round, and leaves what another holds.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import CacheError, ShardError
from shards.world import World
from student.run.run_files import RunFiles
from student.sweep.grid import Cell, Grid
from student.sweep.sweep_directory import CellStatus, SweepDirectory


class CellJob(NamedTuple):
    """One student to train: the cell and the run directory that it must fill."""

    cell: Cell
    out: Path


class CellOutcome(NamedTuple):
    """How the training of one cell ended; `error` is empty when its run is complete."""

    name: str
    error: str = ""


class CellProgress(NamedTuple):
    """Something the trainer said while cells run: its own event, for the progress display."""

    names: tuple[str, ...]
    event: Any


class Halted(NamedTuple):
    """A signal asked to stop: what runs is saved, nothing more is begun; the process should exit with `exit_code`."""

    exit_code: int


TrainGroup = Callable[[Sequence[CellJob]], Iterator[CellOutcome | CellProgress | Halted]]
"""Trains one group of cells that share their batches: progress, one outcome per cell, or a halt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    """What happened: kind "planned", "started", "progress", "done", "failed", "halted" or "finished".

    `names` are the cells concerned; `num_done`, `num_failed` and `num_total` count cells of the whole sweep (0 done and
    failed for "progress", where nobody counted); `event` is the trainer's own event for "progress", and for "halted"
    the exit code. "finished" and "halted" are last.
    """

    kind: str
    names: tuple[str, ...]
    num_done: int
    num_failed: int
    num_total: int
    message: str = ""
    event: Any = None


def run_sweep(
    out: Path,
    grid: Grid,
    train: TrainGroup,
    *,
    common: Mapping[str, Any],
    facts: Mapping[str, Any],
    together: int = 1,
    world: World | None = None,
) -> Iterator[SweepEvent]:
    """Train what is missing of the grid; again: resume, retry what failed, do nothing when all is done.

    Args:
        out: directory of the sweep.
        grid: the cells wanted; a sweep found in `out` grows by them.
        train: trains one group of cells that share their batches.
        common: settings of all cells; must equal those of the sweep found.
        facts: what the report says about the cache; kept as given.
        together: students per pass.
        world: this process among those that share the sweep; None: it is alone.

    Raises:
        RunError: `out` holds a sweep with other settings. ShardError, CacheError: from `train`; the cells in flight
            are tried again by the same command.
    """
    rank, size = (world.rank, world.size) if world else (0, 1)
    directory = SweepDirectory(out)
    grid = directory.prepare(grid, common=common, facts=facts)
    yield _event(directory, grid, "planned", ())
    groups = _groups(directory, grid, together)
    start = rank * len(groups) // size
    for group in (*groups[start:], *groups[:start]):
        if (yield from _run_group(directory, grid, group, train)):
            return
    yield _event(directory, grid, "finished", ())


def _groups(directory: SweepDirectory, grid: Grid, together: int) -> list[tuple[Cell, ...]]:
    """Groups to work through: first what never failed, `together` at a time; then each failed cell by itself."""
    failed = [cell for cell in grid.cells() if directory.status(cell).state == "failed"]
    names = {cell.name for cell in failed}
    fresh = [tuple(cell for cell in group if cell.name not in names) for group in grid.groups(together)]
    return [*(group for group in fresh if group), *((cell,) for cell in failed)]


def _run_group(
    directory: SweepDirectory, grid: Grid, group: Sequence[Cell], train: TrainGroup
) -> Generator[SweepEvent, None, bool]:
    """Train what is missing of a group and free to take; returns whether the sweep is to halt."""
    with ExitStack() as claims:
        mine = [cell for cell in group if claims.enter_context(directory.claim(cell))]
        # Asked after the claim: another process may have finished the cell since the groups were made.
        cells = {cell.name: cell for cell in mine if directory.status(cell).state != "done"}
        if not cells:
            return False
        attempts = {name: directory.status(cell).attempts + 1 for name, cell in cells.items()}
        for name, cell in cells.items():
            directory.set_status(cell, CellStatus(state="running", attempts=attempts[name]))
        yield _event(directory, grid, "started", tuple(cells))
        began = time.monotonic()
        for said in _outcomes(train, [CellJob(cell, directory.run_path(cell)) for cell in cells.values()]):
            if isinstance(said, CellProgress):
                yield _event(directory, grid, "progress", said.names, event=said.event)
                continue
            if isinstance(said, Halted):
                yield _event(directory, grid, "halted", tuple(cells), event=said.exit_code)
                return True
            outcome = _checked(directory, cells[said.name], said)
            status = CellStatus(
                state="failed" if outcome.error else "done",
                error=outcome.error,
                attempts=attempts[said.name],
                seconds=(time.monotonic() - began) / len(cells),
            )
            directory.set_status(cells[said.name], status)
            yield _event(directory, grid, status.state, (said.name,), message=outcome.error)
    return False


def _outcomes(train: TrainGroup, jobs: Sequence[CellJob]) -> Iterator[CellOutcome | CellProgress | Halted]:
    """What `train` says, and a failed outcome for every cell that it leaves without one.

    Damaged shards or a damaged cache are every cell's matter: they end the sweep with their own message.
    """
    open_names = {job.cell.name for job in jobs}
    error = "the trainer ended without a word about this cell"
    try:
        for said in train(jobs):
            if isinstance(said, CellOutcome):
                open_names.discard(said.name)
            yield said
            if isinstance(said, Halted):
                return
    except (ShardError, CacheError):
        raise
    except Exception as raised:
        # One student's error must not end the sweep: it is kept with the cell and shown.
        error = f"{type(raised).__name__}: {raised}"
    for job in jobs:
        if job.cell.name in open_names:
            yield CellOutcome(job.cell.name, error)


def _checked(directory: SweepDirectory, cell: Cell, outcome: CellOutcome) -> CellOutcome:
    """A success only counts when the run has its summary."""
    summary = RunFiles(directory.run_path(cell)).summary
    if not outcome.error and not summary.is_file():
        return CellOutcome(cell.name, f"the trainer reported success, but {summary} is missing")
    return outcome


def _event(
    directory: SweepDirectory, grid: Grid, kind: str, names: tuple[str, ...], message: str = "", event: Any = None
) -> SweepEvent:
    states = [directory.status(cell).state for cell in grid.cells()] if kind != "progress" else []
    return SweepEvent(
        kind=kind,
        names=names,
        num_done=states.count("done"),
        num_failed=states.count("failed"),
        num_total=len(grid.cells()),
        message=message,
        event=event,
    )
