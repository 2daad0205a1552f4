"""A number that is not finite ends the student that has it and nothing else: no checkpoint holds it, nobody beside it
notices, and what is said of the checkpoints is true."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet

import student.run.students as students
from shards.errors import RunError
from shards.world import World
from student.learn.losses.table import LOSSES
from student.recipe.settings import TrainSettings
from student.run.checkpoint import saved_steps
from student.run.loop import train_many
from student.run.run_events import Checkpointed, EpochEnded, Resumed, StudentFailed, StudentFinished
from student.run.students import StudentJob
from tests.poison import KINDS, not_finite, poisoned
from tests.student_tiny import (
    BATCH,
    CLASSES,
    by,
    feed_of,
    final_weights,
    in_child,
    in_children,
    kill_self,
    linear_teacher,
    make_cache,
    run_to_end,
    student_recipe,
    train,
    views,
    write_shards,
)
from tests.test_student_laws import assert_same_run

NAN, INF = float("nan"), float("inf")
BAD_LR = 0.011
"""The learning rate by which the poison knows its student."""


@register_model
def student_tiny_normed(pretrained: bool = False, **options: Any) -> ResNet:
    """A small network with BatchNorm."""
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=options["num_classes"])


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def val_index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("val"), rows=(9,), seed=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, index):
    with make_cache(tmp_path_factory.mktemp("cache"), index, views(), num_views=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(tmp_path_factory, index, cache):
    """The weights of the good student, trained by itself."""
    out = tmp_path_factory.mktemp("alone") / "good"
    run_to_end(out, index, cache)
    return final_weights(out)


def require_true_words(error, checkpoints, before):
    """What is kept is of a step before the fault, finite, and what the message names."""
    steps = saved_steps(checkpoints)
    assert all(step <= before for step in steps) and not not_finite(checkpoints)
    assert error.endswith(f"the checkpoint of step {steps[0]} is kept" if steps else "no checkpoint was written")


# Steps from 0 of the eight of a run (four per epoch): the first, within an epoch, the last of an epoch, the last.
@pytest.mark.parametrize(
    "step, value, log_every, checkpoint_every", [(0, INF, 50, 1), (2, NAN, 50, 2), (3, NAN, 3, 0), (7, INF, 50, 3)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_student_leaves_with_its_number_and_the_others_end_as_if_alone(
    tmp_path, index, cache, alone, kind, step, value, log_every, checkpoint_every
):
    """Whatever goes wrong, whenever, and however rarely anything is logged."""
    jobs = [
        StudentJob(student_recipe(lr=BAD_LR), tmp_path / "bad"),
        StudentJob(student_recipe(), tmp_path / "good"),
    ]
    settings = TrainSettings(log_every=log_every, checkpoint_every=checkpoint_every)
    with poisoned(kind, step, value, lr=BAD_LR):
        events = list(train_many(jobs, index, settings=settings, teaching=by(cache)))
    failed = [event for event in events if isinstance(event, StudentFailed)]
    assert [event.student for event in failed] == ["bad"]
    assert [event.student for event in events if isinstance(event, StudentFinished)] == ["good"]
    assert final_weights(tmp_path / "good") == alone
    require_true_words(failed[0].error, tmp_path / "bad/checkpoints", step)
    assert not (tmp_path / "bad/summary.json").exists() and len(failed[0].error) <= 600


def broken_teacher(monkeypatch, value, forward):
    """A teacher in the loop whose answer number `forward` has one logit that is no finite number."""
    teacher = linear_teacher(views())
    answer = teacher.logits

    def broken(image_BCHW):
        logit_BC = answer(image_BCHW).clone()
        if teacher.num_forwards == forward:
            logit_BC[3, 2] = value
        return logit_BC

    monkeypatch.setattr(teacher, "logits", broken)
    return teacher


@pytest.mark.parametrize(
    "distill, value, forward, step",
    [
        *((distill, value, 3, 2) for distill in LOSSES for value in (NAN, INF, -INF)),
        ("hard", NAN, 1, 0),
        ("hard", NAN, 8, 7),
    ],
)
def test_a_teacher_in_the_loop_that_answers_no_numbers_teaches_nobody(
    tmp_path, index, monkeypatch, distill, value, forward, step
):
    """Law 13, for every loss, also those that would not show it; the words name the teacher, not the student's lr."""
    teacher, events = broken_teacher(monkeypatch, value, forward), []
    settings = TrainSettings(log_every=50, checkpoint_every=1, views_used=4)
    run = train(
        student_recipe(distill=distill), index, out=tmp_path / "run", teacher=teacher, views=views(), settings=settings
    )
    with pytest.raises(RunError, match=r"teacher in the loop: for 1 of its answers .* NaN or infinite") as refused:
        events.extend(iter(run))
    assert len(str(refused.value)) <= 600 and " lr" not in str(refused.value)
    steps = saved_steps(tmp_path / "run/checkpoints")
    assert all(saved <= step for saved in steps) and bool(steps) == bool(step)
    assert not (tmp_path / "run/summary.json").exists()


