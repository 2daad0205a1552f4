"""The order of a whole run as one rank sees it: epochs after epochs of micro-batches, from any step on (law 8)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.index.shard_index import ShardIndex
from shards.views.blocks import BlockViews
from shards.views.view_recipe import ViewRecipe
from shards.world import World
from student.feed.cache_check import Views
from student.feed.epoch_plan import EpochPlan, Span, epoch_plan, epoch_views, schedule, steps_per_epoch


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
        seed: of the order alone. batch_size: over all ranks. repeats: views of a block per visit.
        world: this rank among all. accumulate: micro-batches per optimiser step and rank.
        epochs: how many there will be; None: any number.

    Raises:
        ValueError: naming the field, when the numbers do not fit each other.
    """

    rows_S: NDArray[np.int64]
    recipe: ViewRecipe
    num_views: int | None
    seed: int
    batch_size: int
    repeats: int
    world: World
    accumulate: int = 1
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Check them on the first step of the first epoch."""
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {self.epochs}")
        self.plan(0).items(0, 0, self.parts)

    @classmethod
    def of(
        cls,
        index: ShardIndex,
        views: Views,
        world: World,
        *,
        seed: int,
        batch_size: int,
        repeats: int,
        accumulate: int,
        epochs: int | None,
    ) -> "Order":
        """The order of the samples of an index in those views."""
        return cls(
            rows_S=index.rows_S,
            recipe=views.recipe,
            num_views=views.num_views,
            seed=seed,
            batch_size=batch_size,
            repeats=repeats,
            world=world,
            accumulate=accumulate,
            epochs=epochs,
        )

    @property
    def parts(self) -> int:
        """Micro-batches that make an optimiser step, over all ranks."""
        return self.world.size * self.accumulate

    @property
    def steps(self) -> int:
        """Optimiser steps of every epoch."""
        return steps_per_epoch(self.rows_S, recipe=self.recipe, batch_size=self.batch_size)

    def plan(self, epoch: int) -> EpochPlan:
        """The whole order of an epoch, the same on every rank."""
        return epoch_plan(
            self.rows_S,
            recipe=self.recipe,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            repeats=self.repeats,
            num_views=self.num_views,
        )

    def views(self, epoch: int) -> range:
        """The views that an epoch draws from."""
        return epoch_views(epoch, recipe=self.recipe, repeats=self.repeats, num_views=self.num_views)

    def schedule(self, epochs: int) -> list[Span]:
        """The views of so many epochs, one span per pass over the cache."""
        return schedule(epochs, recipe=self.recipe, repeats=self.repeats, num_views=self.num_views)

    def tasks(self, position: Position) -> Iterator[tuple[Position, list[BlockViews]]]:
        """Yield this rank's micro-batches from a position to the end of the run; reaching the first costs no I/O."""
        epoch, first_step, micro = position
        assert micro == 0, "a step is entered at its first micro-batch"
        epochs = itertools.count(epoch) if self.epochs is None else range(epoch, self.epochs)
        for number in epochs:
            plan = self.plan(number)
            for step in range(first_step if number == epoch else 0, plan.steps):
                for micro in range(self.accumulate):
                    items = plan.items(step, self.world.rank * self.accumulate + micro, self.parts)
                    yield Position(number, step, micro), list(items.groups(self.recipe.block_views))
