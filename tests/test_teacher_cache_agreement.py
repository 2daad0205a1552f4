"""Do teacher and labels speak of the same classes? Refused where it can be known, warned of where it shows."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.index.shard_index import ShardIndex
from teacher_cache.stage1.agreement import (
    ClassAgreement,
    disagrees,
    match_teacher,
    mean_agreement,
    require_known_labels,
    require_new_cache,
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


CLASSES = 11
NATURAL = [sorted(map(str, range(CLASSES))).index(str(n)) for n in range(CLASSES)]  # label of folder n


def teacher_of(kind: str, num_classes: int, label_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """First classes of a teacher that is good, weak, or numbers its classes otherwise."""
    noise_N = rng.integers(0, num_classes, len(label_N))
    if kind == "natural order":
        return np.where(rng.random(len(label_N)) < 0.8, np.argsort(NATURAL)[label_N], noise_N)
    if kind == "swapped":
        return np.where(rng.random(len(label_N)) < 0.72, 1 - label_N, label_N)
    if kind == "the next class":
        return np.where(rng.random(len(label_N)) < 0.3, (label_N + 1) % num_classes, noise_N)
    if kind == "good":
        return np.where(rng.random(len(label_N)) < 0.8, label_N, noise_N)
    if kind == "weak":  # knows every second class, and takes the others for one of two
        return np.where(label_N % 2 == 0, label_N, np.where(rng.random(len(label_N)) < 0.5, 0, 2))
    if kind == "fine-grained":  # every odd class is taken for the even one before it, which it knows
        return label_N - label_N % 2
    assert kind in ("guessing", "one class")
    return noise_N if kind == "guessing" else np.zeros_like(label_N)


@pytest.mark.parametrize("views", [96, 2000])
@pytest.mark.parametrize(
    ("kind", "num_classes", "moved"),
    [
        ("natural order", CLASSES, 9),
        ("swapped", 2, 2),
        ("the next class", 100, 100),
        ("good", CLASSES, 0),
        ("good", 2, 0),
        ("weak", CLASSES, 0),
        ("fine-grained", CLASSES, 0),
        ("one class", CLASSES, 0),
        ("one class", 2, 0),
    ],
)
def test_classes_numbered_otherwise_are_found_class_by_class(kind, num_classes, moved, views):
    """Also where the mean agreement is far above chance; a weak teacher is no reason to doubt the order."""
    rng = np.random.default_rng(0)
    label_N = rng.permutation(np.repeat(np.arange(num_classes), views))
    first_N = teacher_of(kind, num_classes, label_N, rng)
    agreement = ClassAgreement(num_classes)
    for part in np.array_split(np.arange(len(label_N)), 7):
        agreement.add(label_N[part], first_N[part])
    found = agreement.renumbered()
    assert abs(len(found) - moved) <= moved // 10, found
    if kind == "natural order":
        assert all(one.answered_as == np.argsort(NATURAL)[one.label] for one in found)


def test_a_few_views_say_nothing():
    """And no views at all."""
    agreement = ClassAgreement(2)
    assert agreement.renumbered() == ()
    agreement.add(np.array([0, 1] * 15), np.array([1, 0] * 15))
    assert agreement.renumbered() == ()


def test_units_without_views_of_their_own_do_not_count():
    """A mean with NaN would be NaN."""
    assert mean_agreement([0.5, math.nan, 0.7]) == pytest.approx(0.6)


@pytest.fixture
def eight(tmp_path: Path) -> ShardIndex:
    """Shards of eight classes that know no names."""
    return make_shards(tmp_path / "shards", num_samples=32, per_shard=32, num_classes=8)


def test_another_number_of_classes_is_refused_with_three_ways(eight):
    """The advice must not be to pretend that there are as many classes."""
    with pytest.raises(ValueError, match=r"1,000 classes, the shards have 8") as error:
        match_teacher(eight, (), 1000, "regnety_160.deit_in1k")
    said = str(error.value)
    assert all(words in said for words in ("train-teacher --pretrained", "--class-names FILE", "another teacher"))
    assert "index the shards with its number" not in said
    assert len(said) <= 600 and said.count("\n") < 6


def indexed_as(index: ShardIndex, num_classes: int, class_names: tuple[str, ...] = ()) -> ShardIndex:
    """The same shards, said to be of so many classes."""
    return replace(index, num_classes=num_classes, class_names=class_names)


def test_labels_that_are_merely_said_to_be_of_a_thousand_are_refused(eight):
    """They would be taken for ImageNet's first eight classes."""
    with pytest.raises(ValueError, match="labels are 0 to 7 of 1,000 classes without names") as error:
        require_known_labels(indexed_as(eight, 1000), 1000, "regnety_160.deit_in1k")
    assert len(str(error.value)) <= 600


def test_the_subset_way_and_whole_sets_pass(eight):
    """With the teacher's names a few of its classes are enough; all classes need no names."""
    require_known_labels(indexed_as(eight, 1000, tuple(f"n{n:08d}" for n in range(1000))), 1000, "teacher")
    match_teacher(eight, (), 8, "teacher")
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
