"""What a small set costs beside its records is bounded and said; large sets are as they were."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from shards.errors import CacheError
from shards.index.reader import ShardReader
from shards.signals import StopRequest
from shards.world import World, world_from_env
from teacher_cache.commands.stage1_display import Stage1Display
from teacher_cache.commands.view_flags import served
from teacher_cache.record.record_format import FIDELITY_FLOOR, RecordFormat
from teacher_cache.stage1.agreement import Renumbered
from teacher_cache.stage1.opening import open_or_create
from teacher_cache.stage1.stage1_events import (
    BatchDone,
    BuildFinished,
    CacheOpened,
    ShortCalibration,
    SnapshotDamaged,
    Started,
    UnitCommitted,
    UnitDamaged,
    UnitsElsewhere,
    UnitStarted,
)
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId, fidelity_bytes, fidelity_count
from tests.cache_maker import make_spec
from tests.stage1_tiny import build, end_of, make_shards, opened, tiny_teacher, views

SHARDS, VIEWS = 4, 6


@pytest.mark.parametrize("num_classes", [8, 64, 100, 1000])
@pytest.mark.parametrize("num_samples", [40, 200, 1_000, 5_000, 100_000])
def test_full_logits_cost_at_most_a_quarter_of_the_budget(num_samples: int, num_classes: int) -> None:
    """64 bytes asked must not become 140: one view a unit is the least, and that is said when the cache is made."""
    record = RecordFormat.chosen("auto", num_classes).fitted_to(num_samples * VIEWS, SHARDS)
    spec = make_spec(num_classes=num_classes, views_per_unit=VIEWS, record=record)
    rows_S = np.full(SHARDS, num_samples // SHARDS)
    one_each = 2 * num_classes * SHARDS / (num_samples * VIEWS)
    assert 0 < fidelity_bytes(spec, rows_S) <= max(record.num_bytes / 4, one_each)


@pytest.mark.parametrize("kind", ["hard", "lowrank", "dense"])
def test_large_sets_and_exact_records_are_as_they_were(kind: str) -> None:
    """Another value would be another fingerprint, and every cache of ImageNet another cache."""
    record = RecordFormat.chosen(kind, 1000)
    assert record.fitted_to(1_281_167 * VIEWS, 1024) == record
    assert "fidelity_floor" not in record.to_json()


def test_the_floor_is_part_of_the_format() -> None:
    """It decides which views keep their logits, so a reader must know it."""
    record = replace(RecordFormat.chosen("lowrank", 1000), fidelity_floor=8)
    assert RecordFormat.from_json(record.to_json()) == record != replace(record, fidelity_floor=FIDELITY_FLOOR)
    spec = make_spec(num_classes=1000, views_per_unit=VIEWS, record=record)
    assert fidelity_count(spec, np.array([50, 50])) == 4
    with pytest.raises(ValueError, match="fidelity_floor"):
        replace(record, fidelity_floor=0)


def test_a_fit_on_few_views_says_what_it_costs(tmp_path: Path) -> None:
    """At the moment of making it, where it can still be made otherwise."""
    index = make_shards(tmp_path / "shards", num_samples=120, per_shard=60, num_classes=80)
    teacher = tiny_teacher(num_classes=80)
    record = RecordFormat.chosen("topk", 80, k=3, num_bytes=24)
    with ShardReader(index) as reader:
        events = list(
            open_or_create(
                tmp_path / "c.zarr", index, teacher, views(), record, num_views=2, reader=reader, world=World()
            )
        )
    (short,) = [event for event in events if isinstance(event, ShortCalibration)]
    assert short.num_views < short.wanted and 0 < short.num_measured < short.num_views
    assert all(0 < error.gradient_error < 2 for error in short.errors)
    assert isinstance(events[-1], CacheOpened)
    events[-1].cache.close()


@pytest.mark.parametrize(
    ("num_views", "per_unit", "words"),
    [
        (
            300,
            6,
            "new ones for 300 epochs, then the same again; a training batch can hold 3 views of each of its images",
        ),
        (
            10,
            10,
            "not 3 as in DeiT: 10 views in chunks of 10 cannot be divided by 3; --views 12 can",
        ),
        (7, 7, "can hold 1 view of each of its images, not 3 as in DeiT"),
    ],
)
def test_a_cache_says_which_epochs_and_repeats_it_serves(num_views: int, per_unit: int, words: str) -> None:
    """Before it is made (`plan-cache`) and where it is opened (`cache-teacher`)."""
    assert words in served(num_views, per_unit)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_stage_1_says_what_is_saved_and_what_is_lost(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four chunks one is committed, the second is half computed; every rank says so."""
    first, second = UnitId(0, 0), UnitId(1, 0)
    display = Stage1Display(World(rank, 2), StopRequest())
    display._num_classes = 5  # as `CacheOpened` says
    for event in (
        Started(num_units=4, missing_units=4, share_views=512),
        UnitStarted(unit=first),
        BatchDone(unit=first, num_views=64, views_done=64),
        UnitCommitted(unit=first, written=True, num_views=64, seconds=1.0, label_agreement=0.5),
        UnitStarted(unit=second),
        BatchDone(unit=second, num_views=64, views_done=128),
    ):
        display.show(event)
    end = {"num_forwards": 2, "views_done": 128, "seconds": 1.0, "label_agreement": 0.5, "labels_disagree": False}
    with pytest.raises(click.exceptions.Exit):
        display.show(BuildFinished(stopped=True, missing_units=3, **end))
    said = capsys.readouterr().err
    assert f"rank {rank} of 2: stopped: " in said
    assert "saved 1 of 4 chunks of the cache; 64 views of an unfinished chunk are lost" in said


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 2), (3, 4)])
def test_every_line_of_one_of_several_ranks_says_whose_it_is(
    rank: int, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks that share an output ended in lines of the same form, each with figures of its own."""
    end = {"num_forwards": 2, "views_done": 128, "seconds": 1.0, "label_agreement": 0.5, "missing_units": 3}
    for event in (
        SnapshotDamaged(reason="c.zarr/ledger: damaged"),
        UnitDamaged(unit=UnitId(0, 0), reason="c.zarr: chunk 0 is damaged"),
        UnitsElsewhere(num_units=2),
        BuildFinished(stopped=False, labels_disagree=True, **end),
        BuildFinished(stopped=False, labels_disagree=False, renumbered=(Renumbered(1, 2, 0.9),), **end),
        BuildFinished(stopped=True, labels_disagree=False, **end),
    ):
        display = Stage1Display(World(rank, size), StopRequest())
        display._num_classes = 5  # as `CacheOpened` says
        with suppress(click.exceptions.Exit):
            display.show(event)
        said = capsys.readouterr()
        lines = (said.out + said.err).splitlines()
        assert lines and {line.startswith(f"rank {rank} of {size}: ") for line in lines} == {size > 1}, lines


@pytest.mark.parametrize("own_log", [False, True])
def test_a_task_of_an_array_speaks_in_its_own_log(
    own_log: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All tasks but the first wrote nothing for hours; ranks of torchrun share one output, where one is enough."""
    place = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"} if own_log else {"RANK": "1", "WORLD_SIZE": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    display, unit = Stage1Display(world_from_env(shared=True), StopRequest()), UnitId(0, 0)
    display._opening = ["found /data/deit.zarr: 2 views of each of 64 images"]
    for event in (
        Started(num_units=2, missing_units=1, share_views=64),
        UnitStarted(unit=unit),
        BatchDone(unit=unit, views_done=64, num_views=64),
    ):
        display.show(event)
    first, *last = capsys.readouterr().err.splitlines() or [""]
    assert first == "found /data/deit.zarr: 2 views of each of 64 images" * own_log
    assert "cache-teacher (rank 1 of 2): 64/64 views" in last[-1] if own_log else not last


def test_a_finished_cache_is_finished_though_its_store_fails_while_its_size_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is committed; a store that goes away for the last line ended the command with 1."""
    index, teacher = make_shards(tmp_path / "shards"), tiny_teacher()
    display = Stage1Display(World(), StopRequest())
    with opened(tmp_path / "c.zarr", index, teacher) as cache:
        display.show(CacheOpened(cache=cache, created=True, grown=False))
        finished = end_of(build(cache, index, teacher))

        def gone(*_: object) -> dict[str, int]:
            raise CacheError("s3://b/c.zarr/logit/c/0/0/0: no answer within 60 s")

        monkeypatch.setattr(TeacherCache, "unit_bytes", gone)
        display.show(finished)
    said = capsys.readouterr()
    assert "0 chunks missing" in said.out and "size cannot be read now: s3://b/c.zarr" in said.err


def test_every_rank_says_which_classes_the_teacher_numbers_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks other than the first did not know the classes of shards without names: IndexError instead of a warning."""
    index, teacher = make_shards(tmp_path / "shards"), tiny_teacher()
    assert not index.class_names
    end = {"num_forwards": 2, "views_done": 128, "seconds": 1.0, "label_agreement": 0.5, "labels_disagree": False}
    renumbered = (Renumbered(label=1, answered_as=2, share=0.9),)
    display = Stage1Display(World(1, 2), StopRequest(), index)
    with opened(tmp_path / "c.zarr", index, teacher) as cache:
        display.show(CacheOpened(cache=cache, created=False, grown=False))
        display.show(BuildFinished(stopped=False, missing_units=0, renumbered=renumbered, **end))
    assert "1 of 12 classes otherwise, its commonest answers: class 1 as class 2 (90 %)" in capsys.readouterr().err


@pytest.mark.parametrize("known", [False, True])
def test_a_teacher_of_these_classes_that_is_seldom_right_is_not_asked_for_their_order(
    known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """train-teacher's own weights, after one epoch, were asked whether they know the classes."""
    index, teacher = make_shards(tmp_path / "shards"), tiny_teacher()
    display = Stage1Display(World(), StopRequest(), index)
    with opened(tmp_path / "c.zarr", index, teacher) as cache:
        names = tuple(map(str, range(cache.spec.record.num_classes))) if known else ()
        cache.header = replace(cache.header, class_names=names)
        display.show(CacheOpened(cache=cache, created=True, grown=False))
        unit = UnitId(0, 0)
        display.show(UnitStarted(unit=unit))
        display.show(UnitCommitted(unit=unit, written=True, num_views=64, seconds=1.0, label_agreement=0.01))
        end = {"num_forwards": 2, "views_done": 128, "seconds": 1.0, "label_agreement": 0.01, "missing_units": 0}
        display.show(BuildFinished(stopped=False, labels_disagree=True, **end))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and all("only 1.0 % of the views" in line for line in warnings)
    assert all(("learned too little" in line) == known != ("in this order" in line) for line in warnings)
