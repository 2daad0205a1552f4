"""Ablations: no cell twice, no cell lost, whatever fails, dies or runs beside it."""

import errno
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import CacheError, RunError, ShardError
from shards.rng import stream
from shards.world import World
from student.recipe.settings import TrainSettings
from student.run.run_events import Joining
from student.sweep.cell_training import SweepTraining, cache_facts
from student.sweep.grid import Cell, Grid
from student.sweep.memory import FreeMemory, MemoryNeed, UncountableError, memory_need
from student.sweep.sweep_directory import CellStatus, SweepDirectory, precision_of_sweep, read_sweep
from student.sweep.sweep_loop import (
    CellEnded,
    CellJob,
    CellOutcome,
    CellProgress,
    Halted,
    SweepEvent,
    SweepFinished,
    SweepHalted,
    SweepPlanned,
    Tally,
    run_sweep,
)
from student.sweep.sweep_teachers import SweepTeachers
from tests.student_tiny import (
    CLASSES,
    final_weights,
    in_child,
    in_children,
    make_cache,
    student_recipe,
    views,
    write_shards,
)

GRID = Grid(weights=(0, 0.5, 0.9), temperatures=(1, 3), seeds=(0, 1))
COMMON = {"recipe": {"model": "m", "epochs": 3}, "cache": "abc"}


def some_grid(number: int) -> Grid:
    """A grid drawn from a stream: any λ with or without the baseline, any τ, one or both losses."""
    rng = stream(number, "grid")

    def draw(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in sorted(rng.permutation(len(values))[: 1 + rng.below(len(values))]))

    return Grid(
        weights=draw((0, 0.1, 0.25, 0.5, 1)),
        temperatures=draw((0.5, 1, 2, 8)),
        distillations=draw(("hard", "soft")),
        seeds=draw((0, 3, 7)),
        views_used=draw((None, 6, 12)),
    )


@pytest.mark.parametrize("number", range(40))
def test_every_cell_of_a_grid_is_there_once(number: int) -> None:
    """Counted from the axes alone: λ > 0 times (1 for hard + τ for soft), and one baseline, per seed and views."""
    grid = some_grid(number)
    cells = grid.cells()
    weights = sum(weight > 0 for weight in grid.weights)
    columns = ("hard" in grid.distillations) + len(grid.temperatures) * ("soft" in grid.distillations)
    per_seed = weights * columns + (0 in grid.weights)
    assert len(cells) == per_seed * len(grid.seeds) * len(grid.views_used)
    assert len({cell.name for cell in cells}) == len(set(cells)) == len(cells)
    assert all((cell.temperature is None) == (cell.distill != "soft") for cell in cells)
    assert all((cell.distill_weight == 0) == (cell.distill == "none") for cell in cells)


@pytest.mark.parametrize(("number", "together"), [*itertools.product(range(10), (1, 2, 5, 100))])
def test_groups_partition_the_cells_and_share_their_batches(number: int, together: int) -> None:
    grid = some_grid(number)
    groups = grid.groups(together)
    assert [cell for group in groups for cell in group] == list(grid.cells())
    assert all(len({(cell.seed, cell.views_used) for cell in group}) == 1 for group in groups)
    assert max(map(len, groups)) <= together
    streams = len(grid.seeds) * len(grid.views_used)
    assert len(groups) == streams * -(-len(grid.cells()) // streams // together)


@pytest.mark.parametrize("number", range(10))
def test_a_grown_grid_loses_nothing(number: int) -> None:
    one, other = some_grid(number), some_grid(number + 100)
    assert {*one.cells(), *other.cells()} <= set(one.union(other).cells())
    assert one.union(one) == one
    assert Grid.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("axis", "change"),
    [
        ("lambda", {"weights": (1.5,)}),
        ("lambda", {"weights": (float("nan"),)}),
        ("lambda", {"weights": ()}),
        ("lambda", {"weights": (0.5, 0.5)}),
        ("tau", {"temperatures": (0,)}),
        ("tau", {"temperatures": ()}),
        ("tau", {"temperatures": (float("inf"),)}),
        ("distill", {"distillations": ("firm",)}),
        ("seeds", {"seeds": (-1,)}),
        ("views-used", {"views_used": (0,)}),
    ],
)
def test_a_wrong_axis_is_named(axis: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=axis):
        Grid(**{"weights": (0.5,), "temperatures": (1,), **change})


