"""Evaluation: every sample counted exactly once, whatever the batch size and the number of processes.

Blocks of samples are dealt to the ranks without padding, hits are whole numbers, and their sum over the ranks must be
the number of samples or there is no result. No rank waits for another before it has counted its share, so one that
fails says so instead (`ProcessGroup.on_every_rank`). B batch, C classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.text.figures import count
from shards.views.blocks import BlockViews, ViewBatch, model_input
from shards.views.mixing import num_blocks
from shards.views.rendering import render_ahead
from shards.views.view_recipe import ViewRecipe, recipe_named
from shards.world import World
from student.learn.losses.distill_loss import Answer
from student.learn.network import Heads, heads
from student.learn.timm_model import own_errors
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.arithmetic import arithmetic, autocast
from teacher_cache.network.trial import require_logits

Answers = Callable[[nn.Module, Tensor], Heads]
HEADS = ("cls", "dist", "average")
_ON_GPU, _ON_CPU = 256, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """Hits of an evaluation.

    Attributes:
        num_samples: how many were counted. num_not_finite: answers with NaN or infinity; they count as wrong.
        top1, top5: hits per head: "cls", and with two heads "dist" and "average". With fewer than five classes top5 is
            among all of them.
    """

    num_samples: int
    num_not_finite: int
    top1: dict[str, int]
    top5: dict[str, int]

    def metrics(self) -> dict[str, float]:
        """Percent: "top1" and "top5" of the answer at inference, and "cls_top1", "dist_top1" … of each head."""
        answer = "average" if "average" in self.top1 else "cls"
        named = {"top1": self.top1[answer], "top5": self.top5[answer]}
        for head in self.top1:
            named |= {f"{head}_top1": self.top1[head], f"{head}_top5": self.top5[head]}
        return {name: 100.0 * hits / self.num_samples for name, hits in named.items()}

    @classmethod
    def of_all_ranks(cls, results: "Sequence[EvalResult]", num_samples: int) -> "EvalResult":
        """Return the sum of what the ranks counted; RunError when it is not of `num_samples`."""
        counted = sum(result.num_samples for result in results)
        if counted != num_samples:
            raise RunError(f"evaluation: expected {count(num_samples, 'sample')} over all processes, counted {counted}")
        # A rank without images does not know the heads of its student.
        names = [head for head in HEADS if any(head in result.top1 for result in results)]
        return cls(
            num_samples=counted,
            num_not_finite=sum(result.num_not_finite for result in results),
            top1={head: sum(result.top1.get(head, 0) for result in results) for head in names},
            top5={head: sum(result.top5.get(head, 0) for result in results) for head in names},
        )


class Answered(NamedTuple):
    """A batch with the student's answers on the device; `label_B` are numbers of the student's classes."""

    batch: ViewBatch
    heads: Heads
    label_B: NDArray[np.int64]


class EvalEvent(NamedTuple):
    """Samples this rank has seen so far, and the batch just seen, which is good until the next event.

    The last event carries the result of this rank.
    """

    num_done: int
    result: EvalResult | None = None
    answered: Answered | None = None


def eval_views(recipe: StudentRecipe, train_views: ViewRecipe, *, block_size: int = _ON_CPU) -> ViewRecipe:
    """The one view of evaluation: short side to image_size / eval_crop_pct, centre crop, the training's normalisation.

    Args:
        block_size: samples of a batch.
    """
    return recipe_named(
        "eval",
        size=recipe.image_size,
        crop_pct=recipe.eval_crop_pct,
        mean=train_views.mean,
        std=train_views.std,
        block_size=block_size,
    )


def eval_batch_size(device_type: str, most: int = _ON_GPU) -> int:
    """Return how many images a forward takes: on a CPU 64; on a GPU `most`, but at least 64 and at most 256."""
    return max(_ON_CPU, min(_ON_GPU, most)) if device_type == "cuda" else _ON_CPU


def eval_tasks(rows_S: NDArray[np.int64] | Sequence[int], views: ViewRecipe, world: World) -> list[list[BlockViews]]:
    """A rank's batches: every (shard, block) is dealt to exactly one rank, in turn; empty when there are too few."""
    tasks = [
        [BlockViews(shard, block, [0])]
        for shard, num_rows in enumerate(rows_S)
        for block in range(num_blocks(views, int(num_rows), full_only=False))
    ]
    return tasks[world.rank :: world.size]


def eval_batches(
    reader: ShardReader, views: ViewRecipe, *, world: World, workers: int, pin_memory: bool = False
) -> Iterator[ViewBatch]:
    """Render a rank's share of the shards; ShardError from the reader or decoder."""
    tasks = eval_tasks(reader.index.rows_S, views, world)
    return render_ahead(tasks, reader=reader, recipe=views, workers=workers, pin_memory=pin_memory, died=RunError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """How a student answers the views of an evaluation.

    Attributes:
        views: of `eval_views`. device: of the model.
        precision: "fp32", "tf32", "bf16" or "fp16".
        answers: how a model in evaluation mode is asked; see `answers_of`.
        model: name of the network, for errors of one that the user registered.
    """

    views: ViewRecipe
    device: torch.device
    model: str = ""
    precision: str = "fp32"
    answers: Answers = heads

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: ViewBatch) -> Heads:
        """Return the student's logits for a batch, float32; ValueError where a network of the user's gives none."""
        image_BCHW = model_input(batch, self.views, self.device)
        kind, num_images = self.device.type, len(image_BCHW)
        own = own_errors(self.model, num_images, training=False)
        with arithmetic(kind, self.precision), autocast(kind, self.precision), own:
            answer = self.answers(model, image_BCHW)
            require_logits(answer.all(), answer.cls_BC.shape[-1], num_images)
        return Heads(answer.cls_BC.float(), None if answer.dist_BC is None else answer.dist_BC.float())


