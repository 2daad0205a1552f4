"""What --split holds out: copies of one image stay together, and a set without copies is split as ever."""

import errno
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.formats.class_folders import list_class_folders
from shards.formats.file_tree import Directory
from shards.formats.held_out import copies_of, held_out
from shards.formats.image_list import ImageList
from shards.index.shard_index import ShardIndex
from tests.test_shards_formats import encoded, labels_of, made, put

Contents = dict[str, int]  # path → number of the image that it holds


def listed(root: Path, contents: Contents) -> ImageList:
    """Files whose bytes are told by their number; many have one size."""
    for path, number in contents.items():
        put(root / path, hashlib.sha256(b"%d" % number).digest() * (1 + number % 3))
    return list_class_folders(Directory(root))


def random_contents(seed: int, *, across: bool, copies: bool = True) -> Contents:
    """Some classes of some images, of which up to half are copies, of images of the same class or of any."""
    random = np.random.default_rng(seed)
    contents: Contents = {}
    for label in range(int(random.integers(2, 6))):
        used = list(contents.values()) if across else []
        for n in range(int(random.integers(1, 30))):
            again = copies and used and random.random() < 0.5
            number = used[int(random.integers(len(used)))] if again else len(contents)
            used.append(number)
            contents[f"c{label}/{random.integers(10**6)}-{n}.jpg"] = number
    return contents


def share_of(seed: int) -> float:
    return (0.05, 0.2, 0.5, 0.8)[seed % 4]


def sides(sets: dict[str, ImageList]) -> dict[str, set[str]]:
    return {name: {image.path for image in images.images} for name, images in sets.items()}


def as_ever(paths: Sequence[str], share: float) -> set[str]:
    """Which images were held out before copies were looked for: of each class those of the smallest hashes."""
    val: set[str] = set()
    for label in {path.split("/")[0] for path in paths}:
        own = sorted(path for path in paths if path.startswith(f"{label}/"))
        own.sort(key=lambda path: int.from_bytes(hashlib.blake2b(path[:-4].encode(), digest_size=8).digest(), "little"))
        num = min(max(round(share * len(own)), min(1, len(own) - 1)), max(1, len(own) - 1))
        val.update(own[:num])
    return val


def divided(contents: Contents, parts: dict[str, set[str]]) -> set[int]:
    """The images of which a copy is on each side."""
    return {contents[path] for path in parts["train"]} & {contents[path] for path in parts["val"]}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("across", [False, True])
def test_copies_of_an_image_are_on_one_side(seed: int, across: bool, tmp_path: Path) -> None:
    contents = random_contents(seed, across=across)
    images, share = listed(tmp_path, contents), share_of(seed)
    copies = copies_of(images)
    grouped = {frozenset(contents[images.images[place].path] for place in group) for group in copies}
    times = Counter(contents.values())
    assert grouped == {frozenset({number}) for number, num in times.items() if num > 1}
    assert sum(map(len, copies)) == sum(num for num in times.values() if num > 1)
    if len(times) == 1:
        return
    parts = sides(held_out(images, share, copies))
    assert not parts["train"] & parts["val"] and parts["train"] | parts["val"] == set(contents)
    assert not divided(contents, parts)
    assert [image.path for image in held_out(images, share, copies)["val"].images] == sorted(parts["val"])
    for label in {path.split("/")[0] for path in contents}:
        own = {path for path in contents if path.startswith(f"{label}/")}
        different = Counter(contents[path] for path in own)
        if len(different) > 1 and not across:
            assert own & parts["train"] and own & parts["val"], "each class is on both sides"
            most = max(round(share * len(own)), 1, min(different.values()))
            assert len(own & parts["val"]) <= most


@pytest.mark.parametrize("seed", range(20))
def test_a_set_without_copies_is_split_as_ever(seed: int, tmp_path: Path) -> None:
    contents = random_contents(seed, across=False, copies=False) | {"other/x.jpg": 1000, "other/y.jpg": 1001}
    images, share = listed(tmp_path, contents), share_of(seed)
    assert copies_of(images) == []
    assert sides(held_out(images, share, copies_of(images)))["val"] == as_ever(list(contents), share)


@pytest.mark.parametrize("seed", range(20))
def test_without_a_look_at_copies_it_is_split_as_ever(seed: int, tmp_path: Path) -> None:
    """So a folder that an earlier version began can go on."""
    contents = random_contents(seed, across=True) | {"other/x.jpg": 1000, "other/y.jpg": 1001}
    images, share = listed(tmp_path, contents), share_of(seed)
    assert sides(held_out(images, share))["val"] == as_ever(list(contents), share)


