"""The order of an epoch as a pure function (law 8), and the views each epoch uses.

The unit of order is the block-view: one block of one shard under one view. A *super-epoch* of `repeats` epochs is one
stream that visits every full block once, each with `repeats` consecutive views; its epochs are cuts of equal length of
that stream. With `repeats` = 3 an epoch therefore sees a third of the images in three views each, which is repeated
augmentation (Hoffer et al. 2020; DeiT section 5.4), and the r views of a block share one decode.

Nothing here knows about ranks or workers except `EpochPlan.items`, which cuts a step in equal contiguous parts: a
rank of W is one part of W, micro-batch m of A on that rank is part rank·A + m of W·A. Resuming at step s is slicing.

Legend: S shards, I block-views of the epoch in order, P block-views of one part of a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.rng import stream
from shards.views.blocks import BlockViews
from shards.views.view_recipe import ViewRecipe


class Items(NamedTuple):
    """Block-views in order: the content of a step or of a part of it. int32 (P,) each."""

    shard_P: NDArray[np.int32]
    block_P: NDArray[np.int32]
    view_P: NDArray[np.int32]

    def groups(self, block_views: int) -> Iterator[BlockViews]:
        """Yield the blocks with the runs of views that one decode serves, in order.

        A run is cut where the shard, the block or the view block changes or the views stop being consecutive, so the
        views of a run are always drawn over the same blocks.
        """
        if len(self.shard_P) == 0:
            return
        same = (
            (np.diff(self.shard_P) == 0)
            & (np.diff(self.block_P) == 0)
            & (np.diff(self.view_P) == 1)
            & (np.diff(self.view_P // block_views) == 0)
        )
        starts = np.concatenate(([0], np.flatnonzero(~same) + 1, [len(self.shard_P)]))
        for lo, hi in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            views = tuple(int(view) for view in self.view_P[lo:hi])
            yield BlockViews(int(self.shard_P[lo]), int(self.block_P[lo]), views)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The whole order of one epoch: `steps` steps of `blocks_per_step` block-views, int32 (I,) arrays."""

    shard_I: NDArray[np.int32]
    block_I: NDArray[np.int32]
    view_I: NDArray[np.int32]
    blocks_per_step: int
    steps: int
    num_left_out: int
    """Samples of the index that no step of this super-epoch reaches: remainders of shards, and of the last batch."""

    def items(self, step: int, part: int, parts: int) -> Items:
        """Part `part` of `parts` of step `step`; ValueError unless `parts` divides the step's blocks."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is not in this epoch of {self.steps} steps")
        if self.blocks_per_step % parts != 0 or not 0 <= part < parts:
            raise ValueError(
                f"part {part} of {parts}: a step of {self.blocks_per_step} blocks cannot be cut so; "
                "world size × accumulation must divide batch size / block size"
            )
        width = self.blocks_per_step // parts
        lo = step * self.blocks_per_step + part * width
        cut = slice(lo, lo + width)
        return Items(self.shard_I[cut], self.block_I[cut], self.view_I[cut])

    def rank_items(self, step: int, rank: int, world: int) -> Items:
        """A rank's contiguous slice of the global batch of `step`."""
        return self.items(step, rank, world)


