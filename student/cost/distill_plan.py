"""Plan how `distill` spends a time budget: on epochs of the teacher, views of the cache, and two students.

Everything follows from one measured rate, at which the teacher is trained.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from shards.data_defaults import SMALL_VIEW, epoch_seconds
from shards.index.shard_index import ShardIndex
from shards.text.figures import count, duration, plural
from shards.views.view_recipe import RECIPES, default_block_views, fitting_block_size

FORWARDS_PER_TRAINED = 2.5
"""Images that the teacher answers in the time in which it learns from one: there is no backward pass."""

_TEACHER = 0.4  # of the budget, at most
_CACHE = 0.25  # of what the teacher leaves
_REST = 0.2  # of what the cache leaves: start-up, validation, report
_LEAST_STUDENT_S, _LEAST_REST_S = 30.0, 20.0
_FEWEST_VIEWS, _MOST_VIEWS, _UNIT = 6, 120, 6
_ROUNDING_S = 1e-3  # a plan uses all of its budget, and the sum of its parts is rounded


class DistillPlan(NamedTuple):
    """How long each part of `distill` takes, seconds; `student_s` is of one of the two students."""

    epochs: int
    teacher_s: float
    num_views: int
    cache_s: float
    student_s: float
    rest_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.teacher_s + self.cache_s + 2 * self.student_s + self.rest_s

    def fits(self, budget_s: float, used_s: float = 0.0) -> bool:
        """Whether it takes at most what is left of a budget."""
        return used_s + self.total_s <= budget_s + _ROUNDING_S

    def words(self, budget_s: float, images_per_s: float, used_s: float = 0.0) -> str:
        """Describe the parts and the total; where the budget is too small, why, and what to change.

        Args:
            used_s: of the budget, before the plan begins.
        """
        parts = (
            f"teacher {duration(self.teacher_s)} ({count(self.epochs, 'epoch')}), its answers {duration(self.cache_s)} "
            f"({count(self.num_views, 'view')} of each photo), two students {duration(self.student_s)} each"
        )
        if self.fits(budget_s, used_s):
            return f"plan: about {duration(self.total_s)}: {parts}"
        whole_s = used_s + self.total_s
        minutes, budget = math.ceil(whole_s / 60), f"{budget_s / 60:g} {plural(budget_s / 60, 'minute')}"
        before = f"until now {duration(used_s)}, " if used_s >= 1 else ""
        return (
            f"warning: this takes about {duration(whole_s)}, --budget is {budget}: {before}{parts}. The machine "
            f"trains the teacher at {images_per_s:.3g} images/s. To change this, press Ctrl-C and give fewer "
            f"photos, a smaller network with --pretrained, or --budget {minutes}"
        )


def plan_within(
    budget_s: float,
    images_per_s: float,
    *,
    num_training: int,
    num_validation: int,
    most_epochs: int,
    fewest_views: int = _FEWEST_VIEWS,
) -> DistillPlan:
    """Return the plan that fits a budget, or the smallest one, where none fits.

    Args:
        images_per_s: at which the teacher is trained.
        most_epochs: of the teacher. fewest_views: of the cache.
    """
    epoch_s = epoch_seconds(num_training + num_validation / FORWARDS_PER_TRAINED, images_per_s)
    for epochs in range(min(max(int(_TEACHER * budget_s / epoch_s), 1), most_epochs), 0, -1):
        left_s = max(0.0, budget_s - epochs * epoch_s)
        num_views = max(fewest_views, views_within(cache_seconds(left_s), images_per_s, num_training))
        cache_s = num_views * num_training / FORWARDS_PER_TRAINED / images_per_s
        plan = DistillPlan(
            epochs=epochs,
            teacher_s=epochs * epoch_s,
            num_views=num_views,
            cache_s=cache_s,
            student_s=student_seconds(left_s - cache_s),
            rest_s=_rest_seconds(left_s - cache_s),
        )
        if plan.fits(budget_s):
            break
    return plan


def views_within(seconds: float, images_per_s: float, num_images: int) -> int:
    """Return how many views of each image the teacher can answer in a time, by the rate at which it was trained."""
    units = int(seconds * FORWARDS_PER_TRAINED * images_per_s / num_images / _UNIT)
    return min(max(units * _UNIT, _FEWEST_VIEWS), _MOST_VIEWS)


def cache_seconds(left_s: float) -> float:
    """Return the time for the teacher's answers, of the time that its training has left."""
    return max(0.0, min(_CACHE * left_s, left_s - 2 * _LEAST_STUDENT_S - _LEAST_REST_S))


def student_seconds(left_s: float) -> float:
    """Return the time for one of two students, of the time that teacher and cache have left."""
    return max(_LEAST_STUDENT_S, (left_s - _rest_seconds(left_s)) / 2)


def _rest_seconds(left_s: float) -> float:
    return max(_LEAST_REST_S, _REST * left_s)


def views_for_all(index: ShardIndex, wanted: int = _FEWEST_VIEWS) -> int:
    """Return the smallest number of views, from `wanted` on, of which a cache leaves no image out (law 11).

    In each chunk of views the images that fill no mixing group are left out, others in each. `wanted` where no number
    up to 120 helps.
    """
    from student.feed.coverage import left_over_in_all  # imports torch, which a refusal of flags does not wait for
    from student.feed.order import Order

    rows = index.rows_S.tolist()
    for num_views in range(wanted, _MOST_VIEWS + 1, _UNIT):
        # The seed and the sizes of groups and chunks decide who is left out; cache-teacher chooses them in this way.
        recipe = replace(RECIPES[SMALL_VIEW], block_views=default_block_views(num_views, rows))
        recipe = replace(recipe, block_size=fitting_block_size(recipe.block_size, rows))
        order = Order(rows_S=index.rows_S, recipe=recipe, batch_size=recipe.block_size, num_views=num_views)
        if not left_over_in_all(index, order, num_views).any():
            return num_views
    return wanted
