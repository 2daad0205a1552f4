"""Evaluation: exact counts for any number of samples, batch size and processes."""

import io
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import register_model
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.tars.writer import write_samples
from shards.views.mixing import num_blocks
from shards.views.view import render_views
from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD, ViewRecipe
from shards.world import World
from student.feed.answers import TeacherAnswer
from student.learn.evaluation import (
    EvalResult,
    Forward,
    count_hits,
    eval_batch_size,
    eval_batches,
    eval_tasks,
    eval_views,
    evaluate,
    label_rank,
    own_samples,
    teacher_stats,
)
from student.learn.network import Heads
from student.recipe.student_recipe import StudentRecipe
from student.run.validation import in_step

SIZE, CLASSES, SAMPLES = 16, 7, 23
RECIPE = StudentRecipe(image_size=SIZE)


def png(number: int) -> bytes:
    """A small colourful image of its own."""
    pixels = np.random.Generator(np.random.Philox(number)).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """23 samples in shards of 9, 9 and 5."""
    samples = ((f"sample{n:03d}", n % CLASSES, "png", png(n)) for n in range(SAMPLES))
    return write_samples(samples, tmp_path_factory.mktemp("shards"), samples_per_shard=9, num_classes=CLASSES)


@pytest.fixture(scope="module")
def reader(index: ShardIndex) -> Iterator[ShardReader]:
    """An open reader."""
    with ShardReader(index) as reader:
        yield reader


def student(two_heads: bool) -> nn.Module:
    """A network whose answers differ from image to image."""
    torch.manual_seed(0)
    if two_heads:
        net = VisionTransformerDistilled(
            img_size=SIZE, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=CLASSES
        )
        for head in (net.head, net.head_dist):
            nn.init.normal_(head.weight, std=2.0)
        return net
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))


def run(model: nn.Module, reader: ShardReader, views: ViewRecipe, size: int) -> EvalResult:
    """The result of `size` ranks, one after the other."""
    index, results = reader.index, []
    for rank in range(size):
        world = World(rank, size)
        num_own = own_samples(index.rows_S, views, world)
        batches = eval_batches(reader, views, world=world, workers=0)
        *_, last = evaluate(model, batches, Forward(views=views, device=torch.device("cpu")), num_own=num_own)
        assert last.num_done == num_own and last.result is not None
        results.append(last.result)
    return EvalResult.of_all_ranks(results, index.num_samples)


