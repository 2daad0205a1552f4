"""What is chosen for a small set of images follows from numbers alone, and nothing is chosen for a large one."""

import itertools
from pathlib import Path

import click
import pytest

from shards import ViewRecipe
from shards.commands.shard_place import ShardPlace
from shards.data_defaults import SMALL_SET, ImageSet, data_defaults, epoch_seconds, epochs_within
from shards.tars.writer import write_samples
from student.commands.flags import evaluated
from student.recipe.settings import TrainSettings
from tests.command_line import done
from tests.test_shards_formats import encoded

NUMBERS = [1, 2, 15, 40, 200, 500, 726, 1_000, 2_000, 9_469, 49_999]


@pytest.mark.parametrize("num_images", [0, SMALL_SET, 100_000, 1_281_167, 14_000_000])
def test_nothing_is_chosen_for_a_large_set_or_for_none(num_images: int) -> None:
    """ImageNet keeps the papers' recipes to the field."""
    assert data_defaults(ImageSet(num_images=num_images, short_side=28, coloured=False)) is None


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "small"),
    [
        *((500, 0, True), (49_999, 0, True), (50_000, 0, False), (1_281_167, 0, False), (0, 0, False)),
        *((0, 500, True), (0, 49_999, True), (0, 50_000, False), (0, 1_281_167, False)),
        *((500, 400, True), (500, 49_500, True), (500, 60_000, True), (500, 999_499, True), (49_999, 60_000, True)),
        *((500, 999_500, False), (12_811, 1_268_356, False), (50_000, 1, False), (128_116, 1_153_051, False)),
    ],
)
def test_where_some_images_have_labels_these_count(labelled: int, unlabelled: int, small: bool) -> None:
    """Of 500 labelled and 60,000 other photos the students were those of the papers, the teacher that of 500 images."""
    images = ImageSet(num_images=labelled + unlabelled, num_unlabelled=unlabelled)
    assert images.is_small == small and (data_defaults(images) is not None) == small


def test_added_photos_without_labels_change_neither_views_nor_student() -> None:
    """As far as a set is small: what the teacher knows stays what it answers."""
    alone = data_defaults(ImageSet(num_images=500))
    for unlabelled in (1, 400, 49_500, 60_000, 900_000):
        more = data_defaults(ImageSet(num_images=500 + unlabelled, num_unlabelled=unlabelled))
        assert alone is not None and more is not None
        assert (more.view, more.size, more.model) == (alone.view, alone.size, alone.model)
        assert f"{500 + unlabelled:,} images (500 with labels)" in more.reasons["epochs"]


def test_the_survey_counts_what_has_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.data_defaults.SMALL_SET", 10)
    samples = [(f"{n:02}", n % 2 if n < 4 else None, "png", encoded(n, "PNG")) for n in range(24)]
    for samples_of, small in ((samples, True), ([(key, 1, "png", data) for key, _, _, data in samples], False)):
        index = write_samples(samples_of, tmp_path / str(small), num_classes=2)
        images = ShardPlace(shards=str(tmp_path / str(small)), shard_cache=None, shard_cache_limit=None).survey(index)
        assert images.is_small == small and images.num_unlabelled == 20 * small
        assert images.short_side == 24 * small, "a large set is not looked at"


def test_all_that_is_chosen_by_size_is_chosen_for_the_same_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few labelled and many other photos show-views drew DeiT's views, and each short epoch was evaluated."""
    monkeypatch.setattr("shards.data_defaults.SMALL_SET", 10)
    samples = [(f"{n:02}", n % 2 if n < 4 else None, "png", encoded(n, "PNG")) for n in range(24)]
    index = write_samples(samples, tmp_path / "set", num_classes=2)
    with click.Context(click.Command("train-student")):
        assert evaluated(TrainSettings(), 200, index).eval_every == 10
    drawn: list[str] = []

    def noted(reader: object, recipe: ViewRecipe, *_: object) -> list[object]:
        drawn.append(recipe.name)
        return []

    monkeypatch.setattr("teacher_cache.inspect.sheet.sheet_views", noted)
    monkeypatch.setattr("teacher_cache.inspect.sheet.write_sheets", lambda *_: None)
    done("show-views", "--shards", str(tmp_path / "set"), "--sample", "00", "--out", str(tmp_path / "x.png"))
    assert drawn == ["small"]


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


@pytest.mark.parametrize("num_images", NUMBERS)
@pytest.mark.parametrize("rate", [0.5, 5.0, 124.0, 3_000.0])
@pytest.mark.parametrize("minutes", [0.5, 1.0, 6.0, 60.0])
def test_epochs_within_a_time_count_what_each_costs_besides_its_steps(
    num_images: int, rate: float, minutes: float
) -> None:
    """Of 64 images, 49 epochs were planned for 30 s and took 57 and 44 s, of which 25 and 21 s were steps."""
    epochs = epochs_within(minutes, rate, num_images)
    assert epochs == 1 or epochs * (num_images / rate + 0.25) <= 60 * minutes, "at least the least that was measured"
    assert (epochs + 1) * epoch_seconds(num_images, rate) > 60 * minutes, "and no more than fit"
    assert num_images / rate < epoch_seconds(num_images, rate) <= num_images / rate + 0.6
