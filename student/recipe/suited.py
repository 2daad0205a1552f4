"""A recipe as the data suit it: what the user did not set is chosen from the views of the cache.

The recipes are those of the papers. A setting that cannot be on this cache is replaced by the nearest that can,
and said with its reason; what the user set is never touched. This file imports no torch.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from shards.views.view_recipe import ViewRecipe, fitting_repeats
from student.recipe.student_recipe import StudentRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a run, or each run of a sweep, is trained on.

    Attributes:
        views: the view recipe.
        num_views: how many views are cycled through, one number a run; empty where they never end.
    """

    views: ViewRecipe
    num_views: tuple[int, ...] = ()


class Suited(NamedTuple):
    """A recipe, and why it is not the one of the paper: one sentence for each setting that was chosen here."""

    recipe: StudentRecipe
    reasons: tuple[str, ...]


def suited(recipe: StudentRecipe, data: TrainingData, *, given: Collection[str]) -> Suited:
    """The recipe with the settings that nobody gave chosen for the data.

    Args:
        given: names of the fields that the user set.
    """
    changes: dict[str, Any] = {}
    reasons: list[str] = []
    repeats = fitting_repeats(recipe.repeats, block_views=data.views.block_views, num_views=data.num_views)
    if "repeats" not in given and repeats != recipe.repeats:
        changes["repeats"] = repeats
        counts = " and ".join(map(str, sorted(set(data.num_views)))) or "no end of"
        reasons.append(
            f"repeats {repeats} instead of {recipe.repeats}: the largest number that divides {counts} views and "
            f"their units of {data.views.block_views}"
        )
    return Suited(replace(recipe, **changes), tuple(reasons))
