"""What is chosen for a small set of images follows from numbers alone, and nothing is chosen for a large one."""

import itertools

import pytest

from shards.data_defaults import SMALL_SET, ImageSet, data_defaults

NUMBERS = [1, 2, 15, 40, 200, 500, 726, 1_000, 2_000, 9_469, 49_999]


@pytest.mark.parametrize("num_images", [0, SMALL_SET, 100_000, 1_281_167, 14_000_000])
def test_nothing_is_chosen_for_a_large_set_or_for_none(num_images: int) -> None:
    """ImageNet keeps the papers' recipes to the field."""
    assert data_defaults(ImageSet(num_images=num_images, short_side=28, coloured=False)) is None


@pytest.mark.parametrize("num_images", NUMBERS)
def test_every_small_set_gets_whole_units_and_some_epochs(num_images: int) -> None:
    """The numbers stay where a laptop ends in minutes: never 300 epochs of thousands of images."""
    chosen = data_defaults(ImageSet(num_images=num_images))
    assert chosen is not None
    assert chosen.num_views % 6 == 0 and 12 <= chosen.num_views <= 120
    assert 10 <= chosen.epochs <= 300
    assert chosen.epochs * num_images <= max(10 * num_images, 110_000)


@pytest.mark.parametrize("num_images", NUMBERS)
def test_each_choice_has_its_reason(num_images: int) -> None:
    """A choice without a reason is a riddle; the reason holds the number that was chosen."""
    chosen = data_defaults(ImageSet(num_images=num_images))
    assert chosen is not None
    assert set(chosen.reasons) == {"view", "size", "num_views", "model", "epochs"}
    for name in ("size", "num_views", "epochs", "model", "view"):
        assert str(getattr(chosen, name)) in chosen.reasons[name]


def test_more_images_never_get_more_views_or_epochs() -> None:
    """The work is about the same for every small set."""
    chosen = [data_defaults(ImageSet(num_images=number)) for number in NUMBERS]
    for fewer, more in itertools.pairwise(chosen):
        assert fewer is not None and more is not None
        assert fewer.num_views >= more.num_views and fewer.epochs >= more.epochs


@pytest.mark.parametrize(
    ("short_side", "size"), [(0, 96), (16, 64), (28, 64), (32, 64), (33, 96), (224, 96), (4000, 96)]
)
def test_small_pictures_get_small_views(short_side: int, size: int) -> None:
    """Enlarging 28 pixels to 96 costs twice the time and shows nothing more."""
    chosen = data_defaults(ImageSet(num_images=500, short_side=short_side))
    assert chosen is not None and chosen.size == size


def test_images_without_colours_are_not_mirrored() -> None:
    """A mirrored b is a d."""
    grey, coloured = (data_defaults(ImageSet(num_images=500, coloured=value)) for value in (False, True))
    assert grey is not None and coloured is not None
    assert grey.view_fields == {"flip": 0.0} and "mirrored" in grey.reasons["view"]
    assert not coloured.view_fields and "mirrored" not in coloured.reasons["view"]
