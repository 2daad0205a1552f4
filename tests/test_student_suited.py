"""What nobody set is chosen for the data: a cache made with default flags is trained on with default flags."""

from dataclasses import replace

import numpy as np
import pytest

from shards.views.view_recipe import RECIPES, default_block_views, fitting_repeats
from student.feed.order import Order
from student.recipe.papers import STUDENT_RECIPES, chosen_recipe
from student.recipe.suited import TrainingData, suited

OFFERED = (2, 4, 5, 8, 10, 20, 40, 50, 100, 200, 250, 400, 500, 800)


ROWS = np.array([16])


def cached_views(num_views: int):
    """The views of a cache that was made with `--views` alone."""
    return replace(RECIPES["deit"], block_views=default_block_views(num_views))


@pytest.mark.parametrize("name", sorted(STUDENT_RECIPES))
@pytest.mark.slow
def test_every_number_of_views_can_be_trained_on_with_every_recipe(name):
    """The law: 1 … 1,000 views with default units, and the recipe as it stands, give a schedule without an error."""
    for num_views in range(1, 1001):
        views = cached_views(num_views)
        recipe = chosen_recipe("deit_tiny_patch16_224", name=name, stage=0, user_fields={}, cached=views)
        chosen = suited(recipe, TrainingData(views=views, num_views=(num_views,)), set_by_user=()).recipe
        order = Order(rows_S=ROWS, recipe=views, repeats=chosen.repeats, num_views=num_views, batch_size=16)
        for epoch in (0, 1, 2, chosen.epochs - 1):
            seen = order.views(epoch)
            assert 0 <= seen.start < seen.stop <= num_views
            assert seen.start // views.block_views == (seen.stop - 1) // views.block_views
        needed = order.view_blocks(num_views)
        assert needed == list(range(num_views // views.block_views)), "as many epochs as views read all of the cache"


def test_three_repeats_wherever_three_divides_the_views():
    """What DeiT's recipe asks for is given up only where it cannot be had."""
    for num_views in range(1, 1001):
        fits = fitting_repeats(3, block_views=default_block_views(num_views), num_views=(num_views,))
        assert fits == (3 if num_views % 3 == 0 else 2 if num_views % 2 == 0 else 1)


@pytest.mark.parametrize("num_views", [6, 12, 30, 300, 600])
def test_multiples_of_six_stay_as_they_were(num_views):
    """Units of six and three repeats: no cache and no run of the papers' numbers changes."""
    assert default_block_views(num_views) == 6
    recipe = STUDENT_RECIPES["deit_hard"]
    data = TrainingData(views=cached_views(num_views), num_views=(num_views,))
    assert suited(recipe, data, set_by_user=()) == (recipe, ())


@pytest.mark.parametrize("num_views", OFFERED)
def test_other_repeats_are_said_with_the_reason(num_views):
    """Silence would leave the user with a recipe that he did not choose."""
    data = TrainingData(views=cached_views(num_views), num_views=(num_views,))
    chosen = suited(STUDENT_RECIPES["deit3_small"], data, set_by_user=())
    assert chosen.recipe.repeats in (1, 2)
    assert f"repeats {chosen.recipe.repeats} instead of 3" in chosen.reasons[0]
    assert f"{num_views} views" in chosen.reasons[0]


def test_what_the_user_set_is_not_touched():
    """A wrong number given by hand is refused where the schedule is made, not replaced."""
    recipe = replace(STUDENT_RECIPES["deit"], repeats=4)
    data = TrainingData(views=cached_views(10), num_views=(10,))
    assert suited(recipe, data, set_by_user=("repeats",)) == (recipe, ())


def test_runs_of_a_sweep_share_their_repeats():
    """Cells that cycle through other numbers of views stay comparable."""
    data = TrainingData(views=cached_views(60), num_views=(4, 60))
    chosen = suited(STUDENT_RECIPES["deit"], data, set_by_user=())
    assert chosen.recipe.repeats == 2 and "4 and 60 views" in chosen.reasons[0]


def rows(num_samples, per_shard=1000):
    """Samples of each shard."""
    return tuple(min(per_shard, num_samples - first) for first in range(0, num_samples, per_shard))


def data(num_samples, **changes):
    """So many images, with 300 views."""
    return TrainingData(views=cached_views(300), num_views=(300,), shard_rows=rows(num_samples), **changes)


@pytest.mark.parametrize("name", sorted(STUDENT_RECIPES))
@pytest.mark.parametrize("num_samples", [1_281_167, 1_281_166, 1_000_000, 14_000_000])
def test_a_set_of_imagenets_size_is_trained_as_in_the_paper(name, num_samples):
    """The numbers of the papers are those of their set, to the field."""
    assert suited(STUDENT_RECIPES[name], data(num_samples), set_by_user=()) == (STUDENT_RECIPES[name], ())


@pytest.mark.parametrize("num_samples", [16, 40, 200, 1_000, 5_000, 20_000, 126_689, 500_000])
@pytest.mark.parametrize("name", sorted(STUDENT_RECIPES))
def test_every_set_gives_steps_and_an_average_that_moves(name, num_samples):
    """A batch larger than the set is an error, a weight average over more steps than the run is its initial weights."""
    given = data(num_samples)
    recipe = suited(STUDENT_RECIPES[name], given, set_by_user=()).recipe
    steps = given.num_images // recipe.batch_size
    assert steps >= 1 and recipe.batch_size % given.views.block_size == 0
    meant_for_few = STUDENT_RECIPES[name].batch_size == recipe.batch_size == 32
    assert steps >= 50 or recipe.batch_size == 16 or meant_for_few or given.num_images // (recipe.batch_size // 2) < 50
    assert 1 / (1 - recipe.ema_decay) <= max(2.001, recipe.epochs * steps / 15 * 1.01)
    assert recipe.min_lr <= recipe.scaled_lr <= STUDENT_RECIPES[name].scaled_lr
    assert recipe.warmup_epochs <= max(STUDENT_RECIPES[name].warmup_epochs, recipe.epochs / 10)


def test_the_choice_is_said_with_its_reason():
    """One clause each, so that a user can set what he wants otherwise."""
    recipe, reasons = suited(STUDENT_RECIPES["deit_hard"], data(200), set_by_user=())
    assert (recipe.batch_size, recipe.repeats, recipe.warmup_epochs) == (16, 3, 17)
    assert recipe.scaled_lr == pytest.approx(1e-3 * (16 / 1024) ** 0.5, rel=0.05)
    said = "; ".join(reasons)
    for words in ("batch 16 instead of 1024: 12 steps", "lr 0.00013 instead of 0.001", "warm-up 17", "moving average"):
        assert words in said


def test_a_batch_is_cut_among_ranks_and_micro_batches():
    """Eight ranks need eight blocks of a batch, whatever the size of the set."""
    assert suited(STUDENT_RECIPES["deit"], data(5_000, parts=8), set_by_user=()).recipe.batch_size % 128 == 0


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("per_shard", [20, 1000])
def test_the_batch_of_a_small_set_leaves_few_images_out(parts, per_shard):
    """Of 48 to 63 images, a batch of 32 left a third of those in full blocks out of each epoch, of 159 a ninth."""
    named, changed = STUDENT_RECIPES["small"], []
    for num_samples in range(16, 2_000):
        given = replace(data(num_samples), shard_rows=rows(num_samples, per_shard), parts=parts)
        whole, unit = given.num_images, given.views.block_size * parts
        if whole < unit:
            continue
        recipe, reasons = suited(named, given, set_by_user=())
        left_out, before = whole % recipe.batch_size, whole % 32
        possible = min(whole % batch for batch in range(unit, 32 + unit, unit))
        assert recipe.batch_size % unit == 0
        assert left_out <= whole / 10 or left_out == possible, num_samples
        if parts < 3 and whole >= 32 and before <= whole / 10:
            assert recipe.batch_size == 32 and recipe.lr == named.lr, "a set of which little was left out"
        elif parts == 1 and whole >= 32:
            changed.append(whole)
            words = f"batch 16 instead of 32: {whole} of {num_samples} images an epoch instead of {whole - before}"
            assert any(reason.startswith(f"{words}, lr 0.0014") for reason in reasons), reasons
        own = suited(replace(named, batch_size=unit * 2), given, set_by_user=("batch_size",)).recipe
        assert own.batch_size == unit * 2, "the user's"
        kept = suited(named, replace(given, before={"batch_size": 32, "lr": 2e-3}), set_by_user=())
        assert (kept.recipe.batch_size, kept.recipe.lr, kept.reasons) == (32, 2e-3, ()), "a run that exists"
    assert set(changed) == ({48, 80, 112, 144} if parts == 1 else set())


def test_what_is_given_stays_and_a_run_that_is_there_keeps_its_choice():
    """A resumed run must be the same run, also after its shards or these rules have changed."""
    given = ("batch_size", "lr", "warmup_epochs", "ema_decay", "repeats")
    recipe = STUDENT_RECIPES["deit"]
    assert suited(recipe, data(200), set_by_user=given) == (recipe, ())
    before = {"batch_size": 64, "ema_decay": 0.5, "lr": 0.25, "name": "another"}
    found, reasons = suited(recipe, data(200, before=before), set_by_user=("lr",))
    assert (found.batch_size, found.ema_decay, found.lr, found.name) == (64, 0.5, recipe.lr, "deit") and not reasons


@pytest.mark.parametrize("num_views", [1, 2, 6, 7, 10, 12, 25, 30, 300])
@pytest.mark.parametrize("shard_rows", [(16,), (400,), (1000, 1000), (1281,) * 1000])
def test_a_stopped_stage_1_loses_little_of_a_small_cache(num_views, shard_rows):
    """A chunk is a small part of the cache, or seconds of work, or as small as the recipe's repeats allow."""
    views = default_block_views(num_views, shard_rows)
    assert num_views % views == 0
    repeats = 3 if num_views % 3 == 0 else 2 if num_views % 2 == 0 else 1
    assert fitting_repeats(3, block_views=views, num_views=(num_views,)) == repeats
    few = len(shard_rows) * num_views // views < 32
    assert not few or views * max(shard_rows) <= 600 or views == repeats
    assert len(shard_rows) < 1000 or views == default_block_views(num_views), "large sets stay as they were"
