"""Several teachers: an ensemble from caches is the ensemble in the loop; what does not belong together is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shards.errors import CacheError
from student import Feed
from student.feed.answers import TeacherAnswer, answer_from_logits, mixture
from student.feed.batch import Labels
from student.feed.teaching import parts_of_one
from student.learn.loss import student_loss
from student.learn.losses.soft import soft_loss
from student.learn.network import Heads
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.run_events import Stepped
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.store.cache import TeacherCache
from tests.student_tiny import (
    BATCH,
    CLASSES,
    feed_of,
    final_weights,
    linear_teacher,
    make_cache,
    run_to_end,
    student_recipe,
    views,
    write_shards,
)
from tests.test_student_laws import convolutional_teacher

NAMES = ("a", "b")
WEIGHTS = (0.7, 0.3)


def teachers():
    """Two that answer differently: one linear layer, a small convolutional network."""
    return linear_teacher(views()), convolutional_teacher()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, lossless caches a and b, and others for single tests; one thread while they are used."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teachers")
    index = write_shards(folder / "shards")
    for name, teacher in zip(NAMES, teachers(), strict=True):
        make_cache(folder / f"{name}.zarr", index, views(), num_views=4, teacher=teacher).close()
    make_cache(folder / "b8.zarr", index, views(), num_views=4, kind="dense8", teacher=teachers()[1]).close()
    make_cache(folder / "short.zarr", index, views(), num_views=2).close()
    make_cache(folder / "hard.zarr", index, views(), num_views=4, kind="hard").close()
    make_cache(folder / "other.zarr", index, views(seed=1), num_views=4).close()
    make_cache(folder / "renamed.zarr", index, replace(views(), name="mine"), num_views=4).close()
    foreign = write_shards(folder / "foreign", seed=3)
    make_cache(folder / "foreign.zarr", foreign, views(), num_views=4).close()
    yield folder
    torch.set_num_threads(before)


def feed(folder, *names, **changes):
    given = {"batch_size": BATCH, "repeats": 1, "workers": 0, "device": "cpu"} | changes
    return feed_of(folder / "shards", cache=[folder / f"{name}.zarr" for name in names], **given)


@pytest.mark.parametrize(
    "changes",
    [
        {"distill": "soft", "temperature": 3.0},
        {"distill": "hard"},
        {"distill": "soft", "temperature": 0.7, "combine": "kl-each"},
        {"distill": "hard", "combine": "kl-each"},
    ],
    ids=["soft of the mean", "hard of the mean", "soft of each", "hard of each"],
)
@pytest.mark.slow
def test_an_ensemble_from_caches_equals_the_same_ensemble_online_to_the_bit(tmp_path, folder, changes):
    """Law 9, extended: lossless records of two teachers are the two teachers, Mixup and CutMix on."""
    given = {"teacher_weights": WEIGHTS, "recipe": student_recipe(epochs=5, **changes)}
    with feed(folder, *NAMES) as ours:
        cached = run_to_end(
            tmp_path / "a", ours.index, ours.teaching.caches, settings=TrainSettings(log_every=1), **given
        )
        online = run_to_end(
            tmp_path / "b",
            ours.index,
            settings=TrainSettings(log_every=1, views_used=4),
            teacher=teachers(),
            views=views(),
            **given,
        )
    first, second = losses(cached), losses(online)
    assert len(first) == 20 and first == second and len(set(map(str, first))) == 20
    assert final_weights(tmp_path / "a") == final_weights(tmp_path / "b")
    images = cached[-1].summary["images"]
    assert (cached[-1].summary["pixels_checked"], cached[-1].summary["teacher_forwards_in_training"]) == (images, 0)
    assert online[-1].summary["teacher_forwards_in_training"] == 2 * images


def losses(events):
    times = ("images_per_s", "data_wait_share")
    return [{k: v for k, v in e.metrics.items() if k not in times} for e in events if isinstance(e, Stepped)]


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_log_p_is_the_log_of_the_weighted_mean_of_probabilities(folder, tau):
    """Against float64, from the answers of each cache alone."""
    with feed(folder, *NAMES, teacher_weights=(7, 3)) as both, feed(folder, "a") as a, feed(folder, "b") as b:
        for mixed, one, two in zip(both.epoch(1), a.epoch(1), b.epoch(1), strict=True):
            parts = [batch.teacher.log_prob(tau).double().numpy() for batch in (one, two)]
            mean = 0.7 * np.exp(parts[0]) + 0.3 * np.exp(parts[1])
            np.testing.assert_allclose(mixed.teacher.log_prob(tau).numpy(), np.log(mean), atol=2e-6)
            at_one = sum(w * batch.teacher.log_prob(1.0).exp() for w, batch in zip(WEIGHTS, (one, two), strict=True))
            assert torch.equal(mixed.teacher.hard, at_one.argmax(-1))
            assert torch.equal(mixed.teacher.top(2).class_BK[:, 0], mixed.teacher.hard)
            for (weight, answer), expected, batch in zip(mixed.teacher.each, WEIGHTS, (one, two), strict=True):
                assert weight == pytest.approx(expected)
                assert torch.equal(answer.log_prob(tau), batch.teacher.log_prob(tau))
        assert both.pixels_checked == a.pixels_checked == 4 * BATCH


def test_the_first_class_of_a_mean_may_be_nobodys_first():
    """An ensemble is not a vote: the argmax is that of the mean at τ = 1."""
    one = answer_from_logits(torch.tensor([[0.5, 0.0, 0.45]]).log())
    two = answer_from_logits(torch.tensor([[0.0, 0.5, 0.45]]).log())
    mixed = mixture([one, two], (0.5, 0.5))
    assert (one.hard.item(), two.hard.item(), mixed.hard.item()) == (0, 1, 2)
    assert mixed.log_prob(1.0).exp()[0].tolist() == pytest.approx([0.25 / 0.95, 0.25 / 0.95, 0.45 / 0.95], rel=1e-6)


def test_classes_without_mass_stay_without_mass():
    """log 0 of both teachers is log 0, not nan."""
    answer = answer_from_logits(torch.tensor([[0.0, -math.inf]]))
    assert mixture([answer, answer], (0.5, 0.5)).log_prob(2.0).tolist() == [[0.0, -math.inf]]


def test_each_teacher_has_a_loss_of_its_own_in_kl_each():
    """Σ wᵢ · loss(student, teacherᵢ), and of one teacher the loss as it always was."""
    generator = torch.Generator().manual_seed(0)
    logit_TBC = torch.randn(2, 4, CLASSES, generator=generator)
    student_BC, labels = torch.randn(4, CLASSES, generator=generator), Labels.of(torch.arange(4))
    answers = [answer_from_logits(logit_BC) for logit_BC in logit_TBC]
    recipe = StudentRecipe(distill="soft", temperature=2.0, distill_weight=0.5)
    each = replace(recipe, combine="kl-each")
    alone = [student_loss(Heads(student_BC, None), labels, answer, recipe).distill for answer in answers]
    loss = student_loss(Heads(student_BC, None), labels, mixture(answers, WEIGHTS), each).distill
    assert loss.item() == pytest.approx((0.7 * alone[0] + 0.3 * alone[1]).item(), rel=1e-6)
    assert torch.equal(student_loss(Heads(student_BC, None), labels, answers[0], each).distill, alone[0])
    mean = student_loss(Heads(student_BC, None), labels, mixture(answers, WEIGHTS), recipe).distill
    log_prob_BC = mixture(answers, WEIGHTS).log_prob(2.0)
    assert torch.equal(mean, soft_loss(student_BC, log_prob_BC, temperature=2.0, reduction="textbook"))
    assert mean < loss, "the divergence from a mean is below the mean of the divergences"


def test_records_may_differ(folder):
    """A lossless and an 8-bit record of the same views teach together; the error is that of the second."""
    with feed(folder, "a", "b8") as mixed, feed(folder, "a", "b") as exact:
        one, two = (next(iter(f.epoch(0))).teacher.log_prob(2.0) for f in (mixed, exact))
    assert 0 < (one - two).abs().max() < 0.05


def test_what_a_recipe_is_called_is_no_difference(folder):
    with feed(folder, "a", "renamed") as ours:
        assert len(list(ours.epoch(0))) == 4


REFUSED = {
    "other views": ("other", CacheError, r"other\.zarr: its teacher saw other views .* seed: expected 0, got 1"),
    "other shards": ("foreign", CacheError, r"foreign\.zarr: made from other shards"),
    "hard labels": ("hard", ValueError, r"hard\.zarr holds hard labels only; teachers that teach together"),
    "fewer views": ("short", ValueError, r"a\.zarr holds 4 views and .*short\.zarr 2; say how many of both"),
}


@pytest.mark.parametrize("name, kind, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_belong_together_is_refused(folder, name, kind, message):
    with pytest.raises(kind, match=message):
        feed(folder, "a", name)


def test_fewer_views_of_one_serve_when_asked_for(folder):
    with feed(folder, "a", "short", views_used=2) as ours:
        assert {int(view) for epoch in range(4) for batch in ours.epoch(epoch) for view in batch.view} == {0, 1}


def test_other_classes_are_refused(folder):
    with TeacherCache.open(folder / "a.zarr") as a, TeacherCache.open(folder / "b.zarr") as b:
        teacher, record = replace(b.spec.teacher, num_classes=6), RecordFormat.chosen("dense", 6)
        b.header = replace(b.header, spec=replace(b.spec, teacher=teacher, record=record))
        with pytest.raises(CacheError, match=r"b\.zarr: its teacher knows 6 classes, the shards have 5"):
            Feed(folder / "shards", cache=[a, b], batch_size=BATCH, repeats=1)


def test_each_cache_compares_its_own_digests(folder):
    """Law 1 holds for every teacher: the second cache's digests are not taken on trust."""
    with TeacherCache.open(folder / "a.zarr") as a, TeacherCache.open(folder / "b.zarr") as b:
        good = b.read_unit

        def one_bit(view_block, shard):
            unit = good(view_block, shard)
            unit["pixel_digest"] = unit["pixel_digest"] ^ np.uint32(shard == 0)
            return unit

        b.read_unit = one_bit
        with (
            Feed(folder / "shards", cache=[a, b], batch_size=BATCH, repeats=1, workers=0) as ours,
            pytest.raises(CacheError, match=r"b\.zarr: pixels of shard .* expected digest .* got"),
        ):
            list(ours.epoch(0))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf), (1.0, math.nan), (1, 1, 1)])