def epoch_plan(
    rows_S: NDArray[np.int64],
    *,
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    batch_size: int,
    repeats: int = 1,
    num_views: int | None = None,
) -> EpochPlan:
    """The order of epoch `epoch`, the same for every world size, worker count and moment of asking.

    Args:
        rows_S: samples per shard, int64 (S,).
        recipe: gives block_size and block_views.
        seed: the run's seed; the order has its own stream.
        epoch: from 0.
        batch_size: views per optimiser step over all ranks; a multiple of recipe.block_size.
        repeats: views of one block in one super-epoch.
        num_views: views in the cache, cycled through; None when there is no cache and views never end.

    Raises:
        ValueError: naming the argument, when the numbers do not fit each other or no step would remain.
    """
    blocks_per_step = _blocks_per_step(recipe, batch_size)
    first_view = epoch_views(epoch, recipe=recipe, repeats=repeats, num_views=num_views).start
    blocks_S = np.asarray(rows_S, dtype=np.int64) // recipe.block_size
    num_blocks = int(blocks_S.sum())
    steps = num_blocks // blocks_per_step
    if steps == 0:
        raise ValueError(
            f"batch_size {batch_size} needs {blocks_per_step} full blocks of {recipe.block_size} samples, the shards "
            f"have {num_blocks} (a shard gives samples // block size); lower the batch size or use larger shards"
        )
    super_epoch, phase = divmod(epoch, repeats)
    order = stream(seed, "order", super_epoch).permutation(num_blocks)
    per_epoch = steps * blocks_per_step
    item_I = np.arange(phase * per_epoch, (phase + 1) * per_epoch)
    which_I = order[item_I // repeats]
    last_S = np.cumsum(blocks_S)
    shard_I = np.searchsorted(last_S, which_I, side="right")
    block_I = which_I - (last_S - blocks_S)[shard_I]
    return EpochPlan(
        shard_I=shard_I.astype(np.int32),
        block_I=block_I.astype(np.int32),
        view_I=(first_view + item_I % repeats).astype(np.int32),
        blocks_per_step=blocks_per_step,
        steps=steps,
        num_left_out=int(np.sum(rows_S)) - per_epoch * recipe.block_size,
    )


def steps_per_epoch(rows_S: NDArray[np.int64], *, recipe: ViewRecipe, batch_size: int) -> int:
    """Steps of every epoch: full blocks of all shards // blocks per step (0 when there are too few)."""
    return int((np.asarray(rows_S) // recipe.block_size).sum()) // _blocks_per_step(recipe, batch_size)


def epoch_views(epoch: int, *, recipe: ViewRecipe, repeats: int, num_views: int | None) -> range:
    """The consecutive views that epoch `epoch` draws from: r·(e // r) … + r, modulo the views of the cache."""
    if epoch < 0:
        raise ValueError(f"epoch: must be at least 0, got {epoch}")
    if repeats < 1 or recipe.block_views % repeats != 0:
        raise ValueError(
            f"repeats: must divide block_views {recipe.block_views} of recipe {recipe.name}, got {repeats}; "
            "views of one block must lie in one view block"
        )
    first = repeats * (epoch // repeats)
    if num_views is not None:
        if num_views < 1 or num_views % repeats != 0:
            raise ValueError(f"num_views: must be a positive multiple of repeats {repeats}, got {num_views}")
        first %= num_views
    return range(first, first + repeats)


class Span(NamedTuple):
    """Epochs [first_epoch, last_epoch] walk the views [first_view, last_view] in order: one line of the schedule."""

    first_epoch: int
    last_epoch: int
    first_view: int
    last_view: int


def schedule(epochs: int, *, recipe: ViewRecipe, repeats: int, num_views: int | None) -> list[Span]:
    """The views of all epochs, one span per pass over the cache; what a run prints before its first step."""
    spans: list[Span] = []
    for epoch in range(epochs):
        views = epoch_views(epoch, recipe=recipe, repeats=repeats, num_views=num_views)
        if spans and views.start >= spans[-1].first_view and not (views.start == 0 and epoch % repeats == 0):
            spans[-1] = spans[-1]._replace(last_epoch=epoch, last_view=views[-1])
        else:
            spans.append(Span(epoch, epoch, views.start, views[-1]))
    return spans


def needed_view_blocks(
    epochs: int, *, recipe: ViewRecipe, repeats: int, num_views: int | None, first_epoch: int = 0
) -> list[int]:
    """The view blocks that epochs [first_epoch, epochs) read, ascending."""
    blocks = {
        epoch_views(epoch, recipe=recipe, repeats=repeats, num_views=num_views).start // recipe.block_views
        for epoch in range(first_epoch, epochs)
    }
    return sorted(blocks)


def _blocks_per_step(recipe: ViewRecipe, batch_size: int) -> int:
    if batch_size < 1 or batch_size % recipe.block_size != 0:
        raise ValueError(
            f"batch_size: must be a positive multiple of block_size {recipe.block_size} of recipe {recipe.name}, "
            f"got {batch_size}; a block is mixed within itself and cannot be cut"
        )
    return batch_size // recipe.block_size