def test_the_teacher_of_one_rank_that_answers_no_numbers_ends_all_ranks(tmp_path, index, monkeypatch):
    """Nobody waits for the rank that has seen it, and no checkpoint of its step is written."""

    def rank(number):
        teacher = broken_teacher(monkeypatch, NAN, 3) if number else linear_teacher(views())
        options = {"settings": TrainSettings(checkpoint_every=1, views_used=4), "views": views(), "teacher": teacher}
        world = World(number, 2, number, meeting=f"file://{tmp_path}/meet")
        try:
            list(train(student_recipe(distill="hard"), index, out=tmp_path / "run", world=world, **options))
        except RunError as error:
            return str(error)
        return "trained"

    assert all("teacher in the loop: for 1 of" in said for said in in_children([partial(rank, n) for n in range(2)]))
    assert saved_steps(tmp_path / "run/checkpoints")[0] == 2


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("forward, batches", [(1, 0), (3, 4)])
def test_a_loop_of_the_users_own_is_told_at_the_first_batch_or_at_the_end_of_the_epoch(
    index, monkeypatch, forward, batches, several
):
    """Without a wait for the device in between."""
    teacher, seen = broken_teacher(monkeypatch, NAN, forward), 0
    teachers = [linear_teacher(views()), teacher] if several else teacher
    with (
        feed_of(index, views=views(), teacher=teachers, batch_size=BATCH, repeats=1, workers=0) as feed,
        pytest.raises(RunError, match="teacher in the loop: for 1 of its answers"),
    ):
        for batch in feed.epoch(0):
            assert set(batch.teacher.hard.tolist()) <= set(range(CLASSES))
            seen += 1
    assert seen == batches


def test_passes_go_on_when_the_only_student_of_one_of_them_fails(tmp_path, index, cache, alone):
    """Students at different steps take passes of their own; the failure of one pass is not another's."""
    settings = TrainSettings(checkpoint_every=1)
    bad = StudentJob(student_recipe(lr=BAD_LR), tmp_path / "bad")
    with poisoned("weight", 3, NAN), pytest.raises(RunError, match="the checkpoint of step 3 is kept"):
        list(train_many([bad], index, settings=settings, teaching=by(cache)))
    with poisoned("weight", 5, NAN, lr=BAD_LR):
        jobs = [bad, StudentJob(student_recipe(), tmp_path / "good")]
        events = list(train_many(jobs, index, settings=settings, teaching=by(cache)))
    assert [type(e) for e in events if isinstance(e, StudentFailed | StudentFinished)] == [
        StudentFailed,
        StudentFinished,
    ]
    assert final_weights(tmp_path / "good") == alone


