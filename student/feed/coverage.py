"""Count how often a run trains on each sample (law 11), from the order alone, before the first step.

Blocks are drawn anew for each view block, so the samples that a shard has left over take turns. Where a run walks few
view blocks, some samples are left over in all of them: these no student ever sees.

Legend: N samples, S shards, R rows of a shard, I block-views of an epoch.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.index.shard_index import ShardIndex
from shards.text.figures import count
from shards.views.mixing import block_rows
from student.feed.order import Order

_COUNTED = 500_000
"""Samples × view blocks up to which every sample is counted: a second at the most."""


class Coverage(NamedTuple):
    """What a run of some epochs trains on.

    Attributes:
        num_samples: of the index. num_unseen: those that no epoch trains on.
        unseen_by_class: (class, unseen, all) of each class that loses samples, those that lose most of theirs first.
        seen: views of the samples that are seen least and most; None where the set is too large to be counted.
        remedy: what reaches the unseen ones. more_views: the number of views of a cache that does; 0: none does.
    """

    num_samples: int
    num_unseen: int
    unseen_by_class: tuple[tuple[str, int, int], ...]
    seen: tuple[int, int] | None
    remedy: str
    more_views: int = 0

    @property
    def warning(self) -> str:
        """Which classes lose samples and what to do; empty where every sample is trained on."""
        if not self.num_unseen:
            return ""
        verb = "is" if self.num_unseen == 1 else "are"
        named = ", ".join(f"{name} {lost} of {of}" for name, lost, of in self.unseen_by_class[:3])
        more = f" and {count(len(self.unseen_by_class) - 3, 'more class')}" if len(self.unseen_by_class) > 3 else ""
        return (
            f"{self.num_unseen} of {count(self.num_samples, 'image')} {verb} never trained on in this run: "
            f"{named}{more}; {self.remedy}"
        )


def views_trained_on(index: ShardIndex, order: Order, epochs: int) -> NDArray[np.int64]:
    """In how many views the first `epochs` epochs train on each sample, int64 (N,), rows in the order of the index."""
    visits: dict[int, NDArray[np.int64]] = {}
    size, per_block = order.recipe.block_size, order.recipe.block_views
    first_block_S = np.concatenate(([0], np.cumsum(index.rows_S // size)))
    for epoch in range(epochs):
        plan = order.plan(epoch)
        view_block = int(plan.view_I[0]) // per_block
        counts = np.bincount(first_block_S[plan.shard_I] + plan.block_I, minlength=int(first_block_S[-1]))
        visits[view_block] = visits.get(view_block, 0) + counts
    count_N = np.zeros(index.num_samples, np.int64)
    for view_block, visit in visits.items():
        for shard, name in enumerate(index.names):
            rows_R = block_rows(order.recipe, name, index.num_rows(shard), view_block * per_block)
            own = visit[first_block_S[shard] : first_block_S[shard + 1]]
            count_N[int(index.first_S[shard]) + rows_R[: len(own) * size]] += np.repeat(own, size)
    return count_N


def left_over_in_all(index: ShardIndex, order: Order, epochs: int) -> NDArray[np.bool_]:
    """Which samples are in no full block of any view block that the epochs walk, bool (N,); costs few permutations."""
    blocks, unseen_N = order.view_blocks(epochs), np.zeros(index.num_samples, np.bool_)
    for shard in range(len(index.names)):
        *_, left = _left_over(index, order, shard, blocks)
        unseen_N[[int(index.first_S[shard]) + row for row in left]] = True
    return unseen_N


def _left_over(index: ShardIndex, order: Order, shard: int, view_blocks: Iterable[int]) -> Iterator[set[int]]:
    """Yield the rows of a shard that are in no full block: before the view blocks, then after each; ends with none."""
    num_rows, size = index.num_rows(shard), order.recipe.block_size
    left = set(range(num_rows)) if num_rows % size else set()
    yield left
    for view_block in view_blocks:
        if not left:
            return
        rows_R = block_rows(order.recipe, index.names[shard], num_rows, view_block * order.recipe.block_views)
        left = left & set(rows_R[num_rows // size * size :].tolist())
        yield left


def _view_blocks_of_all(index: ShardIndex, order: Order) -> int:
    """How many view blocks, from the first, hold every sample; shards of less than a block, which none holds, aside.

    Each view block leaves over less than half of what is left, so the count ends near the logarithm of N.
    """
    large = [shard for shard in range(len(index.names)) if index.num_rows(shard) >= order.recipe.block_size]
    return max((sum(1 for _ in _left_over(index, order, shard, itertools.count())) - 1 for shard in large), default=0)


def coverage(index: ShardIndex, order: Order, epochs: int) -> Coverage:
    """What a run of so many epochs trains on, and which classes lose samples."""
    num_blocks = len(order.view_blocks(epochs))
    seen = None
    if index.num_samples * num_blocks <= _COUNTED:
        count_N = views_trained_on(index, order, epochs)
        unseen_N, seen = count_N == 0, (int(count_N.min()), int(count_N.max()))
    else:
        unseen_N = left_over_in_all(index, order, epochs)
    class_N = np.where(index.label_N < 0, index.num_classes, index.label_N)
    lost_C = np.bincount(class_N[unseen_N], minlength=index.num_classes + 1)
    all_C = np.bincount(class_N, minlength=index.num_classes + 1)
    losing = sorted(np.flatnonzero(lost_C), key=lambda c: (-lost_C[c] / all_C[c], c))
    names = (*(index.class_names or map(str, range(index.num_classes))), "without a label")
    remedy, more_views = _remedy(index, order, epochs)
    return Coverage(
        num_samples=index.num_samples,
        num_unseen=int(unseen_N.sum()),
        unseen_by_class=tuple((names[c], int(lost_C[c]), int(all_C[c])) for c in losing),
        seen=seen,
        remedy=remedy,
        more_views=more_views,
    )


def _remedy(index: ShardIndex, order: Order, epochs: int) -> tuple[str, int]:
    """What reaches the samples that are in no view, and how many views of a cache that needs; 0: no more than now."""
    size, unit = order.recipe.block_size, order.recipe.block_views
    left_N = left_over_in_all(index, order, epochs)
    num_short = int(np.repeat(index.rows_S < size, index.rows_S)[left_N].sum())
    short = f"their shards hold less than a block of {size}: make shards of more samples"
    if num_short and num_short == left_N.sum():
        return short, 0
    also = f"; of {num_short} of them {short}" if num_short else ""
    needed = _view_blocks_of_all(index, order) if left_N.any() and order.num_views is not None else 0
    if order.num_views is None or needed <= len(order.view_blocks(order.num_views)):
        return f"more epochs reach {'the others' if num_short else 'them'}{also}", 0
    views = needed * unit
    verb = "reaches" if epochs >= views else f"and at least {count(views, 'epoch')} reach"
    return f"a cache of {count(views, 'view')} {verb} {'the others' if num_short else 'them'}{also}", views