def expected(model: nn.Module, index: ShardIndex, reader: ShardReader, views: ViewRecipe) -> dict[str, tuple[int, int]]:
    """Top-1 and top-5 hits, image by image, in float64 by sorting."""
    hits: dict[str, list[bool]] = {}
    model.eval()
    for shard in range(index.num_shards):
        for row in range(index.num_rows(shard)):
            data = reader.image_bytes(shard, row)
            view = render_views(data, views, index.key(shard, row), [0], "here")[0]
            x = (view / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
            x_BCHW = torch.from_numpy(x).float().permute(2, 0, 1)[None]
            label = index.label_N[index.row_number(shard, row)]
            answers = {"cls": model(x_BCHW)}
            if isinstance(model, VisionTransformerDistilled):
                tokens = model.forward_features(x_BCHW)
                answers = {
                    "cls": model.head(tokens[:, 0]),
                    "dist": model.head_dist(tokens[:, 1]),
                    "average": answers["cls"],
                }
            for name, logit in answers.items():
                order = np.argsort(-logit.detach().numpy()[0], kind="stable")
                hits.setdefault(f"{name}1", []).append(label == order[0])
                hits.setdefault(f"{name}5", []).append(label in order[:5])
    names = {name[:-1] for name in hits}
    return {name: (sum(hits[f"{name}1"]), sum(hits[f"{name}5"])) for name in names}


@pytest.mark.parametrize("two_heads", [False, True])
def test_counts_are_exact_for_any_world_and_batch(reader: ShardReader, index: ShardIndex, two_heads: bool) -> None:
    """Padding, as a DistributedSampler does, would count samples twice; more ranks than blocks must not hurt."""
    model = student(two_heads)
    views = eval_views(RECIPE, ViewRecipe(), block_size=64)
    wanted = expected(model, index, reader, views)
    assert len({hits for hits, _ in wanted.values()} - {0}) >= 1
    for size in (1, 2, 3, 4, 7, 30):
        for block_size in (1, 4, 64):
            result = run(model, reader, replace(views, block_size=block_size), size)
            assert result.num_samples == SAMPLES and result.num_not_finite == 0
            assert {name: (result.top1[name], result.top5[name]) for name in result.top1} == wanted


@pytest.mark.parametrize(
    ("device", "trained_at_once", "expected"),
    [("cpu", 1024, 64), ("cpu", 16, 64), ("cuda", 1024, 256), ("cuda", 128, 128), ("cuda", 16, 64)],
)
def test_a_gpu_is_asked_for_more_images_at_once(device: str, trained_at_once: int, expected: int) -> None:
    """64 leave it waiting for launches; more than a step of training has could need more memory than it."""
    assert eval_batch_size(device, trained_at_once) == expected
    assert eval_batch_size(device) == (256 if device == "cuda" else 64)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("rows", [[1], [5], [64, 64], [65, 1, 128, 3], []], ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_items_are_a_partition_of_the_blocks(size: int, rows: list[int], block_size: int) -> None:
    """Every block of every shard on exactly one rank, and `own_samples` sums to the number of samples."""
    views = replace(eval_views(RECIPE, ViewRecipe()), block_size=block_size)
    dealt = [(part.shard, part.block) for rank in range(size) for (part,) in eval_tasks(rows, views, World(rank, size))]
    assert sorted(dealt) == [(s, b) for s, n in enumerate(rows) for b in range(num_blocks(views, n))]
    assert sum(own_samples(rows, views, World(rank, size)) for rank in range(size)) == sum(rows)
    own = [len(eval_tasks(rows, views, World(rank, size))) for rank in range(size)]
    assert max(own) - min(own) <= 1


def test_a_lost_batch_is_an_error_not_a_percentage(reader: ShardReader, index: ShardIndex) -> None:
    """A result over fewer samples looks like a result."""
    views = eval_views(RECIPE, ViewRecipe(), block_size=4)
    loaded = list(eval_batches(reader, views, world=World(), workers=0))
    forward = Forward(views=views, device=torch.device("cpu"))
    with pytest.raises(RunError, match=f"expected {SAMPLES} samples in this process, counted {SAMPLES - 4}"):
        list(evaluate(student(False), loaded[1:], forward, num_own=SAMPLES))
    part = EvalResult(num_samples=4, num_not_finite=0, top1={"cls": 1}, top5={"cls": 2})
    with pytest.raises(RunError, match="expected 9 samples over all processes, counted 8"):
        EvalResult.of_all_ranks([part, part], 9)


class Moody(nn.Module):
    """Answers the first batch well, and each later one as it is told."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.calls = fault, 0

    def forward(self, image_BCHW: torch.Tensor) -> Any:
        self.calls += 1
        logit_BC = torch.zeros(len(image_BCHW), CLASSES)
        match self.fault if self.calls > 1 else "":
            case "raises":
                raise KeyError("second batch")
            case "fewer images":
                return logit_BC[1:]
            case "names":
                return {"logits": logit_BC}
            case "memory":
                raise torch.OutOfMemoryError("CUDA error: out of memory")
        return logit_BC


@register_model
def student_moody(pretrained: bool = False, **options: Any) -> nn.Module:
    return Moody("")


@pytest.mark.parametrize(
    ("fault", "model", "error", "words"),
    [
        ("raises", "student_moody", ValueError, f"{__name__}:student_moody fails in evaluation mode, on 4 images: Key"),
        ("fewer images", "student_moody", ValueError, r"student_moody fails in .*shape \(4, 7\), got \(3, 7\)"),
        ("names", "student_moody", ValueError, "student_moody fails in evaluation mode"),
        ("memory", "student_moody", torch.OutOfMemoryError, "out of memory"),
        ("raises", "deit_tiny_patch16_224", KeyError, "second batch"),
    ],
)
def test_a_network_of_the_users_that_fails_in_a_later_batch_is_named(
    fault: str, model: str, error: type[Exception], words: str, reader: ShardReader
) -> None:
    """It answers when it is tried, and a whole epoch of training; then its evaluation was "a defect"."""
    views = eval_views(RECIPE, ViewRecipe(), block_size=4)
    loaded = eval_batches(reader, views, world=World(), workers=0)
    forward = Forward(views=views, device=torch.device("cpu"), model=model)
    with pytest.raises(error, match=words) as refused:
        list(evaluate(Moody(fault), loaded, forward, num_own=SAMPLES))
    assert len(str(refused.value)) <= 600 and "\n" not in str(refused.value)


def test_the_model_is_left_in_the_mode_it_was_in(reader: ShardReader) -> None:
    """A student that is evaluated within a run trains on, also when the evaluation is abandoned."""
    views = eval_views(RECIPE, ViewRecipe(), block_size=4)
    model = student(True).train()
    run(model, reader, views, 1)
    assert model.training
    loaded = eval_batches(reader, views, world=World(), workers=0)
    events = evaluate(model, loaded, Forward(views=views, device=torch.device("cpu")), num_own=9)
    next(events)
    assert not model.training
    events.close()
    assert model.training


def test_tied_and_broken_logits_have_one_meaning() -> None:
    """The lower class wins a tie; NaN compares false with everything and would otherwise be always right."""
    nan, inf = float("nan"), float("inf")
    logit_BC = torch.tensor([[1.0, 1, 0], [1, 1, 0], [nan, 0, 0], [0, nan, 0], [inf, 0, 0], [0, 0, 3]])
    assert label_rank(logit_BC, torch.tensor([0, 1, 0, 0, 0, 2])).tolist() == [0, 1, 3, 3, 3, 0]
    counts = count_hits(Heads(torch.full((4, 9), nan), None), torch.zeros(4, dtype=torch.int64))
    assert counts.tolist() == [4, 4, 0, 0, 0, 0, 0, 0]


def test_ranks_agree_with_sorting() -> None:
    """Law: the rank of a label is its place in a stable descending sort, ties and all."""
    rng = torch.Generator().manual_seed(0)
    logit_BC = torch.randint(0, 4, (200, 9), generator=rng).float()
    label_B = torch.randint(0, 9, (200,), generator=rng)
    order = torch.sort(logit_BC, dim=1, descending=True, stable=True).indices
    assert label_rank(logit_BC, label_B).tolist() == (order == label_B[:, None]).int().argmax(1).tolist()


def test_metrics_are_percent_of_the_answer_and_of_each_head() -> None:
    """The answer at inference is the average where there are two heads."""
    result = EvalResult(num_samples=8, num_not_finite=0, top1={"cls": 2, "dist": 3, "average": 4},
                        top5={"cls": 5, "dist": 6, "average": 8})  # fmt: skip
    metrics = result.metrics()
    assert (metrics["top1"], metrics["top5"]) == (50.0, 100.0)
    assert (metrics["cls_top1"], metrics["dist_top1"], metrics["average_top5"]) == (25.0, 37.5, 100.0)
    single = EvalResult(num_samples=4, num_not_finite=0, top1={"cls": 1}, top5={"cls": 2})
    assert single.metrics() == {"top1": 25.0, "top5": 50.0, "cls_top1": 25.0, "cls_top5": 50.0}


def test_evaluation_uses_the_normalisation_of_the_training() -> None:
    """And the recipe's crop and resolution."""
    train = ViewRecipe(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    views = eval_views(replace(RECIPE, eval_crop_pct=1.0), train)
    assert (views.mean, views.std, views.crop, views.crop_pct, views.size) == (
        train.mean,
        train.std,
        "center",
        1.0,
        SIZE,
    )
    assert not views.mixes and views.flip == 0 and views.rand_augment == ""


def test_agreement_and_entropies_are_what_they_say() -> None:
    """Agreement looks at the head that learns from the teacher; a uniform answer has entropy log C."""
    cls, dist = torch.tensor([[9.0, 0, 0, 0]]).repeat(4, 1), torch.tensor([[0.0, 9, 0, 0]]).repeat(4, 1)
    hard_B = torch.tensor([1, 1, 1, 0])
    assert teacher_stats(Heads(cls, dist), TeacherAnswer(hard_B))["teacher_agreement"].item() == 0.75
    assert teacher_stats(Heads(cls, None), TeacherAnswer(hard_B))["teacher_agreement"].item() == 0.25
    uniform = torch.zeros(4, 4)
    answer = TeacherAnswer(hard_B, lambda tau: torch.log_softmax(uniform / tau, -1))
    stats = teacher_stats(Heads(uniform, None), answer, 3.0)
    assert stats["student_entropy"].item() == pytest.approx(np.log(4))
    assert stats["teacher_entropy"].item() == pytest.approx(np.log(4))
    assert set(teacher_stats(Heads(uniform, None), None)) == {"student_entropy"}


def test_workers_change_nothing(reader: ShardReader, tmp_path: Path) -> None:
    """The batches are those of the main process."""
    views = eval_views(RECIPE, ViewRecipe(), block_size=4)
    alone = list(eval_batches(reader, views, world=World(), workers=0))
    helped = list(eval_batches(reader, views, world=World(), workers=2))
    assert all(np.array_equal(a.view_BHWC, b.view_BHWC) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("count", [1, 3])
def test_readers_in_step_see_every_batch_and_keep_no_other(count):
    """With what they keep, workers could not render into it again."""
    made = []

    def batches():
        for number in range(80):
            pixels = np.full((1, 1, 1, 3), number, np.uint8)
            made.append(weakref.ref(pixels))
            yield SimpleNamespace(view_BHWC=pixels)
            del pixels

    for number, together in enumerate(zip(*in_step(batches(), count), strict=True)):
        assert [batch.view_BHWC[0, 0, 0, 0] for batch in together] == [number] * count
        assert sum(pixels() is not None for pixels in made) <= 2
    assert number == 79
