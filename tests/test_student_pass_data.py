"""Training and validation must number their classes alike, or accuracy is silently near chance."""

from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.index.shard_index import ShardIndex
from shards.tars.writer import write_samples
from shards.views.view_recipe import recipe_named
from student.feed.cache_check import Views
from student.feed.pass_data import Data

PNG = b"\x89PNG\r\n\x1a\n"


def shards(folder: Path, *, names: tuple[str, ...] = (), num_classes: int | None = None) -> ShardIndex:
    folder.mkdir()
    samples = [(f"k{n}", n % 2, "png", PNG + bytes([n])) for n in range(8)]
    return write_samples(samples, folder, class_names=names, num_classes=num_classes)


def check(train: ShardIndex, val: ShardIndex) -> None:
    views = Views(recipe_named("plain", size=8, block_size=4), None)
    Data(index=train, val_index=val, views=views, shard_cache_dir=None).check()


def test_the_same_classes_or_unknown_names_are_accepted(tmp_path: Path) -> None:
    named = shards(tmp_path / "a", names=("ant", "bee"))
    check(named, shards(tmp_path / "b", names=("ant", "bee")))
    check(named, shards(tmp_path / "c"))


@pytest.mark.parametrize(
    ("names", "num_classes", "message"),
    [
        (("ant", "cow"), None, "other from class 1 on"),
        (("ant", "bee", "cow"), None, "expected the 2 classes .* got 3, other from class 2"),
        ((), 5, "got 5"),
    ],
    ids=["another name", "one more", "another number"],
)
def test_other_classes_are_refused(
    names: tuple[str, ...], num_classes: int | None, message: str, tmp_path: Path
) -> None:
    train = shards(tmp_path / "train", names=("ant", "bee"))
    with pytest.raises(ShardError, match=message):
        check(train, shards(tmp_path / "val", names=names, num_classes=num_classes))
