"""Do teacher and shards number their classes alike?

What can be known before the first forward is refused; afterwards the share of views whose first class is the label
says so.
"""

import math
from collections.abc import Sequence

import numpy as np

from shards.index.shard_index import ShardIndex

_SUBSET = (
    "if they are among the teacher's, folders named as it names them: make-shards --class-names FILE, all its classes "
    "one a line in its order (ImageNet: the 1,000 wnids, sorted; docs/own-data.md)"
)

_LEAST = 0.05
"""Views of DeiT's recipe that a teacher of the right classes names at least, however heavily they are augmented."""
_TIMES_CHANCE = 1.25
_FEW_CLASSES = 0.4  # chance of a first class being the label, above which agreement says nothing


def require_same_classes(index: ShardIndex, num_classes: int, teacher: str) -> None:
    """ValueError unless there are as many classes in the labels as in the answers, with the three ways to a teacher."""
    if index.num_classes != num_classes:
        raise ValueError(
            f"teacher: {teacher} answers in {num_classes} classes, the shards have {index.num_classes}. Three ways:\n"
            "- fine-tune one on these classes: train-teacher --pretrained NAME, then --teacher-weights\n"
            f"- {_SUBSET}\n"
            f"- take another teacher of exactly these {index.num_classes} classes in this order"
        )


def require_known_labels(index: ShardIndex, num_classes: int, teacher: str) -> None:
    """ValueError where labels are merely said to be of so many classes: 0 … 7 of 1,000 are ImageNet's first eight."""
    used = np.unique(index.label_N)
    if not index.class_names and len(used) == used[-1] + 1 and 2 * len(used) <= num_classes:
        raise ValueError(
            f"shards: their labels are 0 to {used[-1]} of {num_classes} classes without names: nothing says that they "
            f"are the first classes of {teacher}. Two ways:\n"
            "- fine-tune a teacher on these classes: train-teacher on shards indexed with their own number of classes\n"
            f"- {_SUBSET}"
        )


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
