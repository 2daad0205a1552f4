"""On a device that the host cannot reach, nothing in a steady step makes the host wait or mixes devices."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.__main__ import run
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import TINY
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.world import World
from student.learn.evaluation import Forward, eval_batches, eval_views, evaluate
from student.learn.network import make_student
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.stage1.build import build_cache
from tests import stage1_tiny
from tests.command_line import done
from tests.fake_device import DEVICE, Traffic, fake_gpu
from tests.student_tiny import BATCH, CLASSES, feed_of, linear_teacher, make_cache, student_recipe, views, write_shards
from tests.test_readme import COMMAND_LINES

RECIPES = {
    "adamw": {},
    "clipped, hard": {"clip_grad": 1.0, "distill": "hard"},
    "lamb": {"optimizer": "lamb", "distill": "none"},
    "dist": {"distill": "dist"},
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Enough samples and classes for a tail basis."""
    return stage1_tiny.make_shards(tmp_path_factory.mktemp("many"), num_samples=120, per_shard=40, num_classes=40)


def test_the_device_counts_and_refuses_what_a_gpu_would() -> None:
    with fake_gpu() as traffic:
        x = torch.ones(3).to(DEVICE)
        y = torch.ones(3).to(DEVICE, non_blocking=True)
        torch.tensor([1.0], device=DEVICE)
        assert (len(traffic.blocking), len(traffic.queued), traffic.reads) == (2, 1, [])
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(3)
        assert ((x + y) * 2).sum().item() == 12 and len(traffic.reads) == 1
        assert x.tolist() == [1, 1, 1] and x.cpu().sum() == 3 and len(traffic.reads) == 3


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ["dense", "dense8"])
def test_a_steady_training_step_reads_nothing_and_copies_without_waiting(
    tmp_path: Path, index: ShardIndex, name: str, kind: str
) -> None:
    recipe = student_recipe(**RECIPES[name])
    with make_cache(tmp_path / "c", index, views(), num_views=2, kind=kind) as cache, fake_gpu() as traffic:
        group = ProcessGroup(World(), DEVICE)
        student = Trainer(recipe, TrainSettings(), num_classes=CLASSES, steps_per_epoch=4, group=group)
        with feed_of(index, cache=cache, batch_size=BATCH, device=DEVICE, pin=False) as feed:
            for step, batch in enumerate(feed.epoch(0)):
                student.feed(batch.images, batch.labels, batch.answer, step=step)
                if step > 0:
                    require_no_waiting(traffic)
                    assert sum("torch.uint8" in copy for copy in traffic.queued) == 2, "pixels; and records in one"
                traffic.clear()
        assert step > 1 and np.isfinite(student.interval_metrics()["loss"])
        assert len(traffic.reads) == 1, "the means of an interval are one read"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_feed_in_somebody_elses_loop_makes_nobody_wait(tmp_path: Path, many: ShardIndex, kind: str) -> None:
    """Every kind of record is decoded on the device."""
    record = RecordFormat.chosen(kind, many.num_classes)
    teacher = stage1_tiny.tiny_teacher(num_classes=many.num_classes)
    with stage1_tiny.opened(tmp_path / "c", many, teacher, num_views=2, record=record) as cache:
        stage1_tiny.build(cache, many, teacher)
        with (
            fake_gpu() as traffic,
            feed_of(many, cache=cache, batch_size=8, repeats=1, device=DEVICE, pin=False) as feed,
        ):
            for batch in feed.epoch(0):
                values = batch.as_dict(temperature=2.0 if record.entry.soft else None)
                assert {value.device.type for value in values.values()} == {DEVICE.type}
                if batch.step > 0:
                    require_no_waiting(traffic)
                traffic.clear()


