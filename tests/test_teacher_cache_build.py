"""Stage 1: what it writes is what the teacher says, whoever computed it, however often it was interrupted."""

import errno
import itertools
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage import data as photos

from shards.errors import CacheError, ShardError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.locks import NumberedLocks
from shards.signals import StopRequest
from shards.tars.writer import write_samples
from shards.views import rendering
from shards.views.blocks import BlockViews, render_block
from shards.views.mixing import block_mix, block_rows, num_blocks, prepare
from shards.views.view_recipe import recipe_named
from shards.world import World
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.stage1 import build as build_module
from teacher_cache.stage1.build import BEGUN_NAME, build_cache, default_batch_size
from teacher_cache.stage1.calibration import calibration_sample
from teacher_cache.stage1.opening import cache_spec, open_or_create
from teacher_cache.stage1.stage1_events import (
    BatchDone,
    CacheOpened,
    UnitCommitted,
    UnitDamaged,
    UnitSkipped,
    UnitStarted,
)
from teacher_cache.stage1.walk import walk_order
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId, fidelity_count, fidelity_positions
from teacher_cache.store.unit_store import UnitStore
from tests.cache_maker import objects_of
from tests.stage1_tiny import BATCH, CLASSES, build, end_of, make_shards, opened, tiny_teacher, views
from tests.student_tiny import in_children

DENSE = RecordFormat.chosen("dense", CLASSES)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, index: ShardIndex, teacher: Teacher) -> TeacherCache:
    """A cache made in one go by one process without workers."""
    cache = opened(tmp_path_factory.mktemp("reference") / "cache.zarr", index, teacher)
    assert end_of(build(cache, index, teacher)).missing_units == 0
    return cache


def test_the_cache_holds_what_the_teacher_says_to_the_prepared_views(
    tmp_path: Path, index: ShardIndex, teacher: Teacher
) -> None:
    cache = opened(tmp_path / "cache.zarr", index, teacher, record=DENSE)
    build(cache, index, teacher)
    reader, recipe = ShardReader(index), cache.spec.recipe
    for block_of_views, shard in [(0, 0), (1, 2)]:
        unit = cache.read_unit(block_of_views, shard)
        for view in range(recipe.block_views * block_of_views, recipe.block_views * (block_of_views + 1)):
            for block in range(num_blocks(recipe, index.num_rows(shard))):
                batch = render_block(reader, recipe, shard, block, [view])
                parts = [torch.from_numpy(a) for a in (batch.view_BHWC, batch.partner_B, batch.lam_B, batch.box_B4)]
                logit_BC = teacher.logits(prepare(*parts, mean=recipe.mean, std=recipe.std)).numpy()
                at = (view % recipe.block_views, batch.row_B)
                np.testing.assert_allclose(unit["logit"][at], logit_BC, rtol=1e-5, atol=1e-6)
                np.testing.assert_array_equal(unit["pixel_digest"][at], batch.pixel_digest_B)


def test_units_are_the_same_bytes_for_any_number_of_workers_and_processes(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, reference: TeacherCache
) -> None:
    with_workers = opened(tmp_path / "workers.zarr", index, teacher)
    build(with_workers, index, teacher, workers=2)
    np.testing.assert_array_equal(with_workers.ledger(), reference.ledger())
    by_three = tmp_path / "three.zarr"
    for rank in (2, 0, 1):
        cache = opened(by_three, index, teacher)
        share = len(walk_order(range(6), World(rank, 3))) // 3  # type: ignore[arg-type]
        committed: list[UnitCommitted] = []
        stop = lambda done=committed, most=share: len(done) >= most  # noqa: E731
        with ShardReader(index) as reader:
            for event in build_cache(
                cache,
                index,
                teacher,
                reader=reader,
                world=World(rank, 3),
                workers=0,
                batch_size=BATCH,
                should_stop=stop,
            ):
                committed += [event] if isinstance(event, UnitCommitted) else []
    np.testing.assert_array_equal(cache.ledger(), reference.ledger())


