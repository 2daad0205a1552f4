"""Law 11: how often a run trains on each sample is what it says before its first step."""

from collections import Counter
from typing import NamedTuple, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.index.shard_index import ShardIndex
from shards.views.mixing import block_rows
from shards.views.view_recipe import ViewRecipe
from shards.world import World
from student.feed.coverage import Coverage, coverage, left_over_in_all, views_trained_on
from student.feed.order import Order


class Samples(NamedTuple):
    """What the coverage reads of an index: shards of so many rows, every sample's class by its place in its shard."""

    rows_S: NDArray[np.int64]
    num_classes: int = 5
    class_names: tuple[str, ...] = ("ant", "bee", "cat", "dog", "elk")

    @property
    def names(self) -> list[str]:
        return [f"{shard:03d}.tar" for shard in range(len(self.rows_S))]

    @property
    def first_S(self) -> NDArray[np.int64]:  # noqa: N802  # shape-suffixed as everywhere
        return np.concatenate(([0], np.cumsum(self.rows_S)))

    @property
    def label_N(self) -> NDArray[np.int32]:  # noqa: N802
        return (np.arange(self.num_samples) % self.num_classes).astype(np.int32)

    @property
    def num_samples(self) -> int:
        return int(self.rows_S.sum())

    def num_rows(self, shard: int) -> int:
        return int(self.rows_S[shard])


def make_index(rows: list[int]) -> ShardIndex:
    return cast(ShardIndex, Samples(np.array(rows, np.int64)))


def order_of(index: ShardIndex, *, batch: int, repeats: int, num_views: int | None, block: int, unit: int) -> Order:
    return Order(
        rows_S=index.rows_S,
        recipe=ViewRecipe(block_size=block, block_views=unit),
        num_views=num_views,
        seed=3,
        batch_size=batch,
        repeats=repeats,
        world=World(),
    )


def walked(index: ShardIndex, order: Order, epochs: int) -> Counter[tuple[int, int]]:
    """Views of each (shard, row), from the batches themselves."""
    found: Counter[tuple[int, int]] = Counter()
    size = order.recipe.block_size
    for epoch in range(epochs):
        plan = order.plan(epoch)
        for shard, block, view in zip(plan.shard_I, plan.block_I, plan.view_I, strict=True):
            rows = block_rows(order.recipe, index.names[shard], index.num_rows(int(shard)), int(view))
            found.update((int(shard), int(row)) for row in rows[block * size : (block + 1) * size])
    return found


CASES = [
    pytest.param(rows, block, unit, views, repeats, id=f"{rows}-{block}-{unit}-{views}-{repeats}")
    for rows in ([121], [31, 31, 31, 28], [16, 48], [37, 5, 50])
    for block, unit, views, repeats in ((16, 6, 6, 3), (16, 6, 12, 1), (4, 2, 4, 2), (8, 1, None, 1))
]


@pytest.mark.parametrize("epochs", [1, 6, 30])
@pytest.mark.parametrize(("rows", "block", "unit", "views", "repeats"), CASES)
def test_counts_are_those_of_the_batches(
    rows: list[int], block: int, unit: int, views: int | None, repeats: int, epochs: int
) -> None:
    """Over any epochs: the least and the most that is said is what the batches hold, and so is who is never seen."""
    index = make_index(rows)
    order = order_of(index, batch=block, repeats=repeats, num_views=views, block=block, unit=unit)
    count_N, truth = views_trained_on(index, order, epochs), walked(index, order, epochs)
    places = [(shard, row) for shard, num_rows in enumerate(rows) for row in range(num_rows)]
    assert count_N.tolist() == [truth[place] for place in places]
    said = coverage(index, order, epochs)
    assert said.seen == (min(truth[p] for p in places), max(truth[p] for p in places))
    assert said.num_unseen == sum(truth[place] == 0 for place in places)
    assert sum(lost for _, lost, _ in said.unseen_by_class) == said.num_unseen
    assert bool(said.warning) == (said.num_unseen > 0)
    left_N = left_over_in_all(index, order, epochs)
    assert not count_N[left_N].any()
    if epochs % repeats == 0:  # whole super-epochs of single-block batches visit every block
        assert (left_N == (count_N == 0)).all()


def test_the_remedy_is_one() -> None:
    """More views reach samples that were in none; a shard of less than a block is never in one."""
    index = make_index([31, 31])
    one, two = (order_of(index, batch=16, repeats=3, num_views=n, block=16, unit=6) for n in (6, 12))
    first, second = coverage(index, one, 30), coverage(index, two, 30)
    assert first.warning.endswith("a cache of 12 views reaches them") and first.more_views == 12
    assert "a cache of 12 views and more than 6 epochs reach them" in coverage(index, one, 6).warning
    assert second.num_unseen < first.num_unseen == 30
    small = make_index([32, 15])
    short = coverage(small, order_of(small, batch=16, repeats=3, num_views=12, block=16, unit=6), 30)
    assert short.num_unseen == 15 and "make shards of more samples" in short.warning
    few = coverage(index, order_of(index, batch=16, repeats=1, num_views=None, block=16, unit=6), 6)
    assert "more epochs reach them" in few.warning


def test_a_warning_is_a_message() -> None:
    """Classes are named, at most three, those that lose all of theirs first."""
    lost = tuple((f"class{n}", 1, 1) for n in range(900))
    said = Coverage(10**6, 900, lost, None, _remedy_of_one_unit()).warning
    assert len(said) <= 600 and "class0 1 of 1" in said and "and 897 more classes" in said


def _remedy_of_one_unit() -> str:
    index = make_index([31])
    return coverage(index, order_of(index, batch=16, repeats=3, num_views=6, block=16, unit=6), 6).remedy


@pytest.mark.parametrize(("unseen", "verb"), [(1, "1 of 277 images is never"), (5, "5 of 277 images are never")])
def test_one_image_is_singular(unseen: int, verb: str) -> None:
    assert Coverage(277, unseen, (("ant", unseen, 56),), None, "more epochs reach them").warning.startswith(verb)


def test_a_large_set_is_looked_at_quickly() -> None:
    """Few permutations: a shard is done as soon as none of its samples was left over in all view blocks so far."""
    index = make_index([1251] * 400)
    order = order_of(index, batch=1024, repeats=3, num_views=300, block=16, unit=6)
    said = coverage(index, order, 300)
    assert said.seen is None and said.num_unseen == 0
    assert np.array_equal(left_over_in_all(index, order, 300), np.zeros(index.num_samples, np.bool_))
