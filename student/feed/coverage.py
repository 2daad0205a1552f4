"""Count how often a run trains on each sample (law 11), from the order alone, before the first step.

Blocks are drawn anew for each view block, so the samples that a shard has left over take turns. Where a run walks few
view blocks, some samples are left over in all of them: these no student ever sees.

Legend: N samples, S shards, R rows of a shard, I block-views of an epoch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.index.shard_index import ShardIndex
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
        more = f" and {len(self.unseen_by_class) - 3} more classes" if len(self.unseen_by_class) > 3 else ""
        return (
            f"{self.num_unseen} of {self.num_samples} images {verb} never trained on in this run: {named}{more}; "
            f"{self.remedy}"
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
    blocks = order.view_blocks(epochs)
    size, unseen_N = order.recipe.block_size, np.zeros(index.num_samples, np.bool_)
    for shard, name in enumerate(index.names):
        num_rows = index.num_rows(shard)
        left = set(range(num_rows)) if num_rows % size else set()
        for view_block in blocks:
            if not left:
                break
            rows_R = block_rows(order.recipe, name, num_rows, view_block * order.recipe.block_views)
            left &= set(rows_R[num_rows // size * size :].tolist())
        unseen_N[[int(index.first_S[shard]) + row for row in left]] = True
    return unseen_N


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
    short_N = np.repeat(index.rows_S < size, index.rows_S)
    if left_N.any() and short_N[left_N].all():
        return f"their shards hold less than a block of {size}: make shards of more samples", 0
    views = order.num_views
    if not left_N.any() or views is None or epochs <= views - unit:
        return "more epochs reach them", 0
    also = f" and more than {views} epochs" if epochs <= views else ""
    return f"a cache of {views + unit} views{also} reach{'es' * (not also)} them", views + unit
