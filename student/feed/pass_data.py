"""What the students of a pass look at, and in which order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.index.shard_index import ShardIndex
from shards.world import World
from student.feed.cache_check import Views
from student.feed.epoch_plan import EpochPlan, Span, epoch_plan, epoch_views, schedule, steps_per_epoch
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Training and validation shards, the view recipe and how many views are cycled through."""

    index: ShardIndex
    val_index: ShardIndex | None
    views: Views
    shard_cache_dir: Path | None

    @property
    def rows_S(self) -> NDArray[np.int64]:  # noqa: N802  # shape-suffixed as everywhere
        """Samples per training shard."""
        return self.index.rows_S

    def check(self, recipe: StudentRecipe, settings: TrainSettings, world: World) -> EpochPlan:
        """The first epoch's plan.

        Errors:
            ValueError when batch, blocks, repeats, ranks and accumulation do not fit; ShardError when the validation
            shards number their classes differently.
        """
        self._require_same_classes()
        plan = self.plan(recipe, settings.seed, 0)
        plan.items(0, 0, world.size * settings.accumulate)
        return plan

    def _require_same_classes(self) -> None:
        index, val = self.index, self.val_index
        if val is None or (val.num_classes, val.class_names) == (index.num_classes, index.class_names):
            return
        if val.num_classes == index.num_classes and () in (val.class_names, index.class_names):
            return  # one of them does not know its names
        pairs = zip(index.class_names, val.class_names, strict=False)
        first = next((n for n, (a, b) in enumerate(pairs) if a != b), min(index.num_classes, val.num_classes))
        raise ShardError(
            f"{val.path or 'validation shards'}: expected the {index.num_classes} classes of the training shards in "
            f"their order, got {val.num_classes}, other from class {first} on; give the same "
            "--class-names (or check-shards --num-classes) for both"
        )

    def plan(self, recipe: StudentRecipe, seed: int, epoch: int) -> EpochPlan:
        """The order of an epoch."""
        return epoch_plan(
            self.rows_S,
            recipe=self.views.recipe,
            seed=seed,
            epoch=epoch,
            batch_size=recipe.batch_size,
            repeats=recipe.repeats,
            num_views=self.views.num_views,
        )

    def steps_per_epoch(self, recipe: StudentRecipe) -> int:
        """Optimiser steps of every epoch."""
        return steps_per_epoch(self.rows_S, recipe=self.views.recipe, batch_size=recipe.batch_size)

    def epoch_views(self, recipe: StudentRecipe) -> list[range]:
        """The views of each epoch."""
        return [
            epoch_views(epoch, recipe=self.views.recipe, repeats=recipe.repeats, num_views=self.views.num_views)
            for epoch in range(recipe.epochs)
        ]

    def schedule(self, recipe: StudentRecipe) -> list[Span]:
        """The views of the run, one span per pass over the cache."""
        return schedule(recipe.epochs, recipe=self.views.recipe, repeats=recipe.repeats, num_views=self.views.num_views)

    def identity(self) -> dict[str, Any]:
        """What decides the pixels and their order, as JSON types."""
        return {
            "shards": self.index.fingerprint,
            "views": self.views.recipe.to_json(),
            "num_views": self.views.num_views,
        }
