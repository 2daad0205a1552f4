"""Law 8: the order of an epoch is a pure function, and every admissible world sees the same global batches."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from shards.views.view_recipe import ViewRecipe
from student.feed.order import Order

ROWS = np.array([37, 64, 16, 15, 50])  # the fourth has no full block
RECIPE = ViewRecipe(block_size=16, block_views=6)


def order_of(*, rows=ROWS, recipe=RECIPE, seed=1, batch_size=32, repeats=1, num_views=12):
    return Order(rows_S=rows, recipe=recipe, seed=seed, batch_size=batch_size, repeats=repeats, num_views=num_views)


def plan(epoch=0, **settings):
    return order_of(**settings).plan(epoch)


def triples(blocks):
    return [(shard, block, view) for shard, block, views in blocks for view in views]


def order(epoch_plan):
    arrays = (epoch_plan.shard_I, epoch_plan.block_I, epoch_plan.view_I)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


@pytest.mark.parametrize("repeats", [1, 2, 3, 6])
@pytest.mark.parametrize("batch_size", [16, 32, 48, 160])
def test_a_super_epoch_visits_every_full_block_once_with_consecutive_views(repeats, batch_size):
    """Blocks of the super-epoch's stream appear once per view; only the last partial batch may be missing."""
    seen = Counter(item for e in range(repeats) for item in order(plan(e, repeats=repeats, batch_size=batch_size)))
    assert set(seen.values()) == {1}
    full = {(s, b) for s, rows in enumerate(ROWS) for b in range(rows // 16)}
    assert {(s, b) for s, b, _ in seen} <= full
    assert {v for _, _, v in seen} == set(range(repeats))
    steps = len(full) // (batch_size // 16)
    assert len(seen) == steps * (batch_size // 16) * repeats
    whole = Counter((s, b) for s, b, _ in seen)
    assert sum(count != repeats for count in whole.values()) <= 1, "only the block at the cut may lack a view"


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("world, accumulate", list(product([1, 2, 4], [1, 2])))
def test_every_world_sees_the_same_global_batches(world, accumulate, repeats):
    """Concatenated over ranks and micro-batches, a step's items are the plan's, in the plan's order."""
    recipe = ViewRecipe(block_size=4, block_views=6)
    one = plan(3, recipe=recipe, repeats=repeats)
    for step in range(one.steps):
        parts = [one.blocks(step, part, world * accumulate) for part in range(world * accumulate)]
        assert [item for part in parts for item in triples(part)] == triples(one.blocks(step))
        assert len({len(triples(part)) for part in parts}) == 1


def test_resuming_at_a_step_is_slicing_at_it():
    """The plan asked for later is the plan asked for first."""
    assert order(plan(5)) == order(plan(5))
    blocks = plan(5).blocks_per_step
    assert triples(plan(5).blocks(2)) == order(plan(5))[2 * blocks : 3 * blocks]


def test_epochs_and_seeds_have_different_orders_and_the_same_length():
    """A repeated order would show the student the same neighbours; a changing length would bend the schedule."""
    places = [[(s, b) for s, b, _ in order(plan(e, seed=seed))] for e in range(4) for seed in range(2)]
    assert len({tuple(p) for p in places}) == len(places)
    assert len({len(p) for p in places}) == 1
    assert len(places[0]) == order_of().steps * 2


def test_order_is_golden():
    """The order is part of what a checkpoint means: it must not change with a version of NumPy or of this code."""
    one = plan(7, repeats=3, num_views=12)
    data = b"".join(a.astype("<i4").tobytes() for a in (one.shard_I, one.block_I, one.view_I))
    assert hashlib.sha256(data).hexdigest() == GOLDEN


GOLDEN = "e28b65de1c0e3da7bf0d902faf18abdf6f8aaf2328a9691d25a0a7803c64fb7f"


@pytest.mark.parametrize("repeats, num_views", [(1, 12), (2, 4), (3, 6), (1, None), (6, 6)])
def test_views_cycle_and_the_schedule_says_so(repeats, num_views):
    """The printed schedule covers every epoch and agrees with the views each epoch uses."""
    walked = order_of(repeats=repeats, num_views=num_views)
    views = [walked.views(e) for e in range(40)]
    for e, used in enumerate(views):
        first = repeats * (e // repeats)
        assert list(used) == [v % (num_views or 10**9) for v in range(first, first + repeats)]
        assert used.start // 6 == used[-1] // 6, "views of one block lie in one view block"
    spans = walked.schedule(40)
    covered = [e for span in spans for e in range(span.first_epoch, span.last_epoch + 1)]
    assert covered == list(range(40))
    for span in spans:
        inside = [v for e in range(span.first_epoch, span.last_epoch + 1) for v in views[e]]
        assert (min(inside), max(inside)) == (span.first_view, span.last_view)
        assert inside == sorted(inside) or repeats > 1
    blocks = walked.view_blocks(40)
    assert blocks == sorted({v // 6 for used in views for v in used})


def test_groups_are_runs_of_consecutive_views_of_one_block():
    """A group costs one decode; cut wrongly it would mix blocks of different partitions."""
    one = plan(0, repeats=6, batch_size=160)
    groups = one.blocks(0)
    assert triples(groups) == order(one)[: one.blocks_per_step]
    assert len(groups) < one.blocks_per_step / 3
    for _, _, views in groups:
        assert list(views) == list(range(views[0], views[0] + len(views)))
        assert len({v // RECIPE.block_views for v in views}) == 1
    assert len(replace(one, views_per_unit=1).blocks(0)) == one.blocks_per_step, "cut at every unit"


def test_samples_left_out_are_counted():
    """Partial blocks and the last partial batch are reported, not lost in silence."""
    one = plan(batch_size=48)
    assert one.num_left_out == ROWS.sum() - one.steps * 48


@pytest.mark.parametrize(
    "change, words",
    [
        pytest.param(
            {"batch_size": 24},
            "batch_size: expected a multiple of 16, such as 16 or 32, got 24",
            id="batch cuts a block",
        ),
        pytest.param({"batch_size": 16 * 11}, "batch_size 176.*10", id="batch larger than the data"),
        pytest.param({"repeats": 4}, "repeats.*block_views 6", id="repeats do not divide a unit"),
        pytest.param({"repeats": 3, "num_views": 8}, "repeats.*8 views", id="repeats do not divide the views"),
        pytest.param({"epoch": -1}, "epoch", id="negative epoch"),
        pytest.param({"rows": np.array([15, 3])}, "no shard holds a block of 16 samples", id="no full block"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, words):
    """Each would otherwise give an epoch of length zero, cut blocks, or views of two partitions."""
    with pytest.raises(ValueError, match=words.replace(" ", r"\s")):
        plan(**change)


def test_a_world_that_does_not_divide_the_batch_is_refused():
    """Unequal slices would weight samples unequally."""
    with pytest.raises(ValueError, match="cannot be cut"):
        plan(batch_size=48).blocks(0, 0, 2)
