"""Check that shards, views and teacher fit each other: before the first forward, and by how often they agree after it.

Importing this module does not import torch: commands call the checks before anything heavy.
"""

import math
from collections.abc import Sequence

import numpy as np

from shards.index.index_checks import require_classes
from shards.index.shard_index import ShardIndex
from shards.views.view_recipe import ViewRecipe
from teacher_cache.store.header import require_whole_units

_SUBSET = (
    "if they are among the teacher's, folders named as it names them: make-shards --class-names FILE, all its classes "
    "one a line in its order (ImageNet: the 1,000 wnids, sorted; docs/own-data.md)"
)

_LEAST = 0.05
"""Views of DeiT's recipe that a teacher of the right classes names at least, however heavily they are augmented."""
_TIMES_CHANCE = 1.25
_FEW_CLASSES = 0.4  # chance of a first class being the label, above which agreement says nothing


def require_same_classes(index: ShardIndex, num_classes: int, teacher: str) -> None:
    """ValueError unless there are as many classes in the labels as in the answers, with the three ways to a teacher.

    Shards without classes of their own take those of the teacher.
    """
    if index.num_classes not in (0, num_classes):
        raise ValueError(
            f"teacher: {teacher} answers in {num_classes} classes, the shards have {index.num_classes}. Three ways:\n"
            "- fine-tune one on these classes: train-teacher --pretrained NAME, then --teacher-weights\n"
            f"- {_SUBSET}\n"
            f"- take another teacher of exactly these {index.num_classes} classes in this order"
        )


def require_known_labels(index: ShardIndex, num_classes: int, teacher: str) -> None:
    """ValueError where labels are merely said to be of so many classes: 0 … 7 of 1,000 are ImageNet's first eight."""
    used = np.unique(index.label_N[index.label_N >= 0])
    if len(used) and not index.class_names and len(used) == used[-1] + 1 and 2 * len(used) <= num_classes:
        raise ValueError(
            f"shards: their labels are 0 to {used[-1]} of {num_classes} classes without names: nothing says that they "
            f"are the first classes of {teacher}. Two ways:\n"
            "- fine-tune a teacher on these classes: train-teacher on shards indexed with their own number of classes\n"
            f"- {_SUBSET}"
        )


def require_new_cache(index: ShardIndex, recipe: ViewRecipe, num_views: int) -> None:
    """Refuse views of which no cache of these shards can be made.

    Errors:
        ShardError for shards of one class; ValueError for blocks that no shard fills and for parts of a unit.
    """
    require_classes(index.path or "shards", index.class_names, index.num_classes)
    largest = int(max(index.rows_S))
    if largest < recipe.block_size:
        raise ValueError(
            f"--set block_size={recipe.block_size}: no shard holds so many samples (the largest has {largest}), so no "
            f"student could be trained from the cache; give at most {largest}, or leave it out"
        )
    require_whole_units(recipe, num_views)


def mean_agreement(shares: Sequence[float]) -> float:
    """The mean over units of the share of views that agree; NaN when no unit has any that count."""
    known = [share for share in shares if not math.isnan(share)]
    return sum(known) / len(known) if known else math.nan


def disagrees(agreement: float, num_classes: int) -> bool:
    """Whether so small an agreement means that the teacher does not know these classes, or numbers them otherwise.

    A teacher of a thousand classes on eight of one's own, numbered 0 to 7, agrees with .3 % of the labels, three times
    chance; one of eight classes that knows them a little with 20 %, not twice chance.
    """
    chance = 1 / num_classes
    return agreement < max(_LEAST, _TIMES_CHANCE * chance) and chance < _FEW_CLASSES
