"""What a terminal shows: shares in percent, no figure without a meaning, lines that fit, the time left of a sweep."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

from shards.commands.shard_place import ShardPlace
from shards.console import RUNS_NEXT_ITSELF
from shards.views.view_recipe import ViewRecipe
from student.commands.training_display import SweepDisplay, TrainingDisplay, more_views, views_to_keep
from student.feed.coverage import Coverage
from student.feed.order import Order
from student.report.text import sweep_lines
from student.run.run_events import EpochEnded, Progressed, Scheduled, StartedFrom, Stepped, Stopped, StudentFinished
from student.sweep.sweep_loop import CellProgress, CellsStarted, Tally
from tests.test_student_report import GRID, write_sweep

METRICS = {
    "loss": 1.25, "base_loss": 1.5, "distill_loss": 0.5, "teacher_agreement": 0.871, "images_per_s": 512.3,
    "data_wait_share": 0.031,
}  # fmt: skip
VALIDATION = {"top1": 76.9, "cls_top1": 75.1, "dist_top1": 76.25}
BEGIN = Scheduled(
    students=("soft-l0.9-t4-s0",),
    epochs=300,
    steps_per_epoch=2,
    batch_size=8,
    images_per_epoch=16,
    num_left_out=0,
    coverage=Coverage(16, 0, (), (300, 300), ""),
    views=(),
)


def shown(capsys: Any, *events: Any, quiet: bool = False) -> str:
    """What the display writes, to both streams."""
    display = TrainingDisplay(quiet=quiet)
    for event in (BEGIN, *events):
        display.show(event)
    display.close()
    captured = capsys.readouterr()
    return str(captured.err + captured.out)


def ended(metrics: dict[str, float], validation: dict[str, float]) -> EpochEnded:
    return EpochEnded(student="soft-l0.9-t4-s0", step=2, epoch=0, metrics=metrics, validation=validation)


def test_an_epoch_is_one_short_line_with_shares_in_percent(capsys: Any) -> None:
    line = next(line for line in shown(capsys, ended(METRICS, VALIDATION)).splitlines() if "epoch 1/300" in line)
    assert "agreement 87 %" in line and "top-1 76.9 %" in line and "CLS 75.1 %" in line
    assert len(line) <= 120


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("rows", [[3], [10], [16], [20], [31, 31], [48, 48, 48], [121]])
def test_the_images_of_an_epoch_are_counted(rows: list[int], repeats: int, capsys: Any) -> None:
    """The images that the first epoch is said to use are those of its blocks; views of each are exact or "up to"."""
    size = min(16, 2 ** (rows[0].bit_length() - 1))
    recipe = ViewRecipe(block_size=size, block_views=6)
    order = Order(rows_S=np.array(rows, np.int64), recipe=recipe, num_views=6, batch_size=size, repeats=repeats)
    plan = order.plan(0)
    places = Counter(zip(plan.shard_I.tolist(), plan.block_I.tolist(), strict=True))
    begin = replace(
        BEGIN,
        steps_per_epoch=plan.steps,
        batch_size=size,
        images_per_epoch=order.images_per_epoch,
        num_left_out=plan.num_left_out,
        coverage=BEGIN.coverage._replace(num_samples=sum(rows)),
        repeats=repeats,
    )
    said = [line for line in shown(capsys, begin).splitlines() if line.startswith("each epoch:")][-1]
    said = said.replace(f"all {sum(rows)} ", f"{sum(rows)} of the {sum(rows)} ")
    about, up_to = ("", "") if set(places.values()) == {repeats} else ("about ", "up to ")
    assert f"{about}{size * len(places)} of the {sum(rows)} training images" in said
    assert repeats == 1 or f"{up_to}{repeats} views of each of" in said
    assert "1 do not" not in said and max(places.values()) <= repeats


@pytest.mark.parametrize(("step", "steps_per_s"), [(600, 2.0), (599, 2.0), (590, 20.0), (10, 2.0)])
def test_a_time_left_is_told_while_there_is_one(step: int, steps_per_s: float, capsys: Any) -> None:
    """A run of two steps said "about under 1 s left for 0 steps"."""
    begun = Progressed(
        students=BEGIN.students, step=1, num_steps=600, loss=1.0, steps_per_s=0.0, images_per_s=8.0, wait_share=0.1
    )
    said = shown(capsys, begun, replace(begun, step=step, steps_per_s=steps_per_s))
    assert ("about 4 min 55 s left for 590 steps" in said) == ("left for" in said) == (step == 10)


def test_without_distillation_its_loss_is_not_shown(capsys: Any) -> None:
    said = shown(capsys, ended({"base_loss": 1.5, "distill_loss": 0.0}, {}))
    assert "label loss 1.50" in said and "teacher" not in said and "agreement" not in said


def test_without_labels_their_loss_is_not_shown(capsys: Any) -> None:
    """ "label loss 0.00" of images that have none looked perfect."""
    said = shown(capsys, ended({"base_loss": 0.0, "distill_loss": 0.04}, {}))
    assert "teacher loss 0.04" in said and "label loss" not in said


def test_the_end_names_the_student_and_what_was_compared(capsys: Any) -> None:
    summary = {**VALIDATION, "pixels_checked": 24_000, "pixels_mismatched": 0}
    said = shown(capsys, StudentFinished(student="a", out=Path("runs/a"), summary=summary))
    assert "runs/a: done, top-1 76.9 %, CLS head 75.1 %, DIST head 76.2 %, the pixels of all 24,000 views are" in said
    alone = shown(capsys, StudentFinished(student="a", out=Path("runs/a"), summary={**VALIDATION, "pixels_checked": 0}))
    assert "pixels" not in alone, "nobody compared"


def test_a_start_from_weights_says_what_is_not_as_in_the_file(capsys: Any) -> None:
    changes = "pos_embed is resized from (1, 197, 192) to (1, 5, 192); head.weight begin at zero"
    said = shown(capsys, StartedFrom(student="a", weights="w.pth", changes=changes))
    assert f"a starts from w.pth: {changes}; all others are as in the file" in said


def test_other_ranks_are_silent(capsys: Any) -> None:
    assert shown(capsys, ended(METRICS, VALIDATION), quiet=True) == ""


@pytest.mark.parametrize(
    ("together", "processes", "running", "left"),
    [(1, 1, 1, "16 min 00 s"), (4, 1, 4, "4 min 20 s"), (4, 2, 4, "2 min 40 s")],
)
def test_the_time_left_counts_the_passes_to_come(
    monkeypatch: pytest.MonkeyPatch, together: int, processes: int, running: int, left: str
) -> None:
    """Of 12 cells 2 are done; this pass takes 100 s, 60 of them to come; the others wait for passes like it."""
    clock = iter([0.0, 40.0])
    monkeypatch.setattr("student.commands.training_display.time.monotonic", lambda: next(clock))
    display = SweepDisplay(Path("s"), together=together, processes=processes, quiet=True)
    names = tuple(str(n) for n in range(running))
    display.show(CellsStarted(names=names, tally=Tally(num_done=2, num_failed=0, num_total=12)))
    step = Stepped(student="0", step=1, epoch=0, num_steps=9, eta_s=60.0, metrics={})
    display.show(CellProgress(names, step))
    assert display.left() == f"whole grid {left} left"


def test_the_table_of_a_sweep_has_a_line_for_every_setting_best_first(tmp_path: Path) -> None:
    lines = sweep_lines(write_sweep(tmp_path / "s"))
    assert len(lines) == 1 + len({cell.setting for cell in GRID.cells()})
    assert lines[1].startswith("soft λ 0.9 τ ") and "★" in lines[1]
    base = next(line for line in lines if line.startswith("no teacher"))
    assert base.split()[-3:] == ["–", "90.0", "3/3"]
    assert len({len(line) for line in lines}) == 1, "columns stand under each other"
    unfinished = sweep_lines(write_sweep(tmp_path / "t", left_out=tuple(cell.name for cell in GRID.cells())))
    assert all("0/3" in line and "nan" not in line for line in unfinished[1:])


@pytest.mark.parametrize("runs_next_itself", [False, True])
def test_a_signal_after_the_last_step_ends_a_chain_of_commands_alone(runs_next_itself: bool) -> None:
    """`distill` would go on to its next command otherwise; a training by itself is done, and says so."""
    context = click.Context(click.Command("distill"))
    context.meta[RUNS_NEXT_ITSELF] = runs_next_itself
    stopped = Stopped(students=(), step=4, exit_code=130)
    with context:
        if not runs_next_itself:
            TrainingDisplay(quiet=False).show(stopped)
            return
        with pytest.raises(click.exceptions.Exit) as ended:
            TrainingDisplay(quiet=False).show(stopped)
    assert ended.value.exit_code == 130


@pytest.mark.parametrize(
    ("before", "held", "kept", "said"),
    [
        (None, 12, None, False),  # a new run
        (6, 12, 6, True),
        (6, 6, 6, False),  # one of two caches may hold more
        (6, None, 6, False),  # without a cache
        (12, 6, None, False),  # another cache: that is said where the run is compared
    ],
)
def test_a_run_keeps_its_views_whatever_its_caches_hold(
    before: int | None, held: int | None, kept: int | None, said: bool, tmp_path: Path, capsys: Any
) -> None:
    """With two caches of which one had grown, and without a cache, it was refused."""
    assert views_to_keep(tmp_path, before, held) == kept
    assert ("keeps them" in "".join(capsys.readouterr())) == said


def test_a_cache_that_holds_more_than_a_run_uses_is_not_to_be_extended(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command for twice the views of the run would have made fewer than there are."""
    monkeypatch.setattr("teacher_cache.commands.extending.extending", lambda url, *_: ["cache-teacher", url])
    caches: Any = [SimpleNamespace(url=url, header=None, num_views=views) for url, views in (("a", 6), ("b", 12))]
    place = ShardPlace(shards="shards", shard_cache=None, shard_cache_limit=None)
    for num_views, urls in ((12, ["a"]), (24, ["a", "b"]), (6, [])):
        display = TrainingDisplay(quiet=False, more_views=more_views(caches, place))
        display.show(replace(BEGIN, coverage=Coverage(16, 4, (("cat", 4, 8),), None, "more views", num_views)))
        display.close()
        lines = [line.strip() for line in "".join(capsys.readouterr()).splitlines()]
        assert [line.split()[-1] for line in lines if "cache-teacher" in line] == urls
        assert lines.count("and then the training with another --out") == bool(urls)
