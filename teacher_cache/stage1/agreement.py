"""Do teacher and shards number their classes alike? The share of views whose first class is the label says so."""

import math
from collections.abc import Sequence

_TIMES_CHANCE = 2
_FEW_CLASSES = 0.4  # chance of a first class being the label, above which agreement says nothing


def mean_agreement(shares: Sequence[float]) -> float:
    """The mean over units of the share of views that agree; NaN when no unit has any that count."""
    known = [share for share in shares if not math.isnan(share)]
    return sum(known) / len(known) if known else math.nan


def disagrees(agreement: float, num_classes: int) -> bool:
    """Whether so small an agreement means that the classes are numbered differently."""
    chance = 1 / num_classes
    return agreement < _TIMES_CHANCE * chance and chance < _FEW_CLASSES