def test_weights_are_one_positive_number_a_teacher(weights):
    with pytest.raises(ValueError, match=r"teacher_weights: expected 2 positive numbers, one a teacher, got \("):
        parts_of_one(weights, 2)


def test_weights_are_parts_of_one():
    assert parts_of_one((7, 3), 2) == (0.7, 0.3)
    assert parts_of_one(None, 3) == (1 / 3,) * 3
    assert parts_of_one(None, 0) == ()


def test_an_answer_of_one_teacher_is_each_of_one():
    answer = TeacherAnswer(torch.zeros(1, dtype=torch.int64))
    assert answer.each == ((1.0, answer),)


def test_one_cache_in_a_list_is_one_cache(tmp_path, folder):
    """What a run of one cache says of its teacher does not change: its checkpoints open for ever."""
    with feed(folder, "a") as ours:
        for name, caches in (("one", ours.teaching.caches[0]), ("list", ours.teaching.caches)):
            run_to_end(tmp_path / name, ours.index, caches, recipe=student_recipe(epochs=1))
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "list"))
    assert one == other and one["teacher"]["kind"] == "cache" and "combine" not in one["recipe"]


def test_two_caches_by_the_command_line(tmp_path, folder):
    """The flags reach the run, and a resumed run with other weights is another run."""
    caches = ["--cache", folder / "a.zarr", "--cache", folder / "b.zarr"]
    command = ["train-student", "--shards", folder / "shards", *caches]
    command += ["--model", "student_tiny_distilled", "--epochs", 1, "--batch-size", BATCH, "--workers", 0]
    command += ["--set", "repeats=1", "--distill", "soft", "--tau", 2, "--device", "cpu", "--out", tmp_path / "run"]

    def run(*more):
        return CliRunner().invoke(cli, [str(word) for word in (*command, *more)])

    done = run("--teacher-weight", ".7,.3", "--combine", "kl-each")
    assert done.exit_code == 0, done.output
    assert "2 teachers (one loss a teacher, weighted)" in done.output and "b.zarr 0.3" in done.output
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["recipe"]["combine"] == "kl-each"
    assert [round(one["weight"], 6) for one in config["teacher"]["teachers"]] == [0.7, 0.3]
    fingerprints = [one["fingerprint"] for one in config["teacher"]["teachers"]]
    card = (tmp_path / "run/model_card.md").read_text()
    assert len(set(fingerprints)) == 2 and all(fingerprint in card for fingerprint in fingerprints)
    other = run("--teacher-weight", ".5,.5", "--combine", "kl-each")
    assert other.exit_code == 1 and "teachers" in other.output
    wrong = run("--combine", "sum", "--out", tmp_path / "another")
    assert wrong.exit_code == 2 and "combine: expected one of mean, kl-each, got 'sum'" in wrong.output
