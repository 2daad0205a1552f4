"""The directory of a sweep: its grid, one run directory per cell, one status per cell.

    sweep.json            grid, common settings of all cells, facts of the cache (teacher, views, bytes, fidelity per τ)
    cells/<name>/         the run of a cell
    status/<name>.json    how often it was tried and how the last try ended; replaced atomically
    status/<name>.lock    locked by the process that trains the cell; the kernel frees it when that process dies

A cell is done when its run has written its summary, whatever the status says: the run writes it last. So a kill between
the two loses nothing, and a status can never claim a result that is not there.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shards.documents import checked
from shards.errors import OtherVersionError, RunError
from shards.locks import locked
from shards.own_folder import FolderKind, named
from student.run.run_files import RunFiles, read_schema, write_json
from student.run.run_reader import Run, is_run, read_run
from student.sweep.grid import Cell, Grid

SWEEP_FOLDER = FolderKind(
    what="a sweep",
    command="ablate",
    is_ours=lambda folder: (folder / "sweep.json").is_file(),
    begun=named("cells", "status", ".sweep.json.*"),
)
"""The directory of a sweep; what it holds before its grid is there: `SweepDirectory.prepare`."""
_LOOK_S = 0.1  # a reader may hold the lock for a moment, looking whether it is held
STATES = ("done", "failed", "running", "interrupted", "waiting")


_Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)] | None


class _RecordFacts(msgspec.Struct):
    """What records cost at one τ."""

    temperature: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    gradient_error: _Number = None
    kl: _Number = None
    kl_p99: _Number = None
    bias: _Number = None


class _LossFacts(msgspec.Struct):
    """What records cost one loss."""

    loss: str
    temperature: _Number
    gradient_error: _Number


class _CacheFacts(msgspec.Struct):
    """What a report says of a cache."""

    teacher: str | None = None
    record: str | None = None
    views_recipe: str | None = None
    num_views: _Number = None
    num_samples: _Number = None
    forwards_spent: _Number = None
    bytes_per_view: _Number = None
    bytes: _Number = None


class _Facts(msgspec.Struct):
    """The facts that a report reads; others are kept as they are."""

    cache: _CacheFacts = msgspec.field(default_factory=_CacheFacts)
    caches: dict[str, Any] | list[Any] = {}
    fidelity: list[_RecordFacts] = []
    loss_errors: list[_LossFacts] = []


class SweepFile(msgspec.Struct):
    """What sweep.json holds."""

    grid: dict[str, Any]
    common: dict[str, Any] = {}
    facts: dict[str, Any] = {}


class _Said(msgspec.Struct):
    """What a status file holds."""

    state: str
    error: str = ""
    attempts: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStatus:
    """Where a cell stands: one of STATES, error of the last try, tries so far, its share of the last pass's seconds."""

    state: str
    error: str = ""
    attempts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SweepDirectory:
    """The files of one sweep."""

    path: Path

    @property
    def file(self) -> Path:
        """Where the grid is."""
        return self.path / "sweep.json"

    def run_path(self, cell: Cell) -> Path:
        """The run directory of a cell."""
        return self.path / "cells" / cell.name

    def prepare(self, grid: Grid, *, common: Mapping[str, Any], facts: Mapping[str, Any]) -> Grid:
        """Create the directory, or open it again with the same common settings; the grid may grow, never shrink.

        Returns: the union of the grid found and the grid given.

        Raises:
            RunError: naming each common setting that differs from the one the finished cells were trained with.
        """
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        (self.path / "status").mkdir(exist_ok=True)
        with locked(self.path / "status" / "sweep.lock", wait_s=10.0) as got:
            if not got:
                raise RunError(f"{self.file}: another process has been changing this sweep for 10 s; try again")
            if self.file.is_file():
                found = read_schema(self.file, SweepFile)
                self._require_equal(found.common, _plain(common))
                grid = _grid(self.file, found).union(grid)
            write_json(self.file, {"grid": grid.to_json(), "common": _plain(common), "facts": _plain(facts)})
        return grid

    def _require_equal(self, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        different = [key for key in sorted({*found, *given}) if found.get(key) != given.get(key)]
        if different:
            lines = "".join(f"\n  {key}: expected {found.get(key)!r}, got {given.get(key)!r}" for key in different)
            raise RunError(
                f"{self.file}: the cells of this sweep were trained with other settings:{lines}\n"
                "repeat the command with the settings above, or choose another --out"
            )

    def grid(self) -> Grid:
        """The grid as found; RunError when there is no sweep here."""
        return _grid(self.file, read_schema(self.file, SweepFile))

    def status(self, cell: Cell) -> CellStatus:
        """Where the cell stands now."""
        file = self.path / "status" / f"{cell.name}.json"
        said = read_schema(file, _Said) if file.is_file() else None
        kept: dict[str, Any] = {}
        if said is not None:
            kept = {"error": said.error, "attempts": said.attempts, "seconds": said.seconds}
        if RunFiles(self.run_path(cell)).summary.is_file():
            return CellStatus(state="done", **(kept | {"error": ""}))
        if said is None:
            return CellStatus(state="waiting")
        if said.state == "failed":
            return CellStatus(state="failed", **kept)
        return CellStatus(state="running" if self._is_claimed(cell) else "interrupted", **kept)

    def set_status(self, cell: Cell, status: CellStatus) -> None:
        """Replace the status of a cell."""
        write_json(
            self.path / "status" / f"{cell.name}.json",
            {"state": status.state, "error": status.error, "attempts": status.attempts, "seconds": status.seconds},
        )

    def _lock_file(self, cell: Cell) -> Path:
        return (self.path / "status" / f"{cell.name}.lock").absolute()

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Hold the cell while the block runs; False if another process holds it."""
        with locked(self._lock_file(cell), wait_s=_LOOK_S) as got:
            yield got

    def _is_claimed(self, cell: Cell) -> bool:
        path = self._lock_file(cell)
        if not path.exists():
            return False
        with locked(path) as free:
            return not free


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """A cell with its status and, once it has begun, its run."""

    cell: Cell
    status: CellStatus
    run: Run | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep as found on disk."""

    path: Path
    grid: Grid
    common: Mapping[str, Any]
    facts: Mapping[str, Any]
    results: tuple[CellResult, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name


def is_sweep(path: Path) -> bool:
    """Whether the directory holds a sweep."""
    return (path / "sweep.json").is_file()


def recipe_of_sweep(path: Path) -> dict[str, Any]:
    """The recipe fields that all cells of a sweep share; empty where there is no sweep yet."""
    recipe = read_schema(SweepDirectory(path).file, SweepFile).common.get("recipe") if is_sweep(path) else None
    return dict(recipe) if isinstance(recipe, dict) else {}


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory, whatever state it is in; RunError naming the damaged file."""
    directory = SweepDirectory(path)
    found = read_schema(directory.file, SweepFile)
    grid = _grid(directory.file, found)
    results = tuple(
        CellResult(
            cell=cell,
            status=directory.status(cell),
            run=read_run(directory.run_path(cell)) if is_run(directory.run_path(cell)) else None,
        )
        for cell in grid.cells()
    )
    return Sweep(path=path, grid=grid, common=found.common, facts=found.facts, results=results)


def _grid(path: Path, found: SweepFile) -> Grid:
    """The grid of a sweep's file; RunError naming the file when it is none, or when its facts are no facts."""
    checked(found.facts, _Facts, f"{path}: facts", error=RunError, advice="restore the file")
    try:
        return Grid.from_json(found.grid)
    except OtherVersionError as error:
        raise RunError(f"{path}: {error}") from error
    except ValueError as error:
        raise RunError(f"{path}: {error}; restore the file, or run ablate with another --out") from error


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as JSON gives it back, so that tuples and lists compare equal; ValueError for what JSON cannot hold."""
    result: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return result
