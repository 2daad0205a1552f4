"""Cost before anything is spent: the arithmetic of the prediction, its bounds, and that it says what it assumed."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import cli
from shards.index.disk import read_rate, verdict
from shards.rng import stream
from student.cost.cost_estimate import Hardware, Job, Rates, cost
from student.cost.disk_need import disk_need
from student.recipe.zoo import MODELS
from tests.student_tiny import write_shards

RATES = Rates(teacher=1000, student=4000, views=500, unit_views=800, source="given by hand")
JOB = Job(
    num_samples=1_000_000,
    num_views=100,
    bytes_per_view=64,
    epochs=300,
    num_students=12,
    num_gpus=8,
    num_cores=200,
)


def test_a_case_worked_out_by_hand() -> None:
    found = cost(JOB, RATES)
    # 8 GPUs: 8,000 forwards/s, 32,000 training images/s, 8 / (1/1000 + 1/4000) = 6,400 with the teacher in the loop.
    assert found.teacher_hours == pytest.approx(1e8 / 8000 / 3600)
    assert found.cached_hours == pytest.approx(3e8 / 32000 / 3600)
    assert found.online_hours == pytest.approx(3e8 / 6400 / 3600)
    assert found.storage_bytes == 6.4e9
    assert found.forwards_spent == 100_000_000
    assert found.decode_share == pytest.approx(100_000 / 32_000)
    assert found.stage1_decode_share == pytest.approx(160_000 / 8_000)
    assert found.forwards_break_even == pytest.approx(1 / 3)


@pytest.mark.parametrize("case", range(40))
def test_break_even_is_where_the_hours_meet(case: int) -> None:
    """One student more than break-even is never slower with the cache; one fewer is never faster."""
    rng = stream(case, "cost")
    rates = Rates(
        teacher=rng.uniform(10, 3000),
        student=rng.uniform(10, 9000),
        views=rng.uniform(50, 900),
        unit_views=1000,
        source="drawn",
    )
    job = replace(JOB, num_views=1 + rng.below(600), num_cores=1 + rng.below(300), num_gpus=1 + rng.below(16))
    found = cost(job, rates)
    if math.isinf(found.break_even):
        assert found.cached_hours == pytest.approx(found.online_hours)
        assert found.decode_share < 1 and "never in hours" in found.lines[-1]
        return
    for students, sign in ((math.floor(found.break_even), -1), (math.floor(found.break_even) + 1, 1)):
        if students:
            here = cost(replace(job, num_students=students), rates)
            assert sign * (here.sweep_online_hours - here.sweep_hours) >= -1e-9 * here.sweep_hours


@pytest.mark.parametrize("case", range(20))
def test_hours_respect_every_bound_and_more_hardware_never_hurts(case: int) -> None:
    rng = stream(case, "bounds")
    rates = replace(RATES, views=rng.uniform(1, 900), teacher=rng.uniform(1, 5000), student=rng.uniform(1, 5000))
    job = replace(JOB, num_cores=1 + rng.below(400), num_gpus=1 + rng.below(32), together=1 + rng.below(6))
    found = cost(job, rates)
    assert found.cached_hours <= found.online_hours
    assert found.sweep_hours <= found.teacher_hours + job.num_students * found.cached_hours + 1e-9
    assert found.cached_hours >= JOB.num_samples * JOB.epochs / (job.num_cores * rates.views) / 3600 - 1e-9
    for more in (replace(job, num_cores=2 * job.num_cores), replace(job, num_gpus=2 * job.num_gpus)):
        better = cost(more, rates)
        for name in ("teacher_hours", "cached_hours", "online_hours", "sweep_hours"):
            assert getattr(better, name) <= getattr(found, name) + 1e-9
    shared = cost(replace(job, together=job.num_students), rates)
    assert shared.sweep_hours <= found.sweep_hours + 1e-9, "rendering once for all is never slower"


def test_arithmetic_alone_gives_the_known_speed_up_of_the_deit_models() -> None:
    """(t_teacher + t_student) / t_student by GMACs: 5.2 for Ti, 2.1 for S, 1.3 for B."""
    for name, expected in (("tiny", 5.2), ("small", 2.15), ("base", 1.3)):
        gmacs = MODELS[f"deit_{name}_distilled_patch16_224"].gmacs
        rates = Hardware(teacher_gmacs=15.96, tflops=50, views=1e6, unit_views=1e6).rates(gmacs)
        found = cost(JOB, rates)
        assert found.online_hours / found.cached_hours == pytest.approx(expected, abs=0.05)
    assert rates.teacher == pytest.approx(50e12 / (2 * 15.96e9))


def test_every_number_that_was_assumed_is_printed() -> None:
    lines = "\n".join(cost(replace(JOB, together=3), RATES).lines)
    for text in ("given by hand", "1,000.0", "4,000.0", "500", "800", "8 GPUs", "200 cores", "1,000,000", "300 epochs",
                 "100 views", "12 students", "3 on each", "64.0 bytes"):  # fmt: skip
        assert text in lines, text
    assert lines.count("assumed:") == 5


def test_a_decode_bound_machine_is_told_so() -> None:
    lines = "\n".join(cost(replace(JOB, num_cores=2), RATES).lines)
    assert "rendering is the bound" in lines and "never in hours" in lines
    assert "rendering is the bound" not in "\n".join(cost(JOB, RATES).lines)


def test_a_rate_that_is_given_replaces_arithmetic_and_is_named() -> None:
    both = Hardware(teacher_gmacs=16.0, tflops=32.0, views=500, unit_views=900)
    assert both.rates(1.0).teacher == 1000
    mixed = replace(both, teacher=7.0).rates(1.0)
    assert (mixed.teacher, mixed.student) == (7.0, both.rates(1.0).student)
    assert mixed.source.endswith("; given: teacher 7")


@pytest.mark.parametrize("change", [{"num_gpus": 0}, {"num_views": 0}, {"together": 0}, {"bytes_per_view": 0}])
def test_a_wrong_count_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(JOB, **change)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("rate", ["teacher", "student", "views", "unit_views"])
def test_a_rate_that_is_no_positive_number_is_named(rate: str, value: float) -> None:
    with pytest.raises(ValueError, match=rate):
        replace(RATES, **{rate: value})


def test_the_disk_is_asked_for_what_the_hours_imply() -> None:
    """By hand: 32,000 training images/s of 90 kB read once for three views; 8,000 forwards/s, six views per read."""
    need = disk_need(JOB, cost(JOB, RATES), image_bytes=90_000, repeats=3, unit_views=6)
    assert need.training_read == pytest.approx(32_000 * (30_000 + 64))
    assert need.stage1_read == pytest.approx(8_000 * 15_000)
    assert need.stage1_write == pytest.approx(8_000 * 64)
    assert "reads 962.0 MB/s" in need.line(image_bytes=90_000, image_source="assumed")


@pytest.mark.parametrize(("gives", "said"), [(2e9, "enough 2.0 times over"), (5e8, "50 % of what is needed")])
def test_a_measured_disk_is_judged(gives: float, said: str) -> None:
    assert said in verdict(gives, 1e9)


def test_the_read_rate_is_of_the_bytes_of_the_images(tmp_path: Path) -> None:
    """A few shards are read to their end long before the seconds are over; remote ones are not measured."""
    index = write_shards(tmp_path / "shards")
    rate = read_rate(index, seconds=5.0)
    assert rate is not None and rate > 0
    assert read_rate(replace(index, urls=tuple(f"s3://b/{name}" for name in index.names)), seconds=1.0) is None


def test_the_read_rate_opens_few_of_many_shards(tmp_path: Path) -> None:
    """ImageNet has as many shards as a process may have open files."""
    index = write_shards(tmp_path / "shards", rows=(1,) * 60)
    opened: list[str] = []
    really_open = os.open

    def count(path: str, flags: int) -> int:
        opened.append(path)
        return really_open(path, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", count)
        assert read_rate(index, seconds=0.1)
    assert 0 < len(opened) <= 32


def test_the_command_says_what_the_disk_must_give(tmp_path: Path) -> None:
    """Assumed without shards; the index's mean with them."""
    result = CliRunner().invoke(cli, ["cost"])
    assert result.exit_code == 0 and "images of 110.0 kB, assumed" in result.output
    index = write_shards(tmp_path / "shards")
    result = CliRunner().invoke(cli, ["cost", "--shards", str(tmp_path / "shards")])
    assert f"images of {index.size_N.mean() / 1e3:,.1f} kB, of --shards" in result.output
