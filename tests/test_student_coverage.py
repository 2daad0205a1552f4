"""Law 11: how often a run trains on each sample is what it says before its first step."""

import re
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


REMEDIES = [
    pytest.param(rows, block, unit, repeats, views, id=f"{rows}-{block}-{unit}-{repeats}-{views}")
    for rows in ([121], [31, 31], [14] * 8 + [9], [63, 5, 50])
    for block, unit, repeats in ((16, 6, 3), (8, 3, 3), (4, 1, 1))
    for views in (unit, 2 * unit)
    if max(rows) >= block
]


@pytest.mark.parametrize("epochs", [1, 6, 30])
@pytest.mark.parametrize(("rows", "block", "unit", "repeats", "views"), REMEDIES)
def test_the_remedy_reaches_every_sample(
    rows: list[int], block: int, unit: int, repeats: int, views: int, epochs: int
) -> None:
    """Whoever follows the warning trains on every sample of a shard that holds a block, and with no view fewer."""
    index = make_index(rows)
    long_N = np.repeat(index.rows_S >= block, index.rows_S)
    order = order_of(index, batch=block, repeats=repeats, num_views=views, block=block, unit=unit)
    said = coverage(index, order, epochs)
    wanted = re.search(
        r"a cache of (\d+) views (?:reaches|and at least (\d+) epochs reach) (?:them|the others)", said.remedy
    )
    assert bool(wanted) == (said.more_views > 0)
    if wanted:
        assert int(wanted[1]) == said.more_views > views and wanted[2] in (None, wanted[1])
        enough = int(wanted[2] or epochs)
        more = order_of(index, batch=block, repeats=repeats, num_views=int(wanted[1]), block=block, unit=unit)
        assert views_trained_on(index, more, enough)[long_N].all()
        fewer = order_of(index, batch=block, repeats=repeats, num_views=int(wanted[1]) - unit, block=block, unit=unit)
        assert not views_trained_on(index, fewer, 30 * unit)[long_N].all()
    elif "more epochs reach" in said.remedy:
        assert views_trained_on(index, order, 30 * unit)[long_N].all()
    short_left = int((~long_N).sum())
    assert ("make shards of more samples" in said.remedy) == (short_left > 0)


def test_the_remedy_in_words() -> None:
    """A cache of more views, more epochs of it, larger shards, or two of them."""
    index = make_index([63])
    order = order_of(index, batch=16, repeats=3, num_views=6, block=16, unit=6)
    assert coverage(index, order, 30).remedy == "a cache of 18 views reaches them"
    assert coverage(index, order, 6).remedy == "a cache of 18 views and at least 18 epochs reach them"
    small = make_index([32, 15])
    short = coverage(small, order_of(small, batch=16, repeats=3, num_views=12, block=16, unit=6), 30)
    assert short.num_unseen == 15
    assert short.remedy == "their shards hold less than a block of 16: make shards of more samples"
    mixed = make_index([31, 15])
    both = coverage(mixed, order_of(mixed, batch=16, repeats=3, num_views=6, block=16, unit=6), 30)
    assert both.remedy.endswith(f"reach the others; of 15 of them {short.remedy}")
    few = coverage(index, order_of(index, batch=16, repeats=1, num_views=None, block=16, unit=6), 6)
    assert few.remedy == "more epochs reach them"


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