def test_an_evaluation_reads_its_counts_once_at_its_end(index: ShardIndex) -> None:
    recipe = student_recipe()
    shown = eval_views(recipe, views(), block_size=8)
    with ShardReader(index) as reader, fake_gpu() as traffic:
        model = make_student(recipe, CLASSES, seed=0).to(DEVICE)
        loaded = eval_batches(reader, shown, world=World(), workers=0)
        traffic.clear()
        events = evaluate(model, loaded, Forward(views=shown, device=DEVICE), num_own=index.num_samples)
        next(events)
        traffic.clear()
        for event in events:
            if event.result is None:
                require_no_waiting(traffic)
        assert event.result is not None and traffic.reads == ["tolist (9,)"] and not traffic.blocking


def test_stage_1_reads_the_answer_of_each_batch_and_nothing_else(tmp_path: Path, index: ShardIndex) -> None:
    recipe = views()
    with fake_gpu() as traffic:
        on_host = linear_teacher(recipe)
        teacher = Teacher(on_host._network, on_host.spec, device=DEVICE)
        cache = stage1_tiny.opened(tmp_path / "c", index, teacher, num_views=2, recipe=recipe)
        with cache, ShardReader(index) as reader:
            traffic.clear()
            events = list(build_cache(cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=BATCH))
        forwards = stage1_tiny.end_of(events).num_forwards
        assert len(traffic.reads) == forwards > 1
        assert not traffic.blocking[2:], "beside the two constants"


def test_the_gpu_benchmark_runs_on_a_device_that_the_host_cannot_reach(tmp_path: Path) -> None:
    """The sections that start no process of their own; the device computes on the CPU, so nothing differs."""
    with fake_gpu():
        sizes = replace(TINY, precisions=("fp32",))  # the device has no autocast
        clock = Clock(DEVICE, TINY.budget_s)
        names = ["start", "same", "waiting", "feed"]
        figures = run(sizes, clock, workers=0, photos=None, names=names)
    assert figures["failed"] == [], figures
    assert max(figures["same"]["losses"].values()) == 0


SMALLER = {
    "--compile": [],  # there is no compiler for this device
    "regnety_160.deit_in1k": ["test_resnet.r160_in1k", "--teacher-weights", "teacher.safetensors"],
    "300": ["6", "--size", "32", "--view-set", "block_size=4", "--views-per-unit", "2", "--batch-size", "8"],
    "0,0.1,0.5,0.9": ["0,0.5"],
    "1,2,4": ["1,2"],
    "3": ["1"],
    "runs/tiny": ["runs/tiny", *(SHORT := ["--epochs", "2", "--batch-size", "16", "--set", "repeats=1"])],
    "sweeps/tiny": ["sweeps/tiny", *SHORT],
}
"""What the lines for ImageNet have, and what a test has instead."""


def imagenet_lines() -> list[list[str]]:
    """The commands of that section of the first page, at tiny sizes."""
    lines = [words for page, words in COMMAND_LINES if page == "README.md"]
    words = [words for words in lines if "--teacher" in words or "--distill" in words or "--seeds" in words]
    assert [line[0] for line in words] == ["cache-teacher", "train-student", "ablate"]
    return [[part for word in line for part in SMALLER.get(word, [word])] + ["--workers", "0"] for line in words]


def test_the_lines_for_imagenet_run_on_a_device_that_the_host_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first forward of the teacher to the report's numbers; checkpoints go through the host."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        stage1_tiny.make_shards(tmp_path / "data" / name, num_samples=48, per_shard=24)
    stage1_tiny.save_weights(Path("teacher.safetensors"))
    for module in ("teacher_cache.network.device", "student.run.loop", "student.sweep.cell_training"):
        monkeypatch.setattr(f"{module}.rank_device", lambda *_: DEVICE)
    for words in imagenet_lines():
        with fake_gpu() as traffic:
            done(*words)
            assert traffic.queued, f"{words[0]} did not use the device"
    summaries = [*Path("runs").glob("*/summary.json"), *Path("sweeps").glob("tiny/cells/*/summary.json")]
    assert len(summaries) == 1 + 4  # hard and soft at both τ, and one without a teacher
    for path in summaries:
        assert json.loads(path.read_text())["top1"] >= 0


def require_no_waiting(traffic: Traffic) -> None:
    """Fails where the host waited for the device."""
    assert (traffic.reads, traffic.blocking) == ([], [])