# --- the engine, with a trainer that takes no time ----------------------------------------------------------


class Fake:
    """Trains by writing a summary; remembers what it was asked for; `act` may fail or stop for a cell."""

    def __init__(self, act: Callable[[Cell], str | None] = lambda cell: None) -> None:
        self.act, self.asked = act, list[tuple[str, ...]]()

    def __call__(self, jobs: Sequence[CellJob]) -> Iterator[CellOutcome | CellProgress | Halted]:
        self.asked.append(tuple(job.cell.name for job in jobs))
        for job in jobs:
            yield CellProgress((job.cell.name,), Joining(rank=0, world_size=1, where=""))
            error = self.act(job.cell)
            if error == "halt":
                yield Halted(75)
                raise AssertionError("asked to go on after a halt")
            if not error:
                finish(job.out)
            yield CellOutcome(job.cell.name, error or "")

    @property
    def cells(self) -> list[str]:
        """Every cell asked for, in order."""
        return [name for group in self.asked for name in group]


def _full(cell: Cell) -> str:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "shard.tar")


def _forbidden(cell: Cell) -> str:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "step-000000002.pt")


def test_what_the_system_refuses_is_said_with_the_remedy(tmp_path: Path) -> None:
    """Too many open files concern every cell: none is marked as failed and the next is not begun."""
    grid = Grid(weights=(0.5,), temperatures=(1,), seeds=(0, 1))
    train = Fake(_full)
    with pytest.raises(OSError, match=r"shard\.tar"):
        list(run_sweep(tmp_path / "full", grid, train, common={}, facts={}))
    assert len(train.asked) == 1
    assert "failed" not in {result.status.state for result in read_sweep(tmp_path / "full").results}
    list(run_sweep(tmp_path / "kept", grid, Fake(_forbidden), common={}, facts={}))
    errors = {result.status.error for result in read_sweep(tmp_path / "kept").results}
    assert errors == {"step-000000002.pt: permission denied; check the permissions, or choose another place"}


