"""Adapt a recipe's defaults to the size of the data set and to the cached views.

The recipes are the papers', made for the 1,281,167 images of ImageNet-1k; from a million images on they stay as they
are. A batch of 1,024 is one step an epoch of a thousand images, and a weight average over 25,000 steps never leaves the
initial weights of a run of 1,200. Every changed default has a reason in words; fields that the user set stay, and an
existing run keeps its values. This file imports no torch.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from shards.data_defaults import PAPERS_SET, batch_of_few
from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe, fitting_block_size, fitting_repeats
from student.recipe.student_recipe import StudentRecipe

ADAPTED = ("repeats", "batch_size", "lr", "lr_scaling", "warmup_epochs", "ema_decay")
"""The recipe fields that are adapted unless the user sets them."""
OF_UNLABELLED = ("distill_weight", "teacher_heads")
"""Those that are adapted where training images have no label."""

_STEPS = 50  # optimiser steps of an epoch that a batch should leave
_SMALL_BATCH = 32  # a batch that was meant for a small set stays, unless it leaves many images out
_BATCH = 16  # no smaller batch is chosen while one fits
_WARM_STEPS = 200  # a warm-up is a matter of steps: AdamW's second moments average over 1,000
_AVERAGED = 15  # of a run's steps, one in so many is in the weight average: DeiT's 25,000 of 375,300


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a run, or each run of a sweep, is trained on.

    Attributes:
        views: the view recipe.
        num_views: how many views are cycled through, one number a run; empty where they never end.
        shard_rows: samples of each training shard; empty where the size of the set is not known.
        num_unlabelled: how many of them have no label.
        parts: ranks × micro-batches; each takes whole blocks of a batch.
        before: recipe fields of the existing run, when the same command is given again.
    """

    views: ViewRecipe
    num_views: tuple[int, ...] = ()
    shard_rows: tuple[int, ...] = ()
    num_unlabelled: int = 0
    parts: int = 1
    before: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_small(self) -> bool:
        """Whether the set is known to be smaller than what the papers' recipes were made for."""
        return 0 < sum(self.shard_rows) < PAPERS_SET

    @property
    def num_images(self) -> int:
        """Images of an epoch: those of full blocks."""
        size = self.views.block_size
        return sum(rows // size * size for rows in self.shard_rows)


class Suited(NamedTuple):
    """A recipe adapted to the data, and the reasons: one sentence for each change."""

    recipe: StudentRecipe
    reasons: tuple[str, ...]


class _Change(NamedTuple):
    """New values of recipe fields, and the reason in words."""

    fields: Mapping[str, Any]
    reason: str


def with_fitting_blocks(
    recipe: StudentRecipe, cached: ViewRecipe | None, rows: Sequence[int]
) -> tuple[StudentRecipe, tuple[str, ...]]:
    """Lower the block size to what the shards can fill, and say why; the blocks of a cache stay.

    Args:
        rows: samples of each training shard.
    """
    default = recipe.view_recipe.block_size
    size = fitting_block_size(default, rows)
    if cached is not None or size == default or "block_size" in dict(recipe.view_overrides):
        return recipe, ()
    overrides = (*recipe.view_overrides, ("block_size", size))
    reason = f"blocks of {count(size, 'sample')} instead of {default}: no shard holds more than {max(rows)}"
    return replace(recipe, view_overrides=overrides), (reason,)


def suited(recipe: StudentRecipe, data: TrainingData, *, set_by_user: Collection[str]) -> Suited:
    """Adapt the fields that the user did not set to the data.

    Args:
        set_by_user: names of the fields that the user set.
    """
    adapted = (*ADAPTED, *OF_UNLABELLED) if data.num_unlabelled else ADAPTED
    free = [name for name in adapted if name not in set_by_user]
    if data.before:
        return Suited(replace(recipe, **{name: data.before[name] for name in free if name in data.before}), ())
    reasons: list[str] = []
    for adapt in (_repeats, _batch, _warm_up, _average, _unlabelled):
        change = adapt(recipe, data, free)
        if change is not None:
            recipe = replace(recipe, **change.fields)
            reasons.append(change.reason)
    return Suited(recipe, tuple(reasons))


def _repeats(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> _Change | None:
    repeats = fitting_repeats(recipe.repeats, block_views=data.views.block_views, num_views=data.num_views)
    if "repeats" not in free or repeats == recipe.repeats:
        return None
    counts = " and ".join(map(str, sorted(set(data.num_views)))) or "no end of"
    return _Change(
        {"repeats": repeats},
        f"repeats {repeats} instead of {recipe.repeats}: the largest number that divides {counts} views and "
        f"their chunks of {data.views.block_views}",
    )


def _batch(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> _Change | None:
    """Lower the batch so that an epoch has enough steps, and the peak learning rate with it."""
    unit = data.views.block_size * data.parts
    if recipe.batch_size <= _SMALL_BATCH and recipe.batch_size % unit == 0 and _steps(recipe.batch_size, data):
        batch = batch_of_few(recipe.batch_size, unit, data.num_images)
        now, before = (data.num_images // size * size for size in (batch, recipe.batch_size))
        why = f": {now} of {count(sum(data.shard_rows), 'image')} an epoch instead of {before}"
    else:
        batch = _fitting_batch(recipe.batch_size, data)
        why = f": {count(_steps(batch, data), 'step')} an epoch of {count(data.num_images, 'image')}"
    if "batch_size" not in free or not data.is_small or batch == recipe.batch_size:
        return None
    changes: dict[str, Any] = {"batch_size": batch}
    reason = f"batch {batch} instead of {recipe.batch_size}{why}"
    if "lr" in free and "lr_scaling" in free and recipe.scaled_lr > recipe.min_lr:
        # Adaptive steps are scaled with the root of the batch; DeiT's linear rule would end near min_lr here.
        lr = max(float(f"{recipe.scaled_lr * math.sqrt(batch / recipe.batch_size):.2g}"), recipe.min_lr)
        changes |= {"lr": lr, "lr_scaling": "none"}
        reason += f", lr {lr:g} instead of {recipe.scaled_lr:g} (square-root scaling)"
    return _Change(changes, reason)


def _fitting_batch(batch: int, data: TrainingData) -> int:
    """Halve the batch until an epoch has enough steps, in whole blocks for every part."""
    unit = data.views.block_size * data.parts
    smallest = -(-_BATCH // unit) * unit
    halves = [batch >> n for n in range(batch.bit_length()) if batch >> n >= smallest and (batch >> n) % unit == 0]
    enough = [half for half in halves if _steps(half, data) >= _STEPS]
    return max(enough) if enough else smallest if _steps(smallest, data) else unit


def _steps(batch: int, data: TrainingData) -> int:
    return data.num_images // batch


def _warm_up(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> _Change | None:
    steps = _steps(recipe.batch_size, data)
    if "warmup_epochs" not in free or not data.is_small or not recipe.warmup_epochs or not steps:
        return None
    epochs = min(-(-_WARM_STEPS // steps), recipe.epochs // 10)
    if epochs <= recipe.warmup_epochs:
        return None
    return _Change(
        {"warmup_epochs": epochs},
        f"warm-up {count(epochs, 'epoch')} instead of {recipe.warmup_epochs:g}: {count(epochs * steps, 'step')}",
    )


def _average(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> _Change | None:
    if "ema_decay" not in free or not data.is_small or not recipe.ema_decay:
        return None
    span, steps = 1 / (1 - recipe.ema_decay), recipe.epochs * _steps(recipe.batch_size, data)
    averaged = max(2, steps // _AVERAGED)
    if averaged >= span:
        return None
    decay = round(1 - 1 / averaged, 6)
    return _Change(
        {"ema_decay": decay},
        f"moving average of the weights (EMA) over {count(averaged, 'step')} instead of {span:,.0f}: the run has "
        f"{count(steps, 'step')}",
    )


def _unlabelled(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> _Change | None:
    """Let every head learn from the teacher where images have no label, and nothing else where none has one."""
    if not data.num_unlabelled:
        return None
    num_images = sum(data.shard_rows)
    fields: dict[str, Any] = {"teacher_heads": "both"} if "teacher_heads" in free else {}
    words = ["every head learns from the teacher"] if fields else []
    nothing = data.num_unlabelled == num_images
    if nothing and "distill_weight" in free:
        fields["distill_weight"] = 1.0
        words.insert(0, "λ = 1")
    some = f"without label: {data.num_unlabelled} of {count(num_images, 'image')}"
    have = "no image has a label" if nothing else some
    return _Change(fields, f"{' and '.join(words)}: {have}") if fields else None
