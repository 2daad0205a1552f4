"""Training images without labels: what the losses, the heads and a run make of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shards.index.shard_index import ShardIndex, open_index
from shards.tars.writer import write_samples
from student.feed.answers import answer_from_logits
from student.feed.batch import Labels
from student.feed.teaching import Teaching
from student.learn.loss import base_loss, gradient_balance, student_loss
from student.learn.network import Heads
from student.recipe.student_recipe import StudentRecipe
from student.recipe.suited import TrainingData, suited
from student.run.export import ExportInfo, model_card
from student.run.run_events import Scheduled
from tests.student_tiny import CLASSES, feed_of, make_cache, run_to_end, student_recipe, views, write_shards

B = 12
KINDS = (("cross_entropy", 0.1), ("cross_entropy", 0.0), ("binary", 0.0))


def some(seed: int = 0, *, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, classes, partners and weights of a mixed batch, each pair of images mixed with each other."""
    generator = torch.Generator().manual_seed(seed)
    logit_BC = 3 * torch.randn(B, classes, generator=generator)
    label_B = torch.randint(0, classes, (B,), generator=generator)
    lam_B = torch.rand(B // 2, generator=generator).repeat_interleave(2)
    return logit_BC, label_B, torch.arange(B).reshape(-1, 2).flip(1).flatten(), lam_B


@pytest.mark.parametrize(("kind", "smoothing"), KINDS)
def test_with_every_label_the_rule_for_absent_ones_changes_no_bit(kind: str, smoothing: float) -> None:
    """A batch that is labelled by chance, of a set where half of the images are, counts twice."""
    for seed in range(20):
        logit_BC, *parts = some(seed)
        whole, partly = Labels.of(*parts), Labels.of(*parts, labelled=0.5)
        one, twice = (base_loss(logit_BC, labels, kind=kind, smoothing=smoothing) for labels in (whole, partly))
        assert torch.equal(2 * one, twice) or (kind == "binary" and torch.allclose(2 * one, twice, rtol=1e-6))
        assert torch.equal(partly.weight_B, torch.ones(B))
        assert torch.allclose(whole.soft(CLASSES, smoothing), partly.soft(CLASSES, smoothing))
        assert type(Labels.of(*parts, labelled=1.0)) is Labels
        moved = partly._replace(label_B=partly.label_B.clone())
        assert (type(moved), moved.labelled_share) == (type(partly), 0.5), "on another device it says the same"


@pytest.mark.parametrize(("kind", "smoothing"), KINDS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_loss_is_the_mean_of_those_of_its_parts_however_a_batch_is_cut(kind: str, smoothing: float, share) -> None:
    """Ranks and micro-batches are such parts; each cut keeps pairs together."""
    for seed in range(10):
        logit_BC, label_B, partner_B, lam_B = some(seed)
        label_B = torch.where(torch.rand(B, generator=torch.Generator().manual_seed(seed)) < share, label_B, -1)
        whole = base_loss(
            logit_BC, Labels.of(label_B, partner_B, lam_B, labelled=share), kind=kind, smoothing=smoothing
        )
        for num_parts in (2, 3, 6):
            parts = [
                base_loss(
                    logit_BC[rows],
                    Labels.of(label_B[rows], partner_B[rows] - int(rows[0]), lam_B[rows], labelled=share),
                    kind=kind,
                    smoothing=smoothing,
                )
                for rows in torch.arange(B).chunk(num_parts)
            ]
            assert torch.allclose(torch.stack(parts).mean(), whole, rtol=1e-5), (seed, num_parts)


def test_a_half_without_a_label_takes_its_weight_out_of_the_target() -> None:
    """The rule as written: a sum over labelled halves, divided by what a batch of the set has of them on average."""
    logit_BC, label_B, partner_B, lam_B = some(5)
    label_B[::2] = -1  # one of each pair
    label_B[3] = -1  # and a pair without any
    labels = Labels.of(label_B, partner_B, lam_B, labelled=0.25)
    log_prob_BC = torch.log_softmax(logit_BC, -1)
    total = weight = torch.zeros(())
    for row in range(B):
        for label, share in ((label_B[row], lam_B[row]), (label_B[partner_B[row]], 1 - lam_B[row])):
            if label >= 0:
                total = total - share * (0.9 * log_prob_BC[row, label] + 0.1 * log_prob_BC[row].mean())
                weight = weight + share
    assert weight == pytest.approx((label_B >= 0).sum().item()), "a pair has as much weight as labels"
    expected = total / (B * 0.25)
    assert torch.allclose(base_loss(logit_BC, labels, kind="cross_entropy", smoothing=0.1), expected, rtol=1e-5)
    target_BC = labels.soft(CLASSES, 0.1)
    assert torch.allclose(target_BC.sum(1), labels.weight_B)
    mine = -(target_BC * log_prob_BC).sum() / (B * labels.labelled_share)
    assert torch.allclose(mine, expected, rtol=1e-5), "what a foreign loop can do"
    assert labels.weight_B[2] == labels.weight_B[3] == 0


@pytest.mark.parametrize(("kind", "smoothing"), KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_batch_without_labels_has_no_base_loss_and_no_gradient(kind: str, smoothing: float, share: float) -> None:
    logit_BC, label_B, partner_B, lam_B = some(6)
    none_B = torch.full_like(label_B, -1)
    leaf_BC = logit_BC.clone().requires_grad_()
    loss = base_loss(leaf_BC, Labels.of(none_B, partner_B, lam_B, labelled=share), kind=kind, smoothing=smoothing)
    loss.backward()
    assert loss == 0
    assert torch.equal(leaf_BC.grad, torch.zeros_like(logit_BC))


def test_both_heads_learn_from_the_teacher_where_the_recipe_says_so() -> None:
    logit_BC, label_B, _, _ = some(7)
    teacher = answer_from_logits(some(8)[0])
    grads = {}
    for which in ("dist", "both"):
        recipe = student_recipe(distill_weight=1.0, teacher_heads=which)
        cls_BC, dist_BC = (value.clone().requires_grad_() for value in (logit_BC, logit_BC.flip(0)))
        loss = student_loss(Heads(cls_BC, dist_BC), Labels.of(label_B), teacher, recipe)
        grads[which] = torch.autograd.grad(loss.total, (cls_BC, dist_BC), allow_unused=True)
    assert grads["dist"][0] is None or not grads["dist"][0].any()
    assert all(grad.any() for grad in grads["both"])
    assert torch.allclose(2 * grads["both"][1], grads["dist"][1])
    one = [
        student_loss(Heads(logit_BC, None), Labels.of(label_B), teacher, student_recipe(teacher_heads=which)).total
        for which in ("dist", "both")
    ]
    assert torch.equal(*one), "a student with one head is as before"
    both = student_recipe(teacher_heads="both")
    assert np.isfinite(gradient_balance(Heads(logit_BC, logit_BC.flip(0)), Labels.of(label_B), teacher, both))


def test_a_recipe_as_before_says_nothing_of_heads() -> None:
    assert "teacher_heads" not in student_recipe().to_json()
    both = student_recipe(teacher_heads="both")
    assert StudentRecipe.from_json(json.loads(json.dumps(both.to_json()))) == both


@pytest.mark.parametrize(
    ("missing", "typed", "heads", "weight"),
    [
        (0, (), "dist", 0.5),
        (40, (), "both", 0.5),
        (100, (), "both", 1.0),
        (100, ("distill_weight",), "both", 0.5),
        (100, ("teacher_heads", "distill_weight"), "dist", 0.5),
    ],
)
def test_defaults_follow_the_labels(missing: int, typed: tuple[str, ...], heads: str, weight: float) -> None:
    data = TrainingData(views=views(), num_views=(4,), shard_rows=(100,), num_unlabelled=missing)
    found = suited(student_recipe(), data, set_by_user=typed)
    assert (found.recipe.teacher_heads, found.recipe.distill_weight) == (heads, weight)
    assert any("label" in reason for reason in found.reasons) == (heads == "both" or weight == 1)


def test_without_labels_nothing_but_the_teacher_can_be_learnt() -> None:
    student_recipe(distill_weight=1.0).require_labels(0)
    student_recipe(distill_weight=0.5).require_labels(1)
    with pytest.raises(ValueError, match=r"no training image has a label.*expected λ = 1, got 0.5"):
        student_recipe(distill_weight=0.5).require_labels(0)
    with pytest.raises(ValueError, match=r"no training image has a label.*--cache"):
        student_recipe(distill="none").require_labels(0)


@pytest.mark.parametrize(
    ("heads", "weight", "words"),
    [
        ("dist", 0.5, "CLS was trained on the labels, DIST on the teacher."),
        ("both", 0.5, "both trained on the teacher, CLS on the labels of labelled images as well."),
        ("both", 1.0, "both trained on the teacher; no label was used."),
    ],
)
def test_the_card_says_what_each_head_was_trained_on(heads: str, weight: float, words: str) -> None:
    recipe = StudentRecipe(
        model="deit_tiny_distilled_patch16_224", distill="soft", distill_weight=weight, teacher_heads=heads
    )
    info = ExportInfo(
        recipe=recipe, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), num_classes=3, fingerprints={}, metrics={}
    )
    assert words in model_card(info)


# Runs.


def without_labels(index: ShardIndex, folder: Path, *, keep: int = 0) -> ShardIndex:
    """The same images, of which the first `keep` have labels; the others' classes are nowhere."""
    samples = []
    for shard in range(index.num_shards):
        for row in range(index.num_rows(shard)):
            n = index.row_number(shard, row)
            data = Path(index.urls[shard]).read_bytes()
            at, size = int(index.offset_N[n]), int(index.size_N[n])
            label = int(index.label_N[n]) if n < keep else None
            samples.append((index.key(shard, row), label, "png", data[at : at + size]))
    return write_samples(
        samples, folder, samples_per_shard=int(max(index.rows_S)), num_classes=CLASSES if keep else None
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return write_shards(tmp_path_factory.mktemp("labelled"), rows=(24, 24))


@pytest.fixture(scope="module", params=[0, 20], ids=["none", "some"])
def part(request: pytest.FixtureRequest, labelled: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return without_labels(labelled, tmp_path_factory.mktemp("part"), keep=request.param)


def test_views_and_answers_do_not_depend_on_labels(labelled: ShardIndex, part: ShardIndex, tmp_path: Path) -> None:
    recipe = views(block_size=4, block_views=2)
    caches = [make_cache(tmp_path / name, index, recipe, num_views=2) for name, index in (("a", labelled), ("b", part))]
    with caches[0] as one, caches[1] as other:
        for shard in range(labelled.num_shards):
            ours, theirs = one.read_unit(0, shard), other.read_unit(0, shard)
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        assert one.spec.fingerprint != other.spec.fingerprint


def test_a_feed_says_which_targets_are_absent(part: ShardIndex, tmp_path: Path) -> None:
    recipe = views(block_size=4, block_views=2)
    cache = make_cache(tmp_path / "cache", part, recipe, num_views=2)
    with cache, feed_of(part, cache=cache, batch_size=8, repeats=1, workers=0, epochs=1) as feed:
        assert feed.num_classes == CLASSES
        for batch in feed.epoch(0):
            places = zip(batch.shard, batch.row, strict=True)
            own_B = torch.tensor([part.label_N[part.row_number(shard, row)] for shard, row in places])
            assert torch.equal(batch.labels.label_B, own_B.long())
            assert torch.allclose(batch.targets.sum(1), batch.labelled, atol=1e-6)
            assert batch.labels.labelled_share == pytest.approx((part.label_N >= 0).mean())
            values = batch.as_dict(2.0)
            assert torch.equal(values["labelled"], batch.labelled)
            assert torch.equal(values["labels"] >= 0, own_B >= 0)
            assert values["teacher_log_prob"].shape == (8, CLASSES)


@pytest.mark.slow
def test_runs_with_few_and_without_labels_teach_both_heads(
    part: ShardIndex, labelled: ShardIndex, tmp_path: Path
) -> None:
    """Cached = online, and no parameter of either head stays as it began."""
    recipe = views(block_size=4, block_views=2)
    none = part.num_unlabelled == part.num_samples
    student = student_recipe(
        teacher_heads="both", distill_weight=1.0 if none else 0.5, batch_size=8, epochs=1, ema_decay=0.0
    )
    with make_cache(tmp_path / "cache", part, recipe, num_views=2) as cache:
        events = run_to_end(tmp_path / "run", part, cache, recipe=student, val_index=labelled)
    scheduled = next(event for event in events if isinstance(event, Scheduled))
    assert (
        "none of 48 training images has a label" if none else "20 of 48 training images have a label"
    ) in scheduled.labels
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["base_loss"] == 0 if none else summary["base_loss"] > 0
    assert {"cls_top1", "dist_top1"} <= summary.keys()
    assert "teacher_heads" in (tmp_path / "run" / "model_card.md").read_text()


def test_an_untaught_head_is_refused(labelled: ShardIndex, tmp_path: Path) -> None:
    none = without_labels(labelled, tmp_path / "none")
    recipe = views(block_size=4, block_views=2)
    with make_cache(tmp_path / "cache", none, recipe, num_views=2) as cache:
        for changes, words in (
            ({"distill_weight": 1.0}, "teacher_heads: no training image has a label"),
            ({"distill_weight": 0.5, "teacher_heads": "both"}, "expected λ = 1, got 0.5"),
        ):
            with pytest.raises(ValueError, match=words):
                run_to_end(tmp_path / "run", none, cache, recipe=student_recipe(batch_size=8, **changes))


@pytest.mark.slow
def test_labelled_and_unlabelled_shards_share_one_cache(labelled: ShardIndex, tmp_path: Path) -> None:
    write_samples(
        [(f"extra{n}", None, "png", _image(labelled, n)) for n in range(24)],
        tmp_path / "more",
        prefix="unlabelled",
    )
    both = open_index(f"{Path(labelled.urls[0]).parent}::{tmp_path / 'more'}")
    assert (both.num_samples, both.num_unlabelled) == (72, 24)
    recipe = views(block_size=4, block_views=2)
    student = student_recipe(teacher_heads="both", batch_size=8, epochs=1, ema_decay=0.0)
    with make_cache(tmp_path / "cache", both, recipe, num_views=2) as cache:
        run_to_end(tmp_path / "run", both, cache, recipe=student)
        assert Teaching.of(cache).with_classes(both) is both
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["pixels_checked"] == 72
    assert replace(student, teacher_heads="dist") == student_recipe(batch_size=8, epochs=1, ema_decay=0.0)


def _image(index: ShardIndex, n: int) -> bytes:
    at, size = int(index.offset_N[n]), int(index.size_N[n])
    return Path(index.urls[0]).read_bytes()[at : at + size]
