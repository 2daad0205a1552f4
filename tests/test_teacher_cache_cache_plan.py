"""plan-cache predicts what stage 1 then does: bytes to a few per cent, errors from views the fit has not seen."""

from pathlib import Path

import numpy as np
import pytest

from shards.index.reader import ShardReader
from teacher_cache.commands.plan_cache import _bound_words
from teacher_cache.inspect.cache_plan import Plan, plan_cache
from teacher_cache.inspect.status import cache_status
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import record_fidelity
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.stage1.opening import cache_spec
from tests.stage1_tiny import BATCH, build, make_shards, opened, tiny_teacher, views

CLASSES = 40


@pytest.mark.parametrize("kind", ["hard", "dense8", "dense"])
def test_predicted_bytes_and_units_are_what_the_cache_then_takes(tmp_path: Path, kind: str) -> None:
    index = make_shards(tmp_path / "shards", num_samples=400, per_shard=200, num_classes=CLASSES)
    teacher, record = tiny_teacher(num_classes=CLASSES), RecordFormat.chosen(kind, CLASSES)
    options = {"num_views": 2, "workers": 0, "batch_size": BATCH, "calibration_views": 400, "seconds": 0.3}
    with ShardReader(index) as reader:
        *_, plan = plan_cache(cache_spec(index, teacher, views(), record), teacher, reader, **options)  # type: ignore[arg-type]
    assert isinstance(plan, Plan)
    cache = opened(tmp_path / "cache.zarr", index, teacher, num_views=2, record=record)
    build(cache, index, teacher)
    took = cache_status(cache)
    assert plan.bytes_per_view == pytest.approx(took.total_bytes_per_view, rel=0.1)
    assert plan.total_bytes == pytest.approx(took.total_bytes_per_view * took.num_views_done, rel=0.1)
    assert (plan.num_units, plan.num_views) == (2, 800)
    assert plan.hours == pytest.approx(800 / plan.views_per_s / 3600)
    assert bool(plan.errors) == (kind == "dense8")
    assert plan.read_bytes_per_s == pytest.approx(plan.views_per_s * index.size_N.mean() / 2)
    assert plan.write_bytes_per_s == pytest.approx(plan.views_per_s * plan.bytes_per_view)
    assert plan.disk_bytes_per_s is not None and plan.disk_bytes_per_s > 0


def test_errors_are_those_of_the_definition_and_fall_with_bytes() -> None:
    rng = np.random.default_rng(3)
    logit_NC = (rng.normal(size=(600, 8)) @ rng.normal(size=(8, CLASSES))).astype(np.float32)
    by_bytes = {}
    for num_bytes in (24, 40):
        record = RecordFormat.chosen("lowrank", CLASSES, k=3, num_bytes=num_bytes)
        codec = RecordCodec(record, fit_basis(logit_NC[:400], record))
        by_bytes[num_bytes] = record_fidelity(codec, codec.encode(logit_NC[400:]), logit_NC[400:])
    for small, large in zip(by_bytes[24], by_bytes[40], strict=True):
        assert large.kl < small.kl
        assert large.gradient_error < small.gradient_error < 1.0
    dense = RecordCodec(RecordFormat.chosen("dense", CLASSES))
    exact = record_fidelity(dense, dense.encode(logit_NC), logit_NC)
    assert all(error.gradient_error < 1e-6 and abs(error.kl) < 1e-6 for error in exact)


@pytest.mark.parametrize(("views_per_s", "said"), [(99.0, "the teacher: alone"), (60.0, "the CPUs, which render")])
def test_the_part_that_sets_the_pace_is_named_with_what_to_change(views_per_s: float, said: str) -> None:
    plan = Plan(
        num_views=1, num_units=1, bytes_per_view=64.0, fidelity_bytes=0, views_per_s=views_per_s, hours=1.0,
        read_bytes_per_s=1.0, write_bytes_per_s=1.0, disk_bytes_per_s=None, errors=(), num_measured=0, num_timed=1,
        forwards_per_s=100.0, num_files=1, num_packed_files=1,
    )  # fmt: skip
    words = _bound_words(plan)
    assert words.startswith(said) and "100.0 views/s" in words and ("--compile" in words or "--workers" in words)