def test_a_file_that_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    """Nor is the search its error: the packing names it."""
    images = listed(tmp_path, {"c/1.jpg": 1, "c/2.jpg": 1, "c/3.jpg": 1, "d/4.jpg": 4})
    (tmp_path / "c/2.jpg").unlink()
    assert copies_of(images) == [[0, 2]]


def test_what_cannot_be_read_now_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The split would be another one as soon as it can be read again."""
    images = listed(tmp_path, {"c/1.jpg": 1, "d/2.jpg": 1})

    def read(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(type(images.tree), "read", read)
    with pytest.raises(OSError, match="too many open files"):
        copies_of(images)


def photos(root: Path) -> Path:
    """Two classes of nine images, each there twice, under other names."""
    for label in range(2):
        for n in range(9):
            for name in ("", "-copy"):
                put(root / f"c{label}" / f"{n}{name}.JPEG", encoded(100 * label + n))
    return root


def num_shared(dest: Path) -> int:
    train, val = (ShardIndex.load(dest / split / "shards.index") for split in ("train", "val"))
    return val.num_in(train)


def test_make_shards_keeps_copies_together_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = made(photos(tmp_path / "in"), tmp_path / "out", "--split", "0.2")
    assert "18 of 36 images are copies of others: all of an image are on one side of the split" in said
    assert "as well" not in said
    assert num_shared(tmp_path / "out") == 0
    put(tmp_path / "alone" / "a" / "1.JPEG", encoded(1))
    put(tmp_path / "alone" / "b" / "2.JPEG", encoded(2))
    put(tmp_path / "alone" / "b" / "3.JPEG", encoded(3))
    alone = (tmp_path / "alone", tmp_path / "none", "--split", "0.5")
    assert "one side of the split" not in made(*alone)
    monkeypatch.setattr("shards.formats.held_out.copies_of", None)
    made(*alone)  # finished shards without copies are found without reading all images of equal size again


@pytest.mark.parametrize("kept", ["all", "all, of newer files", "one tar"])
def test_shards_that_were_split_through_copies_go_on(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They belong to a cache and to runs: the same command finds them finished, or finishes them."""
    source, dest, words = photos(tmp_path / "in"), tmp_path / "out", ("--split", "0.2", "--samples-per-shard", "20")
    with monkeypatch.context() as patched:
        patched.setattr("shards.formats.held_out.copies_of", lambda images: [])
        made(source, dest, *words)
    before = {path: path.read_bytes() for path in sorted(dest.rglob("*.tar"))}
    held = set(labels_of(dest / "val"))
    assert num_shared(dest), "the fault"
    if kept == "one tar":
        for path in [*before][1:]:
            path.unlink()
        for path in dest.rglob("shards.*"):
            path.unlink()
    if kept == "all, of newer files":
        for path in source.rglob("*.JPEG"):
            path.touch()
    said = made(source, dest, *words)
    assert {path: path.read_bytes() for path in sorted(dest.rglob("*.tar"))} == before
    assert set(labels_of(dest / "val")) == held
    assert f"{num_shared(dest)} of {len(held)} validation images are in the training shards as well" in said
    assert num_shared(dest), said


@pytest.mark.parametrize("how", ["both at once", "val after train", "train after val"])
@pytest.mark.parametrize("num", [0, 1, 3])
def test_validation_images_that_are_trained_on_are_counted_in_one_line(how: str, num: int, tmp_path: Path) -> None:
    for n in range(4):
        label = "bee" if n == 2 else "ant"
        put(tmp_path / "in" / "train" / label / f"{n}.JPEG", encoded(n))
        put(tmp_path / "in" / "val" / label / f"v{n}.JPEG", encoded(n if n < num else 50 + n))
    names = {"val after train": ["train", "val"], "train after val": ["val", "train"]}.get(how, [""])
    for name in names:
        said = made(tmp_path / "in" / name, tmp_path / "out" / name)
    lines = [line for line in said.splitlines() if "in the training shards as well" in line]
    verb = "is" if num == 1 else "are"
    assert len(lines) == min(num, 1)
    assert not num or lines[0].startswith(f"warning: {num} of 4 validation images {verb} in the training shards")