def finish(out: Path) -> None:
    """What a finished run leaves."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text("{}")
    (out / "summary.json").write_text('{"top1": 90.0}')


def sweep(out: Path, train: Any, grid: Grid = GRID, **options: Any) -> list[SweepEvent]:
    """All events of a sweep."""
    return list(run_sweep(out, grid, train, **{"common": COMMON, "facts": {}, **options}))


def last(events: Sequence[SweepEvent]) -> Tally:
    """The numbers of cells at the end."""
    assert not isinstance(events[-1], CellProgress)
    return events[-1].tally


def states(out: Path) -> dict[str, str]:
    """The state of every cell by name."""
    return {result.cell.name: result.status.state for result in read_sweep(out).results}


def test_a_finished_sweep_trains_nothing_again(tmp_path: Path) -> None:
    train = Fake()
    assert last(sweep(tmp_path, train)).num_done == len(GRID.cells())
    assert sorted(train.cells) == sorted(cell.name for cell in GRID.cells())
    assert [type(event) for event in sweep(tmp_path, Fake())] == [SweepPlanned, SweepFinished]


def test_a_failed_cell_is_reported_kept_and_retried_alone_by_the_same_command(tmp_path: Path) -> None:
    bad = "soft-l0.5-t3-s0"
    events = sweep(tmp_path, Fake(lambda cell: "loss is nan" if cell.name == bad else None), together=7)
    failed = [event for event in events if isinstance(event, CellEnded) and event.error]
    assert [(event.name, event.error) for event in failed] == [(bad, "loss is nan")]
    assert last(events).num_failed == 1 and last(events).num_done == len(GRID.cells()) - 1
    status = read_sweep(tmp_path).results[[cell.name for cell in GRID.cells()].index(bad)].status
    assert (status.state, status.error, status.attempts) == ("failed", "loss is nan", 1)
    train = Fake()
    assert last(sweep(tmp_path, train, together=7)).num_failed == 0
    assert train.asked == [(bad,)]
    assert set(states(tmp_path).values()) == {"done"}


def test_a_pass_that_dies_fails_only_the_cells_it_left_without_a_word(tmp_path: Path) -> None:
    def train(jobs: Sequence[CellJob]) -> Iterator[CellOutcome]:
        for job in jobs:
            if job.cell.distill_weight == 0.9:
                raise RuntimeError("out of memory")
            finish(job.out)
            yield CellOutcome(job.cell.name)

    sweep(tmp_path, train, together=100)
    found = states(tmp_path)
    # Baseline and hard at λ 0.5 come before the first λ 0.9; the rest of each pass goes down with it.
    assert {name for name, state in found.items() if state == "done"} == {
        f"{name}-s{seed}" for name in ("none", "hard-l0.5") for seed in (0, 1)
    }
    assert set(found.values()) == {"done", "failed"}
    errors = {result.status.error for result in read_sweep(tmp_path).results if result.status.state == "failed"}
    assert errors == {"RuntimeError: out of memory"}
    second = Fake()
    sweep(tmp_path, second, together=100)
    assert all(len(group) == 1 for group in second.asked), "cells that failed are retried alone"


def test_a_success_without_a_summary_is_a_failure(tmp_path: Path) -> None:
    sweep(tmp_path, lambda jobs: iter([CellOutcome(job.cell.name) for job in jobs]))
    assert set(states(tmp_path).values()) == {"failed"}


def test_a_silent_trainer_is_a_failure(tmp_path: Path) -> None:
    sweep(tmp_path, lambda jobs: iter(()))
    assert set(states(tmp_path).values()) == {"failed"}


@pytest.mark.parametrize("error", [CacheError, ShardError])
def test_damaged_data_ends_the_sweep_with_its_own_message(tmp_path: Path, error: type[Exception]) -> None:
    """It is every cell's matter: 48 failures with one cause would hide it."""

    def train(jobs: Sequence[CellJob]) -> Iterator[CellOutcome]:
        raise error("unit 3 of shard 7 is damaged")
        yield

    with pytest.raises(error, match="unit 3 of shard 7"):
        sweep(tmp_path, train)
    assert set(states(tmp_path).values()) == {"waiting", "interrupted"}
    assert last(sweep(tmp_path, Fake())).num_done == len(GRID.cells())


def test_a_halt_begins_nothing_more_and_the_same_command_goes_on(tmp_path: Path) -> None:
    first = Fake(lambda cell: "halt" if cell.name == "hard-l0.9-s0" else None)
    events = sweep(tmp_path, first)
    assert isinstance(events[-1], SweepHalted) and events[-1].exit_code == 75
    assert states(tmp_path)["hard-l0.9-s0"] == "interrupted"
    second = Fake()
    sweep(tmp_path, second)
    assert sorted(first.cells[:-1] + second.cells) == sorted(cell.name for cell in GRID.cells())


def test_other_common_settings_are_refused_by_name(tmp_path: Path) -> None:
    sweep(tmp_path, Fake())
    with pytest.raises(RunError, match=r"other settings:\n  recipe\.epochs: expected 3, got 4\nrepeat"):
        sweep(tmp_path, Fake(), common={**COMMON, "recipe": {"model": "m", "epochs": 4}})
    assert last(sweep(tmp_path, Fake())).num_done == len(GRID.cells())