def evaluate(
    model: nn.Module,
    loaded: Iterable[ViewBatch],
    forward: Forward,
    *,
    num_own: int,
    class_order: Sequence[int] = (),
) -> Iterator[EvalEvent]:
    """Count the hits of a student on one rank; the model is in evaluation mode meanwhile and as before after.

    Args:
        loaded: this rank's batches of `eval_batches`. num_own: samples of this rank (`own_samples`).
        class_order: for each class of the shards its number among the student's; empty: the same numbers.

    Raises:
        RunError: the samples counted are not `num_own`.
    """
    device = forward.device
    counts = torch.zeros(2 + 2 * len(HEADS), dtype=torch.int64, device=device)
    order_C = np.array(class_order, np.int64)
    was_training, done, two_heads = model.training, 0, torch.zeros(1, dtype=torch.int64, device=device)
    model.eval()
    try:
        for batch in loaded:
            answer = forward(model, batch)
            label_B = order_C[batch.label_B] if len(order_C) else batch.label_B
            counts += count_hits(answer, torch.from_numpy(label_B).to(device, non_blocking=True))
            two_heads += int(answer.dist_BC is not None)
            done += len(batch.label_B)
            yield EvalEvent(done, answered=Answered(batch, answer, label_B))
    finally:
        model.train(was_training)
    values = torch.cat((counts, two_heads)).tolist()
    if values[0] != num_own:
        raise RunError(f"evaluation: expected {count(num_own, 'sample')} in this process, counted {values[0]}")
    yield EvalEvent(done, _result(values))


def answers_of(*, compiled: bool, batch_size: int) -> Answers:
    """Return the function that asks a model in evaluation mode: as it is, or compiled, for batches of one size.

    A compiled one fills smaller batches up, so that the last ones of a shard need no graph of their own.
    """
    if not compiled:
        return heads
    compiled_heads: Answers = torch.compile(heads, dynamic=False)

    def ask(model: nn.Module, image_BCHW: Tensor) -> Heads:
        size = len(image_BCHW)
        cls_BC, dist_BC = compiled_heads(model, pad(image_BCHW, (0, 0, 0, 0, 0, 0, 0, batch_size - size)))
        return Heads(cls_BC[:size], None if dist_BC is None else dist_BC[:size])

    return ask


def count_hits(answer: Heads, label_B: Tensor) -> Tensor:
    """int64 (8,): samples, not finite, then top-1 and top-5 of CLS, DIST and average (zero for heads it has not).

    A class ties behind every class of lower index, so the counts do not depend on a device's sorting.
    """
    by_name = answer.by_name()
    finite_B = torch.isfinite(answer.average()).all(-1)
    counts = [torch.full((), len(label_B), device=label_B.device), (~finite_B).sum()]
    for name in HEADS:
        if name not in by_name:
            counts += [torch.zeros_like(counts[1])] * 2
            continue
        rank_B = label_rank(by_name[name], label_B)
        counts += [(rank_B < 1).sum(), (rank_B < 5).sum()]
    return torch.stack(counts)


def label_rank(logit_BC: Tensor, label_B: Tensor) -> Tensor:
    """Count the classes before the label, int64 (B,); C for rows that are not finite, which are never right."""
    own_B1 = logit_BC.gather(1, label_B[:, None])
    classes = torch.arange(logit_BC.shape[1], device=logit_BC.device)
    before_BC = (logit_BC > own_B1) | ((logit_BC == own_B1) & (classes < label_B[:, None]))
    finite_B = torch.isfinite(logit_BC).all(-1)
    return torch.where(finite_B, before_BC.sum(-1), logit_BC.shape[1])


def _result(values: list[int]) -> EvalResult:
    names = HEADS if values[-1] else HEADS[:1]
    return EvalResult(
        num_samples=values[0],
        num_not_finite=values[1],
        top1={name: values[2 + 2 * HEADS.index(name)] for name in names},
        top5={name: values[3 + 2 * HEADS.index(name)] for name in names},
    )


@torch.no_grad()
def teacher_stats(answered: Heads, answer: Answer | None, temperature: float | None = None) -> dict[str, Tensor]:
    """Compute the statistics of a training batch beside its losses, float32 scalars on the device.

    "student_entropy" of the answer at inference, nats; with a teacher "teacher_agreement", the share of the batch where
    the head that learns from the teacher has its first class, and, with a τ, "teacher_entropy" at τ, nats.
    """
    stats = {"student_entropy": _entropy(torch.log_softmax(answered.average().float(), -1))}
    if answer is not None:
        pupil_BC = answered.cls_BC if answered.dist_BC is None else answered.dist_BC
        stats["teacher_agreement"] = (pupil_BC.argmax(-1) == answer.hard).float().mean()
        if temperature is not None:
            stats["teacher_entropy"] = _entropy(answer.log_prob(temperature))
    return stats


def _entropy(log_prob_BC: Tensor) -> Tensor:
    terms_BC: Tensor = torch.special.entr(log_prob_BC.exp())
    return terms_BC.sum(-1).mean()


def own_samples(rows_S: NDArray[np.int64] | Sequence[int], views: ViewRecipe, world: World) -> int:
    """Count the samples that `eval_tasks` deals to a rank."""
    rows = [int(rows) for rows in rows_S]
    size = views.block_size
    return sum(min(size, rows[part.shard] - part.block * size) for (part,) in eval_tasks(rows, views, world))
