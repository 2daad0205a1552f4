"""Verify finds what is wrong and nothing else; status says what is there. On a cache that stage 1 really made."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.errors import CacheError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.views.mixing import num_blocks
from teacher_cache.inspect.status import cache_status, fidelity_sample, save_picture, status_lines
from teacher_cache.inspect.verify import TOLERANCE, count_blocks, verify_blocks, verify_digests
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.layout import FIDELITY_AT
from teacher_cache.store.ledger import entry_key
from tests.cache_maker import fill, make_index, make_spec
from tests.stage1_tiny import CLASSES, build, make_shards, opened, tiny_teacher


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


@pytest.fixture
def reader(index: ShardIndex) -> Iterator[ShardReader]:
    with ShardReader(index) as reader:
        yield reader


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, index: ShardIndex, teacher: Teacher) -> TeacherCache:
    cache = opened(tmp_path_factory.mktemp("full") / "c", index, teacher)
    build(cache, index, teacher)
    cache.units.ledger.save()
    return cache


def _tampered(folder: Path, source: TeacherCache, index: ShardIndex, teacher: Teacher, unit: UnitId) -> TeacherCache:
    """The same cache with one wrong pixel digest, ledger and checksums intact: what other libraries would have made."""
    cache = opened(folder, index, teacher)
    for at in map(UnitId._make, itertools.product(range(cache.num_view_blocks), range(cache.num_shards))):
        arrays = source.read_unit(*at)
        del arrays[FIDELITY_AT]
        if at == unit:
            arrays["pixel_digest"] = arrays["pixel_digest"] ^ 1
        cache.commit_unit(*at, arrays)
    return cache


def test_a_sound_cache_has_no_problems(
    full: TeacherCache, index: ShardIndex, teacher: Teacher, reader: ShardReader
) -> None:
    digests = list(verify_digests(full))
    assert {f.unit for f in digests} == set(itertools.product(range(2), range(3)))
    assert sum(f.num_views for f in digests) == 4 * index.num_samples
    pixels = list(verify_blocks(full, reader, num_blocks_to_check=6, seed=0))
    answers = list(verify_blocks(full, reader, num_blocks_to_check=6, seed=0, teacher=teacher))
    assert len(pixels) == len(answers) == 6
    every = list(verify_blocks(full, reader, num_blocks_to_check=1000, seed=0))
    assert len(every) == count_blocks(full), "what the bar counts to"
    assert not [f.problem for f in digests + pixels + answers if f.problem]
    assert max(f.distance for f in answers) <= TOLERANCE["fp32"]


def test_other_pixels_are_found_naming_key_view_and_digests(
    tmp_path: Path, full: TeacherCache, index: ShardIndex, teacher: Teacher, reader: ShardReader
) -> None:
    cache = _tampered(tmp_path / "c", full, index, teacher, UnitId(1, 0))
    assert not [f for f in verify_digests(cache) if f.problem]  # the records are as they were written
    findings = list(verify_blocks(cache, reader, num_blocks_to_check=30, seed=1))
    assert {bool(f.problem) for f in findings if f.unit == (1, 0)} == {True}
    assert {bool(f.problem) for f in findings if f.unit != (1, 0)} == {False}
    problem = next(f.problem for f in findings if f.problem)
    assert "view block 1" in problem and "key 'photo0" in problem and "expected pixels with digest" in problem


def test_another_network_is_found_by_its_answers(
    full: TeacherCache, index: ShardIndex, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were replaced without their digest: only asking the teacher again can tell."""
    impostor = tiny_teacher(seed=3)
    with pytest.raises(CacheError, match="expected the teacher"):
        next(verify_blocks(full, reader, num_blocks_to_check=1, seed=0, teacher=impostor))
    monkeypatch.setattr(impostor, "spec", full.spec.teacher)
    findings = list(verify_blocks(full, reader, num_blocks_to_check=3, seed=0, teacher=impostor))
    assert all("the teacher's answer is" in f.problem and f.distance > TOLERANCE["fp32"] for f in findings)