def test_of_two_precisions_the_process_that_comes_second_is_refused(tmp_path: Path) -> None:
    """Two machines that begin a sweep at once, each with the default of its own GPU."""
    common = [{"settings": {"precision": name, "accumulate": 1}} for name in ("bf16", "fp16")]
    first = Fake()
    sweep(tmp_path, first, common=common[0])
    second = Fake()
    with pytest.raises(RunError, match=r"\n  settings\.precision: expected 'bf16', got 'fp16'\nrepeat the command"):
        sweep(tmp_path, second, common=common[1])
    assert precision_of_sweep(tmp_path) == "bf16" and not second.cells


def test_a_sweep_grows_by_the_cells_it_lacks(tmp_path: Path) -> None:
    sweep(tmp_path, Fake())
    train = Fake()
    wider = Grid(weights=(0.5,), temperatures=(8,), distillations=("soft",), seeds=(0,))
    events = sweep(tmp_path, train, wider)
    # The grid stays a product: the new τ is wanted at every λ and seed that was there.
    expected = {cell.name for cell in GRID.union(wider).cells()} - {cell.name for cell in GRID.cells()}
    assert set(train.cells) == expected and last(events).num_total == len(GRID.cells()) + len(expected)


# --- several processes --------------------------------------------------------------------------------------


def held(out: Path, cell: Cell) -> bool:
    """Whether another process holds the cell, asked from a child."""

    def ask() -> bool:
        with SweepDirectory(out).claim(cell) as got:
            return not got

    return bool(in_child(ask))


def test_a_claim_survives_reading_the_state(tmp_path: Path) -> None:
    """POSIX drops a process's lock when it closes any handle of the file; looking at the status must not do that."""
    directory, cell = SweepDirectory(tmp_path), GRID.cells()[0]
    directory.prepare(GRID, common={}, facts={})
    with directory.claim(cell) as got:
        directory.set_status(cell, CellStatus(state="running", attempts=1))
        assert got and directory.status(cell).state == "running"
        assert read_sweep(tmp_path).results[0].status.state == "running"
        with directory.claim(cell) as again:
            assert not again
        assert held(tmp_path, cell)
    assert not held(tmp_path, cell)
    assert directory.status(cell).state == "interrupted"


