"""Training and validation must number their classes alike, or accuracy is silently near chance."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.index.shard_index import ShardIndex
from shards.tars.writer import write_samples
from shards.views.view_recipe import recipe_named
from student.commands.training_display import TrainingDisplay
from student.feed.cache_check import Views
from student.recipe.settings import TrainSettings
from student.run.run_events import Stepped, ValidationChecked
from student.run.shard_sets import ShardSets
from tests.student_tiny import student_recipe, train, views, write_shards

PNG = b"\x89PNG\r\n\x1a\n"


def shards(folder: Path, *, names: tuple[str, ...] = (), num_classes: int | None = None) -> ShardIndex:
    folder.mkdir()
    samples = [(f"k{n}", n % 2, "png", PNG + bytes([n])) for n in range(8)]
    return write_samples(samples, folder, class_names=names, num_classes=num_classes)


def check(train: ShardIndex, val: ShardIndex) -> None:
    views = Views(recipe_named("plain", size=8, block_size=4), None)
    ShardSets(index=train, val_index=val, views=views, shard_cache_dir=None).check()


def test_the_same_classes_or_unknown_names_are_accepted(tmp_path: Path) -> None:
    named = shards(tmp_path / "a", names=("ant", "bee"))
    check(named, shards(tmp_path / "b", names=("ant", "bee")))
    check(named, shards(tmp_path / "c"))


@pytest.mark.parametrize(
    ("names", "num_classes", "message"),
    [
        (("ant", "cow"), None, "class 1 is 'cow' in the validation shards, 'bee' in the training shards"),
        (("ant", "bee", "cow"), None, "class 2 of the validation shards, 'cow', is none of the 2 classes"),
        ((), 5, "5 classes in the validation shards, 2 in the training shards"),
    ],
    ids=["another name", "one more", "another number"],
)
def test_other_classes_are_refused(
    names: tuple[str, ...], num_classes: int | None, message: str, tmp_path: Path
) -> None:
    train = shards(tmp_path / "train", names=("ant", "bee"))
    with pytest.raises(ShardError, match=message):
        check(train, shards(tmp_path / "val", names=names, num_classes=num_classes))


@pytest.mark.parametrize(
    "rows, seed, shared, words",
    [
        ((23, 25, 18), 0, 66, "66 of 66 samples are in the training shards as well"),
        ((9,), 0, 9, "9 of 9 samples are in the training shards as well"),
        ((9,), 1, 0, ""),
        (None, 0, 0, "validation: none; give --val-shards"),
    ],
)
def test_validation_that_is_trained_on_is_counted_first_and_in_the_summary(tmp_path, capsys, rows, seed, shared, words):
    """The same shards, a part of them under other names, others, or none."""
    index = write_shards(tmp_path / "train")
    val_index = write_shards(tmp_path / "val", rows=rows, seed=seed) if rows else None
    recipe = student_recipe(distill="none", epochs=1)
    display = TrainingDisplay(quiet=False)
    steps_before = []
    for event in train(
        recipe, index, settings=TrainSettings(log_every=1), out=tmp_path / "run", views=views(), val_index=val_index
    ):
        if isinstance(event, ValidationChecked):
            display.show(event)
            assert event.num_in_training == shared and not steps_before
        steps_before += [event] if isinstance(event, Stepped) else []
    said = capsys.readouterr().err
    assert words in said and bool(words) == bool(said)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary.get("validation_in_training", 0) == shared and ("validation_in_training" in summary) == bool(shared)


def test_the_same_classes_in_another_order_are_counted_by_name_and_said(tmp_path: Path, capsys) -> None:
    """Top-1 is that of the same images with their classes in the order of the training shards."""
    train_index = write_shards(tmp_path / "train")
    names = tuple("abcde")
    turned = names[::-1]
    named = replace(train_index, class_names=names)
    val = write_shards(tmp_path / "val", rows=(40,), seed=3)
    labels = len(names) - 1 - val.label_N
    vals = replace(val, class_names=names), replace(val, class_names=turned, label_N=labels, path=None)
    recipe, results = student_recipe(distill="none", epochs=1), []
    for number, val_index in enumerate(vals):
        display = TrainingDisplay(quiet=False)
        events = train(
            recipe, named, settings=TrainSettings(), out=tmp_path / f"run{number}", views=views(), val_index=val_index
        )
        for event in events:
            if isinstance(event, ValidationChecked):
                display.show(event)
        results.append(json.loads((tmp_path / f"run{number}/summary.json").read_text()))
    said = capsys.readouterr().err
    assert said.count("in another order: class 0 is 'e' in the validation shards, 'a' in the training") == 1
    assert said.count("labels are counted in the order of the training shards") == 1
    top1 = [{name: value for name, value in summary.items() if "top" in name} for summary in results]
    assert top1[0] == top1[1] and top1[0], results
