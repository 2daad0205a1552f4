"""A recipe as the data suit it: what the user did not set is chosen from the size of the set and the cached views.

The recipes are the papers', made for the 1,281,167 images of ImageNet-1k; from a million images on they stay as they
are. A batch of 1,024 is one step an epoch of a thousand images, and a weight average over 25,000 steps never leaves the
initial weights of a run of 1,200. Whatever is chosen is said with its reason; what the user set is never touched, and a
run that is there already keeps what was chosen for it. This file imports no torch.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe, fitting_block_size, fitting_repeats
from student.recipe.student_recipe import StudentRecipe

PAPERS_SET = 1_000_000
"""Images from which on a recipe stays as it is."""

CHOSEN = ("repeats", "batch_size", "lr", "lr_scaling", "warmup_epochs", "ema_decay")
"""The fields that are chosen here when nobody sets them."""

_STEPS = 50  # optimiser steps of an epoch that a batch should leave
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
        parts: ranks × micro-batches; each takes whole blocks of a batch.
        before: recipe fields of the run that is there already, for the same command again.
    """

    views: ViewRecipe
    num_views: tuple[int, ...] = ()
    shard_rows: tuple[int, ...] = ()
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
    """A recipe, and why it is not the one of the paper: one sentence for each setting that was chosen here."""

    recipe: StudentRecipe
    reasons: tuple[str, ...]


def with_fitting_blocks(
    recipe: StudentRecipe, cached: ViewRecipe | None, rows: Sequence[int]
) -> tuple[StudentRecipe, tuple[str, ...]]:
    """The recipe with blocks that the shards can fill, and why; a cache's blocks are as they are.

    Args:
        rows: samples of each training shard.
    """
    wanted = recipe.view_recipe.block_size
    size = fitting_block_size(wanted, rows)
    if cached is not None or size == wanted or "block_size" in dict(recipe.view_overrides):
        return recipe, ()
    overrides = (*recipe.view_overrides, ("block_size", size))
    reason = f"blocks of {size} samples instead of {wanted}: no shard holds more than {max(rows)}"
    return replace(recipe, view_overrides=overrides), (reason,)


def suited(recipe: StudentRecipe, data: TrainingData, *, given: Collection[str]) -> Suited:
    """The recipe with the settings that nobody gave chosen for the data.

    Args:
        given: names of the fields that the user set.
    """
    free = [name for name in CHOSEN if name not in given]
    if data.before:
        return Suited(replace(recipe, **{name: data.before[name] for name in free if name in data.before}), ())
    reasons: list[str] = []
    for choose in (_repeats, _batch, _warm_up, _average):
        changes, reason = choose(recipe, data, free)
        if changes:
            recipe = replace(recipe, **changes)
            reasons.append(reason)
    return Suited(recipe, tuple(reasons))


def _repeats(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> tuple[dict[str, Any], str]:
    repeats = fitting_repeats(recipe.repeats, block_views=data.views.block_views, num_views=data.num_views)
    if "repeats" not in free or repeats == recipe.repeats:
        return {}, ""
    counts = " and ".join(map(str, sorted(set(data.num_views)))) or "no end of"
    return {"repeats": repeats}, (
        f"repeats {repeats} instead of {recipe.repeats}: the largest number that divides {counts} views and "
        f"their units of {data.views.block_views}"
    )


def _batch(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> tuple[dict[str, Any], str]:
    """A batch that leaves enough steps, and the peak learning rate that goes with it."""
    batch = _fitting_batch(recipe.batch_size, data)
    if "batch_size" not in free or not data.is_small or batch == recipe.batch_size:
        return {}, ""
    changes: dict[str, Any] = {"batch_size": batch}
    steps = _steps(batch, data)
    says = (
        f"batch {batch} instead of {recipe.batch_size}: {count(steps, 'step')} an epoch of "
        f"{count(data.num_images, 'image')}"
    )
    if "lr" in free and "lr_scaling" in free and recipe.scaled_lr > recipe.min_lr:
        # Adaptive steps are scaled with the root of the batch; DeiT's linear rule would end near min_lr here.
        lr = max(float(f"{recipe.scaled_lr * math.sqrt(batch / recipe.batch_size):.2g}"), recipe.min_lr)
        changes |= {"lr": lr, "lr_scaling": "none"}
        says += f", lr {lr:g} instead of {recipe.scaled_lr:g}: it goes with the root of the batch"
    return changes, says


def _fitting_batch(batch: int, data: TrainingData) -> int:
    """The batch halved until an epoch has enough steps, in whole blocks for every part."""
    unit = data.views.block_size * data.parts
    smallest = -(-_BATCH // unit) * unit
    halves = [batch >> n for n in range(batch.bit_length()) if batch >> n >= smallest and (batch >> n) % unit == 0]
    enough = [half for half in halves if _steps(half, data) >= _STEPS]
    return max(enough) if enough else smallest if _steps(smallest, data) else unit


def _steps(batch: int, data: TrainingData) -> int:
    return data.num_images // batch


def _warm_up(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> tuple[dict[str, Any], str]:
    steps = _steps(recipe.batch_size, data)
    if "warmup_epochs" not in free or not data.is_small or not recipe.warmup_epochs or not steps:
        return {}, ""
    epochs = min(-(-_WARM_STEPS // steps), recipe.epochs // 10)
    if epochs <= recipe.warmup_epochs:
        return {}, ""
    return {"warmup_epochs": epochs}, (
        f"warm-up {count(epochs, 'epoch')} instead of {recipe.warmup_epochs:g}: {epochs * steps} steps"
    )


def _average(recipe: StudentRecipe, data: TrainingData, free: Collection[str]) -> tuple[dict[str, Any], str]:
    if "ema_decay" not in free or not data.is_small or not recipe.ema_decay:
        return {}, ""
    span, steps = 1 / (1 - recipe.ema_decay), recipe.epochs * _steps(recipe.batch_size, data)
    wanted = max(2, steps // _AVERAGED)
    if wanted >= span:
        return {}, ""
    decay = round(1 - 1 / wanted, 6)
    return {"ema_decay": decay}, (
        f"weight average {decay:g} (over {count(wanted, 'step')}) instead of {recipe.ema_decay:g} "
        f"({span:.0f} of {count(steps, 'step')})"
    )
