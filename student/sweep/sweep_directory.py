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
from shards.own_folder import SWEEP_FILE, FolderKind, is_sweep_folder, named
from shards.values import flat
from student.run.run_files import RunFiles, read_schema, write_json
from student.run.run_reader import Run, is_run, read_run, views_before
from student.sweep.grid import Cell, Grid

SWEEP_FOLDER = FolderKind(
    what="a sweep",
    command="ablate",
    is_ours=is_sweep_folder,
    begun=named("cells", "status", ".sweep.json.*"),
    utf8=True,
)
"""The directory of a sweep; `begun` names what `SweepDirectory.prepare` writes before the grid."""
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


class CellStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cell stands, as its status file holds it.

    Attributes:
        state: one of STATES. error: of the last try. attempts: tries so far.
        seconds: the cell's share of the last pass.
    """

    state: str
    error: str = ""
    attempts: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0


@dataclass(frozen=True, slots=True)
class SweepDirectory:
    """The files of one sweep."""

    path: Path

    @property
    def file(self) -> Path:
        """The file that holds the grid."""
        return self.path / SWEEP_FILE

    def run_path(self, cell: Cell) -> Path:
        """The run directory of a cell."""
        return self.path / "cells" / cell.name

    def prepare(self, grid: Grid, *, common: Mapping[str, Any], facts: Mapping[str, Any]) -> Grid:
        """Create the directory, or open it again with the same common settings; the grid may grow, never shrink.

        Returns: the union of the existing grid and the requested one.

        Raises:
            RunError: naming each common setting that differs from the one the finished cells were trained with.
        """
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        (self.path / "status").mkdir(exist_ok=True)
        with locked(self.path / "status" / "sweep.lock", wait_s=10.0) as held:
            if not held:
                raise RunError(f"{self.file}: another process has been changing this sweep for 10 s; try again")
            if self.file.is_file():
                existing = read_schema(self.file, SweepFile)
                self._require_equal(existing.common, _plain(common))
                grid = _grid(self.file, existing).union(grid)
            write_json(self.file, {"grid": grid.to_json(), "common": _plain(common), "facts": _plain(facts)})
        return grid

    def _require_equal(self, existing: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
        existing, requested = dict(flat(existing)), dict(flat(requested))
        keys = sorted(key for key in {*existing, *requested} if existing.get(key) != requested.get(key))
        if keys:
            lines = "".join(f"\n  {key}: expected {existing.get(key)!r}, got {requested.get(key)!r}" for key in keys)
            raise RunError(
                f"{self.file}: the cells of this sweep were trained with other settings:{lines}\n"
                "repeat the command with the settings above, or choose another --out"
            )

    def grid(self) -> Grid:
        """Return the grid on disk; RunError when the directory holds no sweep."""
        return _grid(self.file, read_schema(self.file, SweepFile))

    def status(self, cell: Cell) -> CellStatus:
        """Return where the cell stands now: its files decide, then its lock."""
        file = self._status_file(cell)
        stored = read_schema(file, CellStatus) if file.is_file() else CellStatus(state="waiting")
        if RunFiles(self.run_path(cell)).summary.is_file():
            return msgspec.structs.replace(stored, state="done", error="")
        if stored.state in ("failed", "waiting"):
            return stored
        return msgspec.structs.replace(stored, state="running" if self._is_claimed(cell) else "interrupted")

    def set_status(self, cell: Cell, status: CellStatus) -> None:
        """Replace the status of a cell."""
        write_json(self._status_file(cell), msgspec.structs.asdict(status))

    def _status_file(self, cell: Cell) -> Path:
        return self.path / "status" / f"{cell.name}.json"

    def _lock_file(self, cell: Cell) -> Path:
        return (self.path / "status" / f"{cell.name}.lock").absolute()

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Hold the cell while the block runs; yield False if another process holds it."""
        with locked(self._lock_file(cell), wait_s=_LOOK_S) as held:
            yield held

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
    """A sweep as it is on disk."""

    path: Path
    grid: Grid
    common: Mapping[str, Any]
    facts: Mapping[str, Any]
    results: tuple[CellResult, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name


def recipe_of_sweep(path: Path) -> dict[str, Any]:
    """Return the recipe fields that all cells of a sweep share; empty when the directory holds no sweep."""
    recipe = read_schema(SweepDirectory(path).file, SweepFile).common.get("recipe") if is_sweep_folder(path) else None
    return dict(recipe) if isinstance(recipe, dict) else {}


def precision_of_sweep(path: Path) -> str | None:
    """The precision that all cells of a sweep share; None where there is no sweep yet."""
    settings = (
        read_schema(SweepDirectory(path).file, SweepFile).common.get("settings") if is_sweep_folder(path) else None
    )
    precision = settings.get("precision") if isinstance(settings, dict) else None
    return precision if isinstance(precision, str) else None


def views_of_sweep(path: Path) -> int | None:
    """The number of views of the cells that name none; None before one was begun, and where each set has its own."""
    directory = SweepDirectory(path)
    cells = directory.grid().cells() if is_sweep_folder(path) else ()
    of_cells = {views_before(directory.run_path(cell)) for cell in cells if cell.views_used is None} - {None}
    return of_cells.pop() if len(of_cells) == 1 else None


def read_sweep(path: Path) -> Sweep:
    """Read the sweep in a directory, complete or not; RunError naming the damaged file."""
    directory = SweepDirectory(path)
    file = read_schema(directory.file, SweepFile)
    grid = _grid(directory.file, file)
    results = tuple(
        CellResult(
            cell=cell,
            status=directory.status(cell),
            run=read_run(directory.run_path(cell)) if is_run(directory.run_path(cell)) else None,
        )
        for cell in grid.cells()
    )
    return Sweep(path=path, grid=grid, common=file.common, facts=file.facts, results=results)


def _grid(path: Path, file: SweepFile) -> Grid:
    """Return the grid in a sweep's file; RunError naming the file when grid or facts are damaged."""
    checked(file.facts, _Facts, f"{path}: facts", error=RunError, advice="restore the file")
    try:
        return Grid.from_json(file.grid)
    except OtherVersionError as error:
        raise RunError(f"{path}: {error}") from error
    except ValueError as error:
        raise RunError(f"{path}: {error}; restore the file, or run ablate with another --out") from error


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value after a round trip through JSON, so that tuples and lists compare equal."""
    result: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return result
