"""What nobody set is chosen for the data: a cache made with default flags is trained on with default flags."""

from dataclasses import replace

import pytest

from shards.views.view_recipe import RECIPES, default_block_views, fitting_repeats
from student.feed.epoch_plan import epoch_views, needed_view_blocks
from student.recipe.papers import STUDENT_RECIPES, chosen_recipe
from student.recipe.suited import TrainingData, suited

OFFERED = (2, 4, 5, 8, 10, 20, 40, 50, 100, 200, 250, 400, 500, 800)


def cached_views(num_views: int):
    """The views of a cache that was made with `--views` alone."""
    return replace(RECIPES["deit"], block_views=default_block_views(num_views))


@pytest.mark.parametrize("name", sorted(STUDENT_RECIPES))
def test_every_number_of_views_can_be_trained_on_with_every_recipe(name):
    """The law: 1 … 1,000 views with default units, and the recipe as it stands, give a schedule without an error."""
    for num_views in range(1, 1001):
        views = cached_views(num_views)
        recipe = chosen_recipe("deit_tiny_patch16_224", name=name, stage=0, given={}, cached=views)
        chosen = suited(recipe, TrainingData(views=views, num_views=(num_views,)), given=()).recipe
        options = {"recipe": views, "repeats": chosen.repeats, "num_views": num_views}
        for epoch in (0, 1, 2, chosen.epochs - 1):
            seen = epoch_views(epoch, **options)
            assert 0 <= seen.start < seen.stop <= num_views
            assert seen.start // views.block_views == (seen.stop - 1) // views.block_views
        needed = needed_view_blocks(num_views, **options)
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
    assert suited(recipe, data, given=()) == (recipe, ())


@pytest.mark.parametrize("num_views", OFFERED)
def test_other_repeats_are_said_with_the_reason(num_views):
    """Silence would leave the user with a recipe that he did not choose."""
    data = TrainingData(views=cached_views(num_views), num_views=(num_views,))
    chosen = suited(STUDENT_RECIPES["deit3_small"], data, given=())
    assert chosen.recipe.repeats in (1, 2)
    assert f"repeats {chosen.recipe.repeats} instead of 3" in chosen.reasons[0]
    assert f"{num_views} views" in chosen.reasons[0]


def test_what_the_user_set_is_not_touched():
    """A wrong number given by hand is refused where the schedule is made, not replaced."""
    recipe = replace(STUDENT_RECIPES["deit"], repeats=4)
    data = TrainingData(views=cached_views(10), num_views=(10,))
    assert suited(recipe, data, given=("repeats",)) == (recipe, ())


def test_runs_of_a_sweep_share_their_repeats():
    """Cells that cycle through other numbers of views stay comparable."""
    data = TrainingData(views=cached_views(60), num_views=(4, 60))
    chosen = suited(STUDENT_RECIPES["deit"], data, given=())
    assert chosen.recipe.repeats == 2 and "4 and 60 views" in chosen.reasons[0]