def test_hard_labels_are_compared_as_labels(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = opened(tmp_path / "c", index, teacher, record=RecordFormat.chosen("hard", CLASSES))
    build(cache, index, teacher)
    assert not [f for f in verify_blocks(cache, reader, num_blocks_to_check=4, seed=0, teacher=teacher) if f.problem]
    impostor = tiny_teacher(seed=3)
    monkeypatch.setattr(impostor, "spec", cache.spec.teacher)
    findings = list(verify_blocks(cache, reader, num_blocks_to_check=4, seed=0, teacher=impostor))
    assert any(f.problem for f in findings)


def test_a_sample_of_blocks_has_none_of_them_twice(full: TeacherCache, index: ShardIndex, reader: ShardReader) -> None:
    """Asking for more blocks than there are asks for each of them once."""
    total = sum(num_blocks(full.spec.recipe, int(rows)) for rows in full.rows_S) * full.num_view_blocks
    for count in (1, total - 1, total, 10 * total):
        found = list(verify_blocks(full, reader, num_blocks_to_check=count, seed=1))
        assert len(found) == min(count, total)
    views = sum(finding.num_views for finding in found)
    assert views == int(full.rows_S.sum()) * full.num_views, "every view of every sample, once"


def test_other_shards_are_refused(tmp_path: Path, full: TeacherCache) -> None:
    other = make_shards(tmp_path / "other", num_samples=20)
    with ShardReader(other) as other_reader, pytest.raises(CacheError, match="made from other shards: these hold 20"):
        next(verify_blocks(full, other_reader, num_blocks_to_check=1, seed=0))


def test_an_empty_cache_cannot_be_compared(
    tmp_path: Path, index: ShardIndex, teacher: Teacher, reader: ShardReader
) -> None:
    cache = opened(tmp_path / "c", index, teacher)
    assert list(verify_digests(cache)) == []
    with pytest.raises(CacheError, match="nothing is committed yet"):
        next(verify_blocks(cache, reader, num_blocks_to_check=1, seed=0))


# Status


def test_status_counts_what_is_there(tmp_path: Path) -> None:
    """Samples are counted as they are, whatever the padding; views only where every sample has them."""
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5, 2), num_views=9) as cache:
        fill(cache)
        cache.invalidate(1, 1)
        cache.invalidate(2, 0)
        status = cache_status(cache)
    assert status.num_views_done == 3 * (3 * 14 - 5 - 7) and status.num_views_missing == 3 * (5 + 7)
    assert status.num_whole_views == 3
    lines = "\n".join(status_lines(status))
    assert "9 views × 14 samples in 9 chunks" in lines and "done: 7 chunks (77.8 %)" in lines
    assert "missing: 2 chunks, 36 views, the first is view block 1, shard 1" in lines
    assert lines.count("█") == 7 and lines.count("·") == 2
    assert [line.split()[0] for line in lines.splitlines() if set(line) & set("█·")] == ["0", "3", "6"], "first views"


def test_bytes_per_view_are_those_of_the_files(tmp_path: Path) -> None:
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=6) as cache:
        assert cache_status(cache).bytes_per_view == {}
        fill(cache)
        status = cache_status(cache)
    for name, size in status.bytes_per_view.items():
        total = sum(p.stat().st_size for p in (tmp_path / "c" / name / "c").rglob("*") if p.is_file())
        assert size == pytest.approx(total / (6 * 12)), name


def test_speed_and_time_left_come_from_the_last_commits(tmp_path: Path) -> None:
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(*[4] * 10), num_views=3) as cache:
        fill(cache)
        for shard in range(10):
            os.utime(tmp_path / "c" / entry_key(UnitId(0, shard)), (1000.0 + 2 * shard,) * 2)
        cache.invalidate(0, 8)
        cache.invalidate(0, 9)
        status = cache_status(cache)
    assert status.views_per_s == pytest.approx(12 / 2.0)
    assert status.seconds_left == pytest.approx(24 / 6.0)
    lines = "\n".join(status_lines(status))
    assert "speed: 6.0 views/s over the last chunks, pauses" in lines and "; 4.0 s left" in lines


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (90, 5), (50, 1024)])
def test_the_picture_fits_and_never_hides_a_hole(tmp_path: Path, shape: tuple[int, int]) -> None:
    """However many units share a cell, one that is missing is seen."""
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(1), num_views=3) as cache:
        status = cache_status(cache)
    done_BS = np.ones(shape, bool)

    def picture(done_BS: NDArray[np.bool_]) -> str:
        lines = status_lines(replace(status, done_BS=done_BS, rows_S=np.ones(shape[1], np.int64)))
        rows = [line for line in lines if set(line) & set("·░▒▓█")]
        assert len(rows) <= 16 and max(map(len, rows)) <= 70
        return "".join(rows)

    assert set(picture(done_BS)) & set("·░▒▓█") == {"█"}
    assert set(picture(~done_BS)) & set("·░▒▓█") == {"·"}
    done_BS[shape[0] // 2, shape[1] // 3] = False
    assert set(picture(done_BS)) & set("·░▒▓")
    assert set(picture(~done_BS)) & set("░▒▓█")


def test_the_picture_is_a_png(tmp_path: Path, full: TeacherCache) -> None:
    save_picture(cache_status(full), tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_fidelity_sample_pairs_records_with_the_logits_they_stand_for(full: TeacherCache) -> None:
    pairs = list(fidelity_sample(full, max_units=100))
    assert len(pairs) == 6
    for record, logit_FC in pairs:
        assert record["logit"].shape == logit_FC.shape
        np.testing.assert_array_equal(record["class_index"][:, 0], logit_FC.argmax(axis=1))


def test_exact_records_keep_no_fidelity_sample(tmp_path: Path) -> None:
    with TeacherCache.create(tmp_path / "c", make_spec("hard"), make_index(4), num_views=3) as cache:
        fill(cache)
        assert list(fidelity_sample(cache, max_units=5)) == []
