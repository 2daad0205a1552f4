"""The views of a cache that nobody described: for a small set chosen by its size, of an existing cache as they are."""

from types import SimpleNamespace
from typing import Any

import pytest

from shards.data_defaults import SMALL_SET, ImageSet
from teacher_cache.commands.view_flags import ViewFlags

NOTHING = ViewFlags(views=None, recipe_name=None, size=None, view_seed=0, sets=(), views_per_unit=None)


def index_of(num_images: int) -> Any:
    """As much of an index as the flags read."""
    return SimpleNamespace(num_samples=num_images, rows_S=SimpleNamespace(tolist=lambda: [num_images]))


def place(num_images: int, **known: Any) -> Any:
    """Shards of which the survey tells this."""
    return SimpleNamespace(survey=lambda index: ImageSet(num_images=num_images, **known))


def chosen(flags: ViewFlags, num_images: int = 700, **known: Any) -> ViewFlags:
    """The flags for a set."""
    return flags.for_set(place(num_images, **known), index_of(num_images))


def existing(flags: ViewFlags, num_images: int = 700) -> Any:
    """The header of a cache that was made with the flags."""
    spec = SimpleNamespace(recipe=flags.recipe(index_of(num_images)))
    return SimpleNamespace(spec=spec, num_views=flags.num_views)


def test_a_small_set_gets_mild_views_and_many(capsys: pytest.CaptureFixture[str]) -> None:
    """What is chosen is said with its reason."""
    flags = chosen(NOTHING)
    recipe = flags.recipe(index_of(700))
    assert (recipe.name, recipe.size, recipe.flip, recipe.rand_augment) == ("small", 96, 0.5, "")
    assert flags.num_views == 84
    said = capsys.readouterr().err
    assert "84 views of each image" in said and "view recipe small" in said and "views of 96 pixels" in said


def test_letters_are_not_mirrored_unless_somebody_says_so() -> None:
    """A field that is typed comes before the choice."""
    assert chosen(NOTHING, coloured=False).recipe(index_of(700)).flip == 0.0
    mirrored = ViewFlags(views=6, recipe_name=None, size=None, view_seed=0, sets=("flip=0.5",), views_per_unit=None)
    assert chosen(mirrored, coloured=False).recipe(index_of(700)).flip == 0.5


def test_a_recipe_that_is_named_is_the_recipe() -> None:
    """With its own size, as before."""
    named = ViewFlags(views=None, recipe_name="deit", size=None, view_seed=0, sets=(), views_per_unit=None)
    recipe = chosen(named).recipe(index_of(700))
    assert (recipe.name, recipe.size) == ("deit", 224)


def test_a_large_set_has_deits_views_and_wants_their_number() -> None:
    """ImageNet's caches are those of the paper."""
    with pytest.raises(ValueError, match="--views: expected the number"):
        chosen(NOTHING, SMALL_SET)
    with_views = ViewFlags(views=12, recipe_name=None, size=None, view_seed=0, sets=(), views_per_unit=None)
    recipe = chosen(with_views, SMALL_SET).recipe(index_of(SMALL_SET))
    assert (recipe.name, recipe.size, recipe.rand_augment) == ("deit", 224, "rand-m9-mstd0.5-inc1")


@pytest.mark.parametrize("known", [{}, {"coloured": False}, {"short_side": 28}, {"short_side": 28, "coloured": False}])
def test_the_same_command_finds_its_cache_whatever_the_rules_say_by_then(known: dict[str, Any]) -> None:
    """Shards may have grown, rules may have changed: what is not typed is as in the cache."""
    before = chosen(NOTHING, **known)
    header = existing(before)
    again = NOTHING.for_set(place(49_000, short_side=500), index_of(700), header)
    assert again.num_views == before.num_views
    assert again.recipe(index_of(700), header.spec) == before.recipe(index_of(700))


def test_a_cache_of_an_earlier_version_stays_a_cache_of_deits_views() -> None:
    """It was made when small sets had no views of their own."""
    old = ViewFlags(views=12, recipe_name="deit", size=128, view_seed=0, sets=(), views_per_unit=None)
    again = ViewFlags(views=24, recipe_name=None, size=128, view_seed=0, sets=(), views_per_unit=None)
    flags = again.for_set(place(700), index_of(700), existing(old))
    assert (flags.num_views, flags.recipe_name, flags.size) == (24, "deit", 128)