def test_a_finished_cache_costs_no_forward(index: ShardIndex, teacher: Teacher, reference: TeacherCache) -> None:
    events = build(reference, index, teacher)
    assert [type(event).__name__ for event in events] == ["Started", "BuildFinished"]
    assert end_of(events).num_forwards == 0


def test_every_forward_has_one_shape_and_rows_come_in_block_order(
    tmp_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, shapes = tiny_teacher(), set()
    answer = teacher.logits
    monkeypatch.setattr(teacher, "logits", lambda image: shapes.add(tuple(image.shape)) or answer(image))
    cache = opened(tmp_path / "cache.zarr", index, teacher, num_views=2)
    events = build(cache, index, teacher)
    assert shapes == {(BATCH, 3, 32, 32)}
    assert sum(e.num_views for e in events if isinstance(e, BatchDone)) == index.num_samples * 2
    padded = sum(-(-int(rows) // BATCH) for rows in index.rows_S) * 2
    assert end_of(events).num_forwards == padded
    assert not np.array_equal(block_rows(cache.spec.recipe, index.names[0], 20, 0), np.arange(20))


def test_a_kill_at_any_forward_would_lose_at_most_two_units(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the store: the unit that is being committed, and the one that is being computed."""
    commit = TeacherCache.commit_unit
    monkeypatch.setattr(TeacherCache, "commit_unit", lambda *a: time.sleep(0.2) or commit(*a))
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    other = TeacherCache.open(tmp_path / "cache.zarr")
    begun: list[UnitId] = []
    said: list[UnitId] = []
    with ShardReader(index) as reader:
        for event in build_cache(cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=BATCH):
            begun += [event.unit] if isinstance(event, UnitStarted) else []
            if isinstance(event, UnitCommitted):
                said.append(event.unit)
                assert other.is_committed(*event.unit)
            if isinstance(event, BatchDone):
                assert [unit for unit in begun if not other.is_committed(*unit)] in (begun[-2:], begun[-1:])
    assert said == begun and len(begun) == 6, "each is said once, in order, before the end"


def test_a_commit_overlaps_the_forwards_of_the_next_unit(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, monkeypatch: pytest.MonkeyPatch, reference: TeacherCache
) -> None:
    """Every commit but the last waits here until the teacher has answered for the next unit."""
    commit, answered = TeacherCache.commit_unit, [threading.Event() for _ in range(6)]

    def late(self: TeacherCache, view_block: int, shard: int, arrays: Any) -> bool:
        following = 3 * view_block + shard + 1
        assert following == 6 or answered[following].wait(60), "the teacher waits for the store"
        return commit(self, view_block, shard, arrays)

    monkeypatch.setattr(TeacherCache, "commit_unit", late)
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    with ShardReader(index) as reader:
        for event in build_cache(cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=BATCH):
            if isinstance(event, BatchDone):
                answered[3 * event.unit.view_block + event.unit.shard].set()
    np.testing.assert_array_equal(cache.ledger(), reference.ledger())


def test_growing_keeps_the_old_units_and_equals_a_cache_made_larger(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, reference: TeacherCache
) -> None:
    small = opened(tmp_path / "cache.zarr", index, teacher, num_views=2)
    first = end_of(build(small, index, teacher))
    grown = opened(tmp_path / "cache.zarr", index, teacher, num_views=4)
    events = build(grown, index, teacher)
    assert {e.unit.view_block for e in events if isinstance(e, UnitStarted)} == {1}
    assert end_of(events).num_forwards == first.num_forwards
    np.testing.assert_array_equal(grown.ledger(), reference.ledger())
    assert opened(tmp_path / "cache.zarr", index, teacher, num_views=2).num_views == 4, "never shrinks"


def test_a_damaged_unit_is_computed_again_and_only_that_one(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, reference: TeacherCache
) -> None:
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    build(cache, index, teacher)
    chunk = sorted((tmp_path / "cache.zarr" / "logit").rglob("c/1/2/*"))[0]
    while chunk.is_dir():
        chunk = sorted(chunk.iterdir())[0]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    events = build(TeacherCache.open(tmp_path / "cache.zarr", writable=True), index, teacher)
    assert [e.unit for e in events if isinstance(e, UnitDamaged)] == [UnitId(1, 2)]
    assert [e.unit for e in events if isinstance(e, UnitStarted)] == [UnitId(1, 2)]
    np.testing.assert_array_equal(TeacherCache.open(tmp_path / "cache.zarr").ledger(), reference.ledger())


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
def test_what_training_refuses_the_same_command_mends(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, damage: str
) -> None:
    """Each kind of object of a finished cache: stage 1 mends it, or says itself that it cannot be."""
    folder = tmp_path / "cache.zarr"
    with opened(folder, index, teacher, num_views=2) as cache:
        build(cache, index, teacher)
    for name in objects_of(folder):
        if "/c/" in name and f"{name.split('/c/')[0]}/c/0/1" not in name and not name.startswith("ledger"):
            continue  # one unit stands for the others
        path, data = folder / name, (folder / name).read_bytes()
        middle = len(data) // 2
        hurt = {
            "cut": data[:middle],
            "empty": b"",
            "flipped": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
        }
        path.unlink() if damage == "gone" else path.write_bytes(hurt[damage])
        try:
            with opened(folder, index, teacher, num_views=2) as cache:
                build(cache, index, teacher)
        except CacheError as error:
            assert name in str(error) and "zarr.json" in name, name
            path.write_bytes(data)
            continue
        assert path.read_bytes() == data, name
        with TeacherCache.open(folder) as cache:
            assert cache.missing() == []
            for unit in itertools.product(range(cache.num_view_blocks), range(cache.num_shards)):
                cache.read_unit(*unit)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_by_shard_key_and_view(
    tmp_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    teacher = tiny_teacher()
    answer = teacher.logits

    def broken(image_BCHW: torch.Tensor) -> torch.Tensor:
        logit_BC = answer(image_BCHW).clone()
        if teacher.num_forwards == 4:  # shard 0: the second batch of the second view
            logit_BC[3, 5] = value
        return logit_BC

    monkeypatch.setattr(teacher, "logits", broken)
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    rows = block_rows(cache.spec.recipe, index.names[0], index.num_rows(0), 1)
    key = index.key(0, int(rows[BATCH + 3]))
    with pytest.raises(CacheError, match=rf"{index.names[0]}: key '{key}', view 1: .*not finite"):
        build(cache, index, teacher)
    assert not cache.ledger().any()


@pytest.mark.parametrize("value", [270_692.0, -1e9])
def test_a_large_logit_that_cannot_be_kept_is_refused_by_shard_key_and_view(
    tmp_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Finite, but beyond the float16 of the logits by which a cache measures itself; a dense record needs none."""
    teacher = tiny_teacher()
    answer = teacher.logits
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    view, row = (int(number) for number in cache.fidelity_positions(0, 0)[0])
    rows = block_rows(cache.spec.recipe, index.names[0], index.num_rows(0), view)

    def large(image_BCHW: torch.Tensor) -> torch.Tensor:
        logit_BC = answer(image_BCHW).clone()
        logit_BC[:, 5] = value
        return logit_BC

    monkeypatch.setattr(teacher, "logits", large)
    assert row in rows
    with pytest.raises(CacheError, match=r"key '.*', view \d+: a logit of the teacher is .* --record dense") as refused:
        build(cache, index, teacher)
    assert len(str(refused.value)) <= 600 and f"{abs(value):,.0f}" in str(refused.value)
    assert not cache.ledger().any()


def test_padding_is_not_mistaken_for_a_bad_row(
    tmp_path: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_teacher()
    answer = teacher.logits

    def nan_for_black(image_BCHW: torch.Tensor) -> torch.Tensor:
        logit_BC = answer(image_BCHW).clone()
        logit_BC[(image_BCHW == 0).flatten(1).all(dim=1)] = np.nan
        return logit_BC

    monkeypatch.setattr(teacher, "logits", nan_for_black)
    assert end_of(build(opened(tmp_path / "c.zarr", index, teacher), index, teacher)).missing_units == 0


@pytest.mark.parametrize("forwards", [0, 1, 7, 13])
@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, index: ShardIndex, reference: TeacherCache, forwards: int
) -> None:
    teacher = tiny_teacher()
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    first = end_of(build(cache, index, teacher, should_stop=lambda: teacher.num_forwards >= forwards))
    assert first.stopped
    assert first.num_forwards == forwards
    assert first.missing_units == len(cache.missing()) > 0
    second = end_of(build(opened(tmp_path / "cache.zarr", index, teacher), index, teacher))
    assert not second.stopped
    np.testing.assert_array_equal(cache.ledger(), reference.ledger())
    whole = reference.num_view_blocks * sum(-(-int(rows) // BATCH) for rows in index.rows_S) * 2
    lost = first.num_forwards + second.num_forwards - whole
    assert lost <= -(-int(index.rows_S.max()) // BATCH) * 2, "at most one unit was computed twice"


def test_sigterm_ends_the_walk_without_a_partial_unit(tmp_path: Path, index: ShardIndex, teacher: Teacher) -> None:
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    before = signal.getsignal(signal.SIGTERM)
    committed = 0
    with StopRequest() as stop, ShardReader(index) as reader:
        for event in build_cache(
            cache,
            index,
            teacher,
            reader=reader,
            world=World(),
            workers=0,
            batch_size=BATCH,
            should_stop=lambda: stop.told,
        ):
            committed += isinstance(event, UnitCommitted)
            if isinstance(event, BatchDone) and committed == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert int((cache.ledger() != 0).sum()) == committed <= 3
    assert getattr(event, "stopped", False)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_another_process_commits_meanwhile_is_neither_rendered_nor_answered(
    tmp_path: Path, index: ShardIndex, reference: TeacherCache, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    rendered: list[BlockViews] = []
    render = rendering.render_blocks
    monkeypatch.setattr(rendering, "render_blocks", lambda *a: rendered.extend(a[2]) or render(*a))
    mine, theirs = tiny_teacher(), tiny_teacher()
    slow = opened(tmp_path / "cache.zarr", index, mine)
    events: list[Any] = []
    with ShardReader(index) as reader:
        for event in build_cache(slow, index, mine, reader=reader, world=World(), workers=workers, batch_size=BATCH):
            events.append(event)
            if isinstance(event, BatchDone) and len(events) == 4:
                del rendered[:]
                build(opened(tmp_path / "cache.zarr", index, theirs), index, theirs)
                del rendered[:]
    assert {(part.shard, part.views[0]) for part in rendered} <= {(0, 0)}
    assert [event.written for event in events if isinstance(event, UnitCommitted)] == [False]
    assert len([event for event in events if isinstance(event, UnitSkipped)]) == 5
    assert mine.num_forwards <= 6, "it ends its unit and starts no other"
    np.testing.assert_array_equal(slow.ledger(), reference.ledger())


class SlowTeacher:
    """A teacher that takes so long that other processes come by meanwhile."""

    def __init__(self, seconds: float) -> None:
        self._teacher, self._seconds = tiny_teacher(), seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def logits(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        time.sleep(self._seconds)
        return self._teacher.logits(image_BCHW)


def _rank(folder: Path, index: ShardIndex, world: World, seconds: float = 0.1) -> int:
    """What one of several processes has computed, in views."""
    teacher = SlowTeacher(seconds)
    with opened(folder, index, teacher, num_views=2, world=world) as cache:  # type: ignore[arg-type]
        return end_of(build(cache, index, teacher, world=world)).views_done  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("missing", "ranks"), [(1, 2), (3, 2), (3, 3), (2, 5)])
def test_processes_that_run_together_compute_every_view_once(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, missing: int, ranks: int
) -> None:
    """The last unit was computed by all of them."""
    alone = opened(tmp_path / "alone.zarr", index, teacher, num_views=2)
    build(alone, index, teacher)
    cache = opened(tmp_path / "cache.zarr", index, teacher, num_views=2)
    views_of_all = 0
    for shard in range(3):
        if shard < missing:
            views_of_all += 2 * int(cache.rows_S[shard])
        else:
            cache.commit_unit(0, shard, alone.read_unit(0, shard))
    worlds = [World(rank, ranks) for rank in range(ranks)]
    done = in_children([partial(_rank, tmp_path / "cache.zarr", index, world) for world in worlds])
    assert sum(done) == views_of_all, done
    np.testing.assert_array_equal(opened(tmp_path / "cache.zarr", index, teacher).ledger()[0], alone.ledger()[0])
    names = [
        {p.relative_to(root) for p in root.rglob("*")} for root in (tmp_path / "cache.zarr", tmp_path / "alone.zarr")
    ]
    assert names[0] == names[1], "nothing is left beside the cache"


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP])
def test_a_unit_of_a_process_that_is_gone_or_hangs_is_computed_by_another(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, monkeypatch: pytest.MonkeyPatch, ending: signal.Signals
) -> None:
    """A killed one has no locks any more; one that hangs is waited for, but not for ever."""
    monkeypatch.setattr(build_module, "PATIENCE_S", 1.0)
    folder = tmp_path / "cache.zarr"
    opened(folder, index, teacher, num_views=2)
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        _rank(folder, index, World(0, 2), seconds=60.0)
        os._exit(0)
    try:
        until = time.monotonic() + 60
        while not (folder / BEGUN_NAME).exists() and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(pid, ending)
        assert _rank(folder, index, World(1, 2), seconds=0.0) == 2 * 44
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert TeacherCache.open(folder).missing() == []


def _held(folder: Path, number: int, seconds: float) -> int:
    """A process that holds the lock of a unit for a while and commits nothing: its number, once it holds it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"1" if NumberedLocks(folder / BEGUN_NAME).take(number) else b"0")
        time.sleep(seconds)
        os._exit(0)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.close(writing)
    return pid


def test_locks_that_a_killed_run_left_in_a_complete_cache_go_with_the_next_run(
    tmp_path: Path, index: ShardIndex, teacher: Teacher
) -> None:
    cache = opened(tmp_path / "cache.zarr", index, teacher, num_views=2)
    build(cache, index, teacher)
    (tmp_path / "cache.zarr" / BEGUN_NAME).touch()  # killed after its last unit, before it took the file away
    build(cache, index, teacher)
    assert not (tmp_path / "cache.zarr" / BEGUN_NAME).exists()


def test_a_process_waits_for_each_of_several_others(tmp_path: Path, index: ShardIndex, teacher: Teacher) -> None:
    """Of two units elsewhere the second was forgotten when the first was left, and the cache stayed incomplete."""
    folder = tmp_path / "cache.zarr"
    cache = opened(folder, index, teacher, num_views=2)
    others = [_held(folder, number, seconds) for number, seconds in ((0, 0.5), (1, 2.0))]
    try:
        assert end_of(build(cache, index, teacher)).missing_units == 0
    finally:
        for pid in others:
            os.waitpid(pid, 0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_units", [0, 1, 2, 6, 23])
def test_each_rank_walks_all_units_and_begins_with_its_own(num_units: int, world_size: int) -> None:
    missing = [UnitId(n // 4, n % 4) for n in range(num_units)]
    orders = [walk_order(missing, World(rank, world_size)) for rank in range(world_size)]
    assert all(sorted(order) == missing for order in orders)
    own = [
        order[: (rank + 1) * num_units // world_size - rank * num_units // world_size]
        for rank, order in enumerate(orders)
    ]
    assert [unit for arc in own for unit in arc] == missing
    if world_size > 1 and num_units:
        last = own[1 % world_size]
        helped = [unit for unit in orders[0] if unit in last]
        assert helped == last[::-1], "helpers come from the far end of an arc"


def test_an_error_of_the_store_names_the_unit_and_a_later_run_completes(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, reference: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    write, count = UnitStore.write_arrays, [0]

    def full(self: UnitStore, unit: UnitId, arrays: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, unit, arrays)

    monkeypatch.setattr(UnitStore, "write_arrays", full)
    with pytest.raises(CacheError, match=r"view block 0: views 0 to 1, shard 2: shard-000002.tar.*No space left"):
        build(cache, index, teacher)
    assert int((cache.ledger() != 0).sum()) == 2
    build(cache, index, teacher)
    np.testing.assert_array_equal(cache.ledger(), reference.ledger())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_named_whoever_renders_it(tmp_path: Path, teacher: Teacher, workers: int) -> None:
    index = make_shards(tmp_path / "shards")
    tar = Path(index.urls[0])
    data = bytearray(tar.read_bytes())
    data[int(index.offset_N[9]) + 40] ^= 1
    tar.write_bytes(data)
    cache = opened(tmp_path / "cache.zarr", index, teacher)
    with pytest.raises(ShardError, match=index.key(0, 9)) as caught:
        build(cache, index, teacher, workers=workers)
    assert "Traceback" not in str(caught.value)
    assert not cache.is_committed(0, 0)


@pytest.mark.parametrize("batch_size", [0, -4, 6])
def test_a_batch_of_parts_of_blocks_is_refused(
    index: ShardIndex, teacher: Teacher, reference: TeacherCache, batch_size: int
) -> None:
    with pytest.raises(ValueError, match=rf"batch_size: expected a multiple of 4, such as .*, got {batch_size}:"):
        build(reference, index, teacher, batch_size=batch_size)


def test_other_weights_shards_or_precision_are_refused_by_name(
    tmp_path: Path, index: ShardIndex, reference: TeacherCache
) -> None:
    other_index = make_shards(tmp_path / "shards", num_samples=43)
    for teacher, shards, field in (
        (tiny_teacher(seed=1), index, "teacher.weights_sha256"),
        (tiny_teacher(precision="bf16"), index, "teacher.precision"),
        (tiny_teacher(), other_index, "made from other shards: these hold 43 samples"),
    ):
        with pytest.raises(CacheError, match=field):
            opened(Path(reference.url.removeprefix("file://")), shards, teacher)
        with pytest.raises(CacheError, match=r"expected|made from other shards"):
            build(reference, shards, teacher)
    with pytest.raises(ValueError, match="answers in 9 classes, the shards have 12"):
        opened(tmp_path / "new.zarr", index, tiny_teacher(num_classes=9))


@pytest.mark.slow
def test_the_default_teacher_caches_photos_at_its_own_size(tmp_path: Path) -> None:
    """The real network, with random weights: nothing else has its size, its grouped convolutions and 1,000 classes."""
    pictures = (photos.astronaut(), photos.coffee(), photos.chelsea(), photos.rocket())
    encoded = [cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes() for picture in pictures]
    samples = [(f"photo{n}", n, "jpg", data) for n, data in enumerate(encoded)]
    index = write_samples(samples, tmp_path / "shards", class_names=[f"class{n}" for n in range(1000)])
    torch.manual_seed(0)
    teacher = load_teacher("regnety_160", precision="bf16", options=TeacherOptions(pretrained=False))
    recipe = recipe_named("deit", block_size=4, block_views=1)
    record = RecordFormat.chosen("dense", 1000)
    cache = opened(tmp_path / "cache.zarr", index, teacher, num_views=1, record=record, recipe=recipe)
    assert end_of(build(cache, index, teacher, batch_size=4)).num_forwards == 1
    unit = cache.read_unit(0, 0)
    assert unit["logit"].shape == (1, 4, 1000)
    assert len(np.unique(unit["logit"][0], axis=0)) == 4
    assert cache.spec.teacher.input_size == 224


def test_of_processes_that_start_together_one_makes_the_cache(tmp_path: Path, index: ShardIndex) -> None:
    record = RecordFormat.chosen("topk", CLASSES, k=3, num_bytes=24)
    events: list[CacheOpened] = []

    def start() -> None:
        teacher = tiny_teacher_of_this_thread[threading.get_ident()]
        with ShardReader(index) as reader:
            *_, last = open_or_create(
                tmp_path / "c.zarr", index, teacher, views(), record, num_views=2, reader=reader, world=World()
            )
        assert isinstance(last, CacheOpened)
        events.append(last)

    tiny_teacher_of_this_thread: dict[int, Teacher] = _Teachers()
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event.created for event in events) == [False, False, True]
    bases = {event.cache.basis.digest for event in events if event.cache.basis is not None}
    assert len(bases) == 1


class _Teachers(dict[int, Teacher]):
    """A teacher per thread, all made before the race."""

    def __init__(self) -> None:
        self._spare = [tiny_teacher() for _ in range(3)]

    def __missing__(self, _: int) -> Teacher:
        return self._spare.pop()


@pytest.mark.parametrize("num_samples", [20, 44, 400])
def test_the_calibration_sample_is_keyed_and_never_measured(tmp_path: Path, num_samples: int) -> None:
    index = make_shards(tmp_path, num_samples=num_samples)
    record = RecordFormat.chosen("lowrank", CLASSES, k=2, num_bytes=24)
    spec = cache_spec(index, tiny_teacher(), views(), record)
    samples = calibration_sample(spec, index, 64)
    again = calibration_sample(spec, index, 64)
    assert [s[:3] for s in samples] == [s[:3] for s in again]
    count = fidelity_count(spec, index.rows_S)
    num_views = 0
    for shard, block, view, place_N in samples:
        measured = {
            tuple(p)
            for p in fidelity_positions(spec, UnitId(0, shard), index.names[shard], index.num_rows(shard), count)
        }
        rows = block_rows(spec.recipe, index.names[shard], index.num_rows(shard), view)[block * 4 : block * 4 + 4]
        assert not {(view, int(row)) for row in rows[place_N]} & measured
        partner_N = block_mix(spec.recipe, index.names[shard], block, len(rows), view).partner_N
        assert not {(view, int(row)) for row in rows[partner_N[place_N]]} & measured, "a mixture shows both photos"
        num_views += len(place_N)
    assert num_views >= min(64, num_samples // 2)
    assert len({s[:3] for s in samples}) == len(samples)


@pytest.mark.parametrize("rows", [1, 17, 100, 256, 257, 300, 1251, 10_000])
@pytest.mark.parametrize("block_size", [1, 4, 16, 24, 48, 64, 100, 300])
def test_the_default_batch_is_of_whole_blocks_and_wastes_little_on_a_gpu(rows: int, block_size: int) -> None:
    """On a CPU it is 64, as ever, where that is a number of blocks."""
    batch = default_batch_size("cuda", rows, block_size)
    assert batch % block_size == 0 and block_size <= batch <= max(256, block_size)
    padded = -(-rows // batch) * batch
    assert padded - rows < block_size * -(-rows // batch) + block_size, "the last batch is nearly full"
    assert default_batch_size("cpu", rows, block_size) == (
        64 if 64 % block_size == 0 else max(1, 64 // block_size) * block_size
    )
    if block_size == 16:
        assert default_batch_size("cuda", 1251, 16) == 256 and default_batch_size("cuda", 100, 16) == 112


@pytest.mark.slow
def test_a_cache_goes_on_with_another_batch(tmp_path: Path, index: ShardIndex, teacher: Teacher) -> None:
    """The batch is in no fingerprint: a default that changes refuses no cache that exists."""
    with opened(tmp_path / "c", index, teacher, num_views=2) as cache:
        events = build(cache, index, teacher, batch_size=BATCH)
        header = (tmp_path / "c" / "zarr.json").read_bytes()
    assert end_of(events).num_forwards > 0
    with opened(tmp_path / "c", index, teacher, num_views=4) as cache:
        ended = end_of(build(cache, index, teacher, batch_size=2 * BATCH))
    assert ended.num_forwards > 0 and ended.missing_units == 0
    assert b"batch" not in header
