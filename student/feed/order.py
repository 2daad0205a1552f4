"""Compute the order of a run as a pure function (law 8): the blocks and views of every step of every epoch.

The unit of order is the block-view: one block of one shard under one view. A *super-epoch* of `repeats` epochs is one
stream that visits every full block once, each with `repeats` consecutive views; its epochs are cuts of equal length of
that stream. With `repeats` = 3 an epoch therefore sees a third of the images in three views each, which is repeated
augmentation (Hoffer et al. 2020; DeiT section 5.4), and the r views of a block share one decode.

Only `EpochPlan.blocks` knows of ranks: it cuts a step in equal contiguous parts. A rank of W is one part of W,
micro-batch m of A on that rank is part rank·A + m of W·A. Resuming at step s is slicing.

Legend: S shards, I block-views of the epoch in order, P block-views of one part of a step.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.rng import stream
from shards.text.figures import count
from shards.views.blocks import BlockViews
from shards.views.view_recipe import ViewRecipe
from shards.world import ALONE, World
from student.recipe.steps import require_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The whole order of one epoch: `steps` steps of `blocks_per_step` block-views, int32 (I,) arrays.

    `views_per_unit` are the consecutive views that are drawn over the same blocks.
    """

    shard_I: NDArray[np.int32]
    block_I: NDArray[np.int32]
    view_I: NDArray[np.int32]
    blocks_per_step: int
    views_per_unit: int
    steps: int
    num_left_out: int
    """Samples of the index that no step of this super-epoch reaches: remainders of shards, and of the last batch."""

    def blocks(self, step: int, part: int = 0, parts: int = 1) -> list[BlockViews]:
        """Return part `part` of `parts` of a step: blocks in order, with the runs of views that one decode serves.

        A run ends where the shard, the block or the unit changes or the views stop being consecutive.

        Raises:
            ValueError: a missing step; `parts` does not divide the blocks of a step.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is not in this epoch of {count(self.steps, 'step')}")
        if self.blocks_per_step % parts != 0 or not 0 <= part < parts:
            raise ValueError(
                f"part {part} of {parts}: a step of {count(self.blocks_per_step, 'block')} cannot be cut so; "
                "world size × accumulation must divide batch size / block size"
            )
        width = self.blocks_per_step // parts
        lo = step * self.blocks_per_step + part * width
        cut = slice(lo, lo + width)
        shard_P, block_P, view_P = self.shard_I[cut], self.block_I[cut], self.view_I[cut]
        same = (
            (np.diff(shard_P) == 0)
            & (np.diff(block_P) == 0)
            & (np.diff(view_P) == 1)
            & (np.diff(view_P // self.views_per_unit) == 0)
        )
        starts = np.concatenate(([0], np.flatnonzero(~same) + 1, [width])).tolist()
        return [
            BlockViews(int(shard_P[first]), int(block_P[first]), tuple(view_P[first:end].tolist()))
            for first, end in pairwise(starts)
        ]


class Span(NamedTuple):
    """Epochs [first_epoch, last_epoch] walk the views [first_view, last_view] in order: one line of the schedule."""

    first_epoch: int
    last_epoch: int
    first_view: int
    last_view: int


class Position(NamedTuple):
    """A micro-batch of one rank: its epoch, optimiser step and number within the step, each from 0."""

    epoch: int
    step: int
    micro: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """What decides the order of the batches, and this rank's part of it.

    Attributes:
        rows_S: samples per shard, int64 (S,).
        recipe: of the views; gives block_size and block_views.
        num_views: views that are cycled through; None when they never end.
        seed: of the order alone. batch_size: views per optimiser step over all ranks.
        repeats: views of a block in one super-epoch.
        world: this rank among all. accumulate: micro-batches per optimiser step and rank.
        epochs: how many there will be; None: any number.

    Raises:
        ValueError: naming the field, when the numbers do not fit each other or no step would remain.
    """

    rows_S: NDArray[np.int64]
    recipe: ViewRecipe
    batch_size: int
    num_views: int | None = None
    seed: int = 0
    repeats: int = 1
    world: World = ALONE
    accumulate: int = 1
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Check every field, and that the parts divide a step."""
        require_steps(
            np.asarray(self.rows_S).tolist(),
            self.recipe,
            batch_size=self.batch_size,
            repeats=self.repeats,
            num_views=self.num_views,
            epochs=self.epochs,
            parts=self.parts,
        )

    @property
    def parts(self) -> int:
        """Micro-batches that make an optimiser step, over all ranks."""
        return self.world.size * self.accumulate

    @property
    def cycle(self) -> int | None:
        """Epochs after which the views start again: those of the run, else of the cache; None: the views never end."""
        return self.num_views if self.epochs is None else self.epochs

    @property
    def steps(self) -> int:
        """Optimiser steps of every epoch: full blocks of all shards // blocks of a step."""
        return int(self._blocks_S.sum()) // self._blocks_per_step

    @property
    def images_per_epoch(self) -> int:
        """Distinct images of epoch 0: those of its blocks. Where `repeats` cuts a block's views, other epochs vary."""
        return -(-self.steps * self._blocks_per_step // self.repeats) * self.recipe.block_size

    def plan(self, epoch: int) -> EpochPlan:
        """Return the whole order of an epoch, the same on every rank; ValueError for a negative epoch."""
        first_view = self.views(epoch).start
        super_epoch, phase = divmod(epoch, self.repeats)
        order = stream(self.seed, "order", super_epoch).permutation(int(self._blocks_S.sum()))
        per_epoch = self.steps * self._blocks_per_step
        item_I = np.arange(phase * per_epoch, (phase + 1) * per_epoch)
        which_I = order[item_I // self.repeats]
        last_S = np.cumsum(self._blocks_S)
        shard_I = np.searchsorted(last_S, which_I, side="right")
        block_I = which_I - (last_S - self._blocks_S)[shard_I]
        return EpochPlan(
            shard_I=shard_I.astype(np.int32),
            block_I=block_I.astype(np.int32),
            view_I=(first_view + item_I % self.repeats).astype(np.int32),
            blocks_per_step=self._blocks_per_step,
            views_per_unit=self.recipe.block_views,
            steps=self.steps,
            num_left_out=int(np.sum(self.rows_S)) - per_epoch * self.recipe.block_size,
        )

    def views(self, epoch: int) -> range:
        """Return the consecutive views that an epoch draws from: r·(e // r) … + r, modulo the views of the cache."""
        if epoch < 0:
            raise ValueError(f"epoch: must be at least 0, got {epoch}")
        first = self.repeats * (epoch // self.repeats)
        if self.num_views is not None:
            first %= self.num_views
        return range(first, first + self.repeats)

    def schedule(self, epochs: int) -> list[Span]:
        """Return the views of the first epochs, one span per pass over the cache: what a run prints at its start."""
        spans: list[Span] = []
        for epoch in range(epochs):
            views = self.views(epoch)
            if spans and views.start >= spans[-1].first_view and not (views.start == 0 and epoch % self.repeats == 0):
                spans[-1] = spans[-1]._replace(last_epoch=epoch, last_view=views[-1])
            else:
                spans.append(Span(epoch, epoch, views.start, views[-1]))
        return spans

    def view_blocks(self, epochs: int) -> list[int]:
        """Return the view blocks that the first epochs read, ascending."""
        return sorted({self.views(epoch).start // self.recipe.block_views for epoch in range(epochs)})

    def tasks(self, position: Position) -> Iterator[tuple[Position, list[BlockViews]]]:
        """Yield this rank's micro-batches from a position to the end of the run; reaching the first costs no I/O."""
        epoch, first_step, micro = position
        assert micro == 0, "a step is entered at its first micro-batch"
        epochs = itertools.count(epoch) if self.epochs is None else range(epoch, self.epochs)
        for number in epochs:
            plan = self.plan(number)
            for step in range(first_step if number == epoch else 0, plan.steps):
                for micro in range(self.accumulate):
                    blocks = plan.blocks(step, self.world.rank * self.accumulate + micro, self.parts)
                    yield Position(number, step, micro), blocks

    @property
    def _blocks_S(self) -> NDArray[np.int64]:  # noqa: N802  # shape-suffixed as everywhere
        """Full blocks per shard, int64 (S,)."""
        return np.asarray(self.rows_S, dtype=np.int64) // self.recipe.block_size

    @property
    def _blocks_per_step(self) -> int:
        return self.batch_size // self.recipe.block_size
