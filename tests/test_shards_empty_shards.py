"""Tars without a member, as img2dataset leaves them where every download failed, are passed over when asked for."""

import io
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli import cli
from shards.errors import ShardError
from shards.index.shard_index import ShardIndex, open_index

EMPTY_TARS = {"closed at once": bytes(1024), "padded as by tar": bytes(10240)}


def tar(path: Path, names: tuple[str, ...]) -> None:
    """A shard of img2dataset: jpg, json with the label, txt."""
    image = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(image, "JPEG")
    with tarfile.open(path, "w") as file:
        for number, name in enumerate(names):
            for suffix, data in (("jpg", image.getvalue()), ("json", b'{"y": %d}' % (number % 2)), ("txt", b"a")):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


def folder(root: Path, layout: str, empty: bytes = EMPTY_TARS["padded as by tar"]) -> Path:
    """One tar for each letter: x is full, . is empty."""
    root.mkdir()
    for number, kind in enumerate(layout):
        path = root / f"{number:05d}.tar"
        if kind == "x":
            tar(path, tuple(f"{number:05d}{row:04d}" for row in range(3)))
        else:
            path.write_bytes(empty)
    return root


def check(shards: Path | str, *words: str) -> Result:
    return CliRunner().invoke(cli, ["check-shards", str(shards), "--label-key", "y", "--workers", "0", *words])


@pytest.mark.parametrize("kind", EMPTY_TARS)
@pytest.mark.parametrize("layout", [".x", "x.", "x.x..x", "x"])
def test_empty_shards_are_passed_over_counted_and_remembered(tmp_path: Path, layout: str, kind: str) -> None:
    shards = folder(tmp_path / "s", layout, EMPTY_TARS[kind])
    num_empty, full = layout.count("."), [f"{n:05d}.tar" for n, one in enumerate(layout) if one == "x"]
    if num_empty:
        refused = check(shards)
        assert refused.exit_code == 1 and "holds no samples" in refused.output and "--skip-empty" in refused.output
    for _ in range(2):  # the second time against the index
        done = check(shards, "--skip-empty")
        assert done.exit_code == 0, done.output
        assert (f"passed over: {num_empty} empty shard" in done.output) == bool(num_empty)
    assert check(shards).exit_code == 0, "the index remembers them"
    braces = f"{shards}/{{00000..{len(layout) - 1:05d}}}.tar"
    for pattern in (str(shards), braces if len(layout) > 1 else str(shards)):
        index = open_index(pattern)
        assert list(index.names) == full and index.num_samples == 3 * len(full)
        assert set(index.empty_shards) == {f"{n:05d}.tar" for n, one in enumerate(layout) if one == "."}
    alone = folder(tmp_path / "alone", "x" * len(layout))
    for path in sorted(alone.iterdir()):
        if path.name not in full:
            path.unlink()
    assert check(alone).exit_code == 0
    assert ShardIndex.load(alone / "shards.index").fingerprint == open_index(str(shards)).fingerprint
    if not num_empty:
        assert (alone / "shards.index").read_bytes() == (shards / "shards.index").read_bytes()


def test_a_shard_that_is_no_longer_empty_is_noticed(tmp_path: Path) -> None:
    shards = folder(tmp_path / "s", "x.")
    assert check(shards, "--skip-empty").exit_code == 0
    tar(shards / "00001.tar", ("a", "b"))
    with pytest.raises(ShardError, match=r"00001\.tar: expected an empty shard, as in .*--overwrite"):
        open_index(str(shards))
    assert "00001.tar: not in the index" in check(shards).output
    assert check(shards, "--overwrite").exit_code == 0
    assert open_index(str(shards)).num_samples == 5


def test_a_full_shard_that_became_empty_is_refused(tmp_path: Path) -> None:
    shards = folder(tmp_path / "s", "xx")
    assert check(shards).exit_code == 0
    (shards / "00001.tar").write_bytes(bytes(10240))
    against_index = check(shards, "--skip-empty")
    assert against_index.exit_code == 1, against_index.output
    assert "expected 3 samples as in the index, got 0" in against_index.output
    anew = check(shards, "--skip-empty", "--overwrite")
    assert anew.exit_code == 1 and "expected at least 6 samples" in anew.output


@pytest.mark.parametrize(
    ("layout", "content", "words"),
    [
        ("..", EMPTY_TARS["padded as by tar"], "expected a shard with samples, got 2 empty shards"),
        ("x.", b"", "the file ends"),
        ("x.", bytes(512), "expected two blocks of 512 zeros"),
    ],
)
def test_only_whole_empty_tars_beside_full_ones_are_passed_over(
    tmp_path: Path, layout: str, content: bytes, words: str
) -> None:
    done = check(folder(tmp_path / "s", layout, content), "--skip-empty")
    assert done.exit_code == 1 and words in done.output, done.output
    assert not (tmp_path / "s" / "shards.index").exists()


def test_a_shard_of_passed_over_members_is_not_an_empty_one(tmp_path: Path) -> None:
    """A wrong --ignore-suffix must not drop a shard in silence."""
    shards = folder(tmp_path / "s", "x")
    with tarfile.open(shards / "00001.tar", "w") as file:
        file.addfile(tarfile.TarInfo("a.npy"))
    done = check(shards, "--skip-empty", "--ignore-suffix", "npy")
    assert done.exit_code == 1 and "holds no samples (passed over: 1 × .npy)" in done.output