def test_a_killed_process_frees_its_cell_even_if_a_worker_of_it_lives_on(tmp_path: Path) -> None:
    directory, cell = SweepDirectory(tmp_path), GRID.cells()[0]
    directory.prepare(GRID, common={}, facts={})
    worker_file = tmp_path / "worker"
    # Plain forks: the worker must inherit every handle, and a pipe of a test process would wait for it.
    if (holder := os.fork()) == 0:
        with directory.claim(cell):
            if (worker := os.fork()) == 0:
                time.sleep(20)
                os._exit(0)
            worker_file.write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        assert not held(tmp_path, cell)
    finally:
        os.kill(int(worker_file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_share_a_sweep_train_each_cell_once(tmp_path: Path, size: int) -> None:
    def work(rank: int) -> list[str]:
        def slow(cell: Cell) -> None:
            time.sleep(0.02)

        train = Fake(slow)
        sweep(tmp_path, train, together=2, world=World(rank, size, rank))
        return train.cells

    done = in_children([lambda rank=rank: work(rank) for rank in range(size)])
    assert sorted(itertools.chain(*done)) == sorted(cell.name for cell in GRID.cells())
    assert all(done), "every process found work"


# --- real students ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SweepTraining]:
    folder = tmp_path_factory.mktemp("ablate")
    index, val = write_shards(folder / "train"), write_shards(folder / "val", rows=(9,), seed=1)
    recipe = views()
    with make_cache(folder / "cache.zarr", index, recipe, num_views=4) as cache:
        yield SweepTraining(
            recipe=student_recipe(),
            settings=TrainSettings(log_every=1),
            index=index,
            val_index=val,
            teachers=SweepTeachers.of([cache]),
        )


@pytest.mark.slow
def test_students_of_one_pass_end_bit_identical_to_students_alone(tmp_path: Path, training: SweepTraining) -> None:
    """The promise of --together, through the whole sweep: weights and every logged number."""
    grid = Grid(weights=(0, 0.5), temperatures=(2,), seeds=(0, 1), views_used=(1, None))
    for out, together in ((tmp_path / "alone", 1), (tmp_path / "together", 3)):
        events = list(run_sweep(out, grid, training.train, common=training.common(), facts={}, together=together))
        assert last(events).num_done == len(grid.cells()) == 12, [
            e for e in events if isinstance(e, CellEnded) and e.error
        ]
    for cell in grid.cells():
        alone, beside = (tmp_path / which / "cells" / cell.name for which in ("alone", "together"))
        assert final_weights(alone) == final_weights(beside), cell.name
        assert losses(alone) == losses(beside)
        assert training.cell_recipe(cell).distill == json.loads((alone / "summary.json").read_text())["distill"]
    weights = [str(final_weights(tmp_path / "alone" / "cells" / cell.name)) for cell in grid.cells()]
    assert len(set(weights)) == len(weights), "seed, views, λ and loss each make another student"


def losses(out: Path) -> list[tuple[Any, ...]]:
    """Every logged loss of a run."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line["loss"], line.get("val")) for line in lines]


def test_a_check_finds_what_does_not_fit_before_anything_is_written(
    tmp_path: Path, training: SweepTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training.check(GRID, together=4)
    with pytest.raises(ValueError, match="views_used"):
        training.check(replace(GRID, views_used=(5,)), together=1)
    with pytest.raises(ValueError, match="batch_size"):
        replace(training, recipe=replace(training.recipe, batch_size=18)).check(GRID, together=1)
    need = memory_need(training.recipe, num_classes=CLASSES, num_students=4)
    host = int((need.total + need.ahead) / 0.9) + 1

    def free_memory(device: torch.device, *, sharing: int) -> FreeMemory:
        return FreeMemory(str(device), None, host // sharing)

    monkeypatch.setattr("student.sweep.cell_training.free_memory", free_memory)
    assert training.check(GRID, together=4) == ()
    shared = replace(training, world=World(size=2, local_size=2))
    with pytest.raises(ValueError, match="--together"):
        shared.check(GRID, together=4)
    (warning,) = shared.check(GRID, together=4, anyway=True)
    assert "--together 4: needs" in warning

    def uncountable(*_: Any, **__: Any) -> MemoryNeed:
        raise UncountableError("cannot be counted")

    monkeypatch.setattr("student.sweep.cell_training.memory_need", uncountable)
    with pytest.raises(UncountableError):
        training.check(GRID, together=4)
    assert training.check(GRID, together=4, anyway=True) == ("cannot be counted",)
    assert not list(tmp_path.iterdir())


def test_facts_of_a_cache_count_its_forwards_and_hold_no_invented_error(training: SweepTraining) -> None:
    losses = ("hard", "soft", "dist")
    facts = cache_facts(training.teachers.first, (1.0, 4.0), distillations=losses, recipe=training.recipe)
    of_losses = [(row["loss"], row["temperature"], row["gradient_error"]) for row in facts["loss_errors"]]
    assert of_losses == [(loss, tau, 0.0) for loss in ("soft", "dist") for tau in (1.0, 4.0)]
    samples = training.index.num_samples
    assert facts["cache"]["forwards_spent"] == 4 * samples and facts["cache"]["num_samples"] == samples
    assert [row["gradient_error"] for row in facts["fidelity"]] == [0.0, 0.0], "all logits in float32 lose nothing"
    assert facts["cache"]["bytes"] == pytest.approx(facts["cache"]["bytes_per_view"] * 4 * samples)
