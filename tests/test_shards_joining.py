"""Several sets of shards as one: `A::B` of sets whose shards, images or classes have names in common."""

import pickle
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from shards.commands.shard_place import ShardPlace
from shards.errors import ShardError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex, open_index
from shards.tars.writer import write_samples
from tests.test_shards_writer import encoded


def written(folder: Path, images: dict[str, tuple[int | None, int]], classes: tuple[str, ...], **options) -> ShardIndex:
    """Shards of images, each a key, its label and the number of its pixels."""
    samples = ((key, label, "png", encoded(number)) for key, (label, number) in images.items())
    return write_samples(samples, folder, samples_per_shard=3, class_names=classes, **options)


def samples(index: ShardIndex) -> list[tuple[str, str | None, bytes]]:
    """Key, class and bytes of every sample."""
    with ShardReader(index) as reader:
        return [
            (
                index.key(shard, row),
                None if (label := index.label_N[index.row_number(shard, row)]) < 0 else index.class_names[label],
                reader.image_bytes(shard, row),
            )
            for shard in range(index.num_shards)
            for row in range(index.num_rows(shard))
        ]


@pytest.mark.parametrize("seed", range(6))
def test_a_join_has_the_samples_of_each_set_with_their_classes_under_names_of_their_own(seed, tmp_path: Path) -> None:
    rng = random.Random(seed)
    alone = []
    for number in range(rng.choice((2, 3))):
        classes = tuple(sorted(rng.sample(["ant", "bee", "cow", "dog", "éland"], rng.randint(2, 5))))
        labels = [None, *range(len(classes))]
        images = {f"i{n}": (rng.choice(labels), 20 * number + n) for n in rng.sample(range(20), rng.randint(4, 9))}
        alone.append(written(tmp_path / str(number), images, classes))
    both = open_index("::".join(str(tmp_path / str(number)) for number in range(len(alone))))
    assert [sample[1:] for sample in samples(both)] == [sample[1:] for index in alone for sample in samples(index)]
    keys, first = [key for key, _, _ in samples(both)], [key for index in alone for key, _, _ in samples(index)]
    assert len(set(keys)) == len(keys) and len(set(both.names)) == len(both.names)
    changed = [(new, old) for new, old in zip(keys, first, strict=True) if new != old]
    assert all(new.startswith(f"{old}~") and first.count(old) > 1 for new, old in changed), changed
    assert [both.find(key) for key in keys] == [
        (shard, row) for shard in range(both.num_shards) for row in range(both.num_rows(shard))
    ]
    assert list(both.names[: alone[0].num_shards]) == list(alone[0].names), "names of the first set stay"
    for number, index in enumerate(alone):
        assert open_index(str(tmp_path / str(number))).fingerprint == index.fingerprint
    copy = pickle.loads(pickle.dumps(both))
    assert copy.fingerprint == both.fingerprint and samples(copy) == samples(both)
    other = open_index("::".join(str(tmp_path / str(number)) for number in reversed(range(len(alone)))))
    assert other.fingerprint != both.fingerprint


A = ("ant", "bee")


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (A, A, A),
        (A, ("bee", "ant"), A),
        (A, ("bee", "ant", "cow"), ("bee", "ant", "cow")),
        (("bee", "cow"), A, ("ant", "bee", "cow")),
        (A, (), A),
    ],
)
def test_classes_are_found_by_name(one: tuple[str, ...], two: tuple[str, ...], expected, tmp_path: Path) -> None:
    written(tmp_path / "a", {"x": (0, 1), "y": (1, 2)}, one)
    written(tmp_path / "b", {"z": (0, 3), "w": (1, 4)}, two)
    both = open_index(f"{tmp_path / 'a'}::{tmp_path / 'b'}")
    assert both.class_names == expected
    assert [name for _, name, _ in samples(both)] == [*one, *(two or one)[:2]]
    assert ("joined by name" in both.join_words) == (not one == expected == (two or one))


def test_a_set_without_class_names_is_joined_by_number(tmp_path: Path) -> None:
    """A first set without names gives a join without names, as ever: caches were made of such joins."""
    written(tmp_path / "n", {"v": (0, 1), "w": (1, 2)}, ())
    written(tmp_path / "a", {"x": (0, 3), "y": (1, 4)}, A)
    written(tmp_path / "b", {"z": (0, 5), "u": (1, 6)}, ("ant", "cow"))
    both = open_index(f"{tmp_path / 'n'}::{tmp_path / 'a'}")
    assert (both.class_names, both.num_classes, both.label_N.tolist()) == ((), 2, [0, 1, 0, 1])
    assert "by name" not in both.join_words
    for sets in ("nab", "anb", "abn"):
        with pytest.raises(ShardError, match=r"n: expected names of its classes.* --class-names"):
            open_index("::".join(str(tmp_path / name) for name in sets))


def test_what_a_join_changed_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a", {"x": (0, 1), "y": (1, 2)}, A)
    written(tmp_path / "b", {"x": (0, 3), "z": (1, 4)}, ("bee", "cow"))
    ShardPlace(shards=f"{tmp_path / 'a'}::{tmp_path / 'b'}", shard_cache=None, shard_cache_limit=None).index()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"3 classes, joined by name (2 in {tmp_path / 'a'}, 2 in {tmp_path / 'b'})" in said
    assert "1 shard with a name that an earlier set has: 'shard-000000.tar' is called 'shard-000000~2.tar'" in said
    assert "1 image with a name that an earlier set has: 'x' is called 'x~2'" in said


def test_sets_that_cannot_be_one_are_refused_with_what_to_do(tmp_path: Path) -> None:
    written(tmp_path / "a", {"x": (0, 1), "y": (1, 2)}, A)
    written(tmp_path / "b", {"x": (0, 1), "z": (1, 4)}, A)
    written(tmp_path / "c", {"v": (0, 5), "w": (2, 6)}, ())
    with pytest.raises(ShardError, match=r"the image 'x' is also in .*a; expected every image once: leave one"):
        open_index(f"{tmp_path / 'a'}::{tmp_path / 'b'}")
    with pytest.raises(ShardError, match="the image 'x' is also in"):
        open_index(f"{tmp_path / 'a'}::{tmp_path / 'a'}")
    with pytest.raises(ShardError, match=r"c: expected 2 classes as in .*a, got 3, and no names .* --class-names"):
        open_index(f"{tmp_path / 'a'}::{tmp_path / 'c'}")
    refused = CliRunner().invoke(cli, ["check-shards", f"{tmp_path / 'a'}::{tmp_path / 'c'}"])
    assert refused.exit_code == 1 and "index of its own (check-shards SET)" in refused.output, refused.output