@pytest.mark.parametrize("kind", [*KINDS, "statistic"])
def test_a_run_goes_on_from_before_its_fault_to_the_bits_of_a_calm_one(tmp_path, index, cache, kind):
    """The last checkpoint is worth something: a fault of the machine costs the steps since it."""
    changes = {"model": "student_tiny_normed", "distill": "soft"} if kind == "statistic" else {}
    recipe = student_recipe(epochs=1, **changes)
    options = {"recipe": recipe, "settings": TrainSettings(checkpoint_every=1)}
    with poisoned(kind, 2, INF), pytest.raises(RunError) as error:
        run_to_end(tmp_path / "run", index, cache, **options)
    require_true_words(str(error.value), tmp_path / "run/checkpoints", 2)
    events = run_to_end(tmp_path / "run", index, cache, **options)
    assert [event.step for event in events if isinstance(event, Resumed)] == [2]
    run_to_end(tmp_path / "calm", index, cache, **options)
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "calm")


def test_the_first_fault_without_any_checkpoint_says_so(tmp_path, index, cache):
    """Nothing is promised that is not on the disk."""
    with poisoned("loss", 0, NAN), pytest.raises(RunError, match=r"the loss.*lower lr.*; no checkpoint was written$"):
        run_to_end(tmp_path / "run", index, cache)


def test_an_epoch_is_reported_when_it_is_saved(tmp_path, index, val_index, cache):
    """Who reads "epoch 1" and pulls the plug has epoch 1."""
    events = run_to_end(tmp_path / "run", index, cache, val_index=val_index)
    saved = 0
    for event in events:
        if isinstance(event, Checkpointed):
            saved = event.step
        if isinstance(event, EpochEnded):
            assert saved == event.step and "top1" in event.validation


@pytest.mark.parametrize("step", [4, 8])
def test_a_kill_while_validating_loses_no_step(tmp_path, index, val_index, cache, step):
    """The epoch is saved before it is evaluated; the next start evaluates it first, and the run reads as if calm."""

    def killed():
        plain, calls = students.validate, []

        def validate(*arguments):
            calls.append(1)
            if len(calls) == step // 4:
                kill_self()
            return plain(*arguments)

        students.validate = validate
        run_to_end(tmp_path / "run", index, cache, val_index=val_index)

    in_child(killed, killed=True)
    events = run_to_end(tmp_path / "run", index, cache, val_index=val_index)
    assert [event.step for event in events if isinstance(event, Resumed)] == [step]
    run_to_end(tmp_path / "calm", index, cache, val_index=val_index)
    assert_same_run(tmp_path / "calm", tmp_path / "run")


def test_a_kill_between_the_reports_of_two_students_reports_each_once(tmp_path, index, val_index, cache):
    """One student of the pass has its line, the other has not; neither is written twice or left out."""
    jobs = [StudentJob(student_recipe(temperature=tau), tmp_path / f"s{tau:g}") for tau in (1.0, 2.0)]

    def killed():
        for event in train_many(jobs, index, settings=TrainSettings(), teaching=by(cache), val_index=val_index):
            if isinstance(event, EpochEnded):
                kill_self()

    in_child(killed, killed=True)
    list(train_many(jobs, index, settings=TrainSettings(), teaching=by(cache), val_index=val_index))
    for job in jobs:
        lines = [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1]
        assert all("top1" in line["val"] for line in lines if line["kind"] == "epoch")


def test_a_steady_step_reads_nothing_from_the_device(tmp_path, index, cache, monkeypatch):
    """The state is looked at where it is saved, not where it is learned."""
    reads = []
    plain = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: reads.append(1) or plain(tensor))
    counts = []
    for event in train(student_recipe(epochs=1), index, settings=TrainSettings(), out=tmp_path / "run", cache=cache):
        if isinstance(event, Checkpointed):
            counts.append(len(reads))
    assert len(counts) == 1
    quiet = partial(train, student_recipe(epochs=1), index, out=tmp_path / "other", cache=cache)
    reads.clear()
    list(quiet(settings=TrainSettings(checkpoint_every=1)))
    assert len(reads) - counts[0] <= 3 * 2, "three more checkpoints, a read or two each"
