"""Do teacher and labels speak of the same classes? Refused where it can be known, warned of where it shows."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from shards.index.shard_index import ShardIndex
from teacher_cache.stage1.agreement import (
    disagrees,
    mean_agreement,
    require_known_labels,
    require_new_cache,
    require_same_classes,
)
from tests.stage1_tiny import make_shards, opened, tiny_teacher, views


@pytest.mark.parametrize(
    ("agreement", "num_classes", "expected"),
    [
        pytest.param(0.0033, 1000, True, id="a thousand classes on eight of one's own"),
        pytest.param(0.20, 8, False, id="eight classes, half learned"),
        pytest.param(0.20, 1000, False, id="hard views of a good teacher"),
        pytest.param(0.12, 8, True, id="chance"),
        pytest.param(0.0, 100, True, id="permuted classes of a good teacher"),
        pytest.param(0.5, 2, False, id="two classes: a coin says nothing"),
        pytest.param(math.nan, 1000, False, id="no unit was computed"),
    ],
)
def test_the_warning_fires_on_other_classes_and_not_on_a_weak_teacher(agreement, num_classes, expected):
    """Twice chance would miss the first and cry wolf at the second."""
    assert disagrees(agreement, num_classes) is expected


def test_units_without_views_of_their_own_do_not_count():
    """A mean with NaN would be NaN."""
    assert mean_agreement([0.5, math.nan, 0.7]) == pytest.approx(0.6)


@pytest.fixture
def eight(tmp_path: Path) -> ShardIndex:
    """Shards of eight classes that know no names."""
    return make_shards(tmp_path / "shards", num_samples=32, per_shard=32, num_classes=8)


def test_another_number_of_classes_is_refused_with_three_ways(eight):
    """The advice must not be to pretend that there are as many classes."""
    with pytest.raises(ValueError, match=r"1000 classes, the shards have 8") as error:
        require_same_classes(eight, 1000, "regnety_160.deit_in1k")
    said = str(error.value)
    assert all(words in said for words in ("train-teacher --pretrained", "--class-names FILE", "another teacher"))
    assert "index the shards with its number" not in said
    assert len(said) <= 600 and said.count("\n") < 6


def indexed_as(index: ShardIndex, num_classes: int, class_names: tuple[str, ...] = ()) -> ShardIndex:
    """The same shards, said to be of so many classes."""
    return replace(index, num_classes=num_classes, class_names=class_names)


def test_labels_that_are_merely_said_to_be_of_a_thousand_are_refused(eight):
    """They would be taken for ImageNet's first eight classes."""
    with pytest.raises(ValueError, match="labels are 0 to 7 of 1000 classes without names") as error:
        require_known_labels(indexed_as(eight, 1000), 1000, "regnety_160.deit_in1k")
    assert len(str(error.value)) <= 600


def test_the_subset_way_and_whole_sets_pass(eight):
    """With the teacher's names a few of its classes are enough; all classes need no names."""
    require_known_labels(indexed_as(eight, 1000, tuple(f"n{n:08d}" for n in range(1000))), 1000, "teacher")
    require_same_classes(eight, 8, "teacher")
    require_known_labels(eight, 8, "teacher")


@pytest.mark.parametrize(
    ("recipe", "num_views"),
    [
        pytest.param({"block_size": 64}, 4, id="blocks that no shard fills"),
        pytest.param({}, 3, id="part of a unit"),
    ],
)
def test_what_the_command_refuses_early_the_library_refuses_in_the_same_words(tmp_path, eight, recipe, num_views):
    """And it writes no cache."""
    with pytest.raises(ValueError, match=r"expected|no shard") as early:
        require_new_cache(eight, views(**recipe), num_views)
    with pytest.raises(ValueError, match=r"expected|no shard") as late:
        opened(tmp_path / "c", eight, tiny_teacher(num_classes=8), recipe=views(**recipe), num_views=num_views)
    assert str(late.value) == str(early.value)
    assert not (tmp_path / "c" / "zarr.json").exists()
