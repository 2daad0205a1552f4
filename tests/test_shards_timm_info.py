"""A data set with its parts, made by make-shards, is one that timm's own `wds/` reader reads by part."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from timm.data import create_dataset

from cli import cli
from shards.index.shard_index import open_index

INFO = "_info.json"


def photos(root: Path, splits: tuple[str, ...]) -> Path:
    """Class folders of small pictures of two formats, inside each part."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in ("ant", "bee"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(5 if split == "val" else 9):
                suffix = ("jpg", "png")[number % 2]
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"{number}.{suffix}")
    return root


def make(*words: str | Path) -> str:
    result = CliRunner().invoke(cli, ["make-shards", *map(str, words), "--samples-per-shard", "4", "--workers", "0"])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("held_out", [False, True])
def test_timm_reads_each_part_with_its_counts(tmp_path: Path, held_out: bool) -> None:
    if held_out:
        make(photos(tmp_path / "in", ("train",)) / "train", tmp_path / "data", "--split", "0.3")
    else:
        make(photos(tmp_path / "in", ("train", "val")), tmp_path / "data")
    for split in ("train", "val"):
        index = open_index(str(tmp_path / "data" / split))
        dataset = create_dataset("wds/", root=str(tmp_path / "data"), split=split, is_training=False, batch_size=1)
        assert len(dataset) == index.num_samples > 0
        assert [int(target) for _, target in dataset] == index.label_N.tolist()
        info = json.loads((tmp_path / "data" / INFO).read_text())["splits"][split]
        assert info["shard_lengths"] == index.rows_S.tolist() and info["name"] == split


def test_the_same_command_writes_the_same_and_leaves_the_file_of_others(tmp_path: Path) -> None:
    source, dest = photos(tmp_path / "in", ("train", "val")), tmp_path / "data"
    make(source, dest)
    before = (dest / INFO).read_bytes()
    make(source, dest)
    assert (dest / INFO).read_bytes() == before
    for content in ('{"splits": {}}', "no JSON", "[]"):
        (dest / INFO).write_text(content)
        assert f"{dest / INFO}: not written by make-shards, so it stays" in make(source, dest)
        assert (dest / INFO).read_text() == content


def test_one_set_alone_has_no_parts(tmp_path: Path) -> None:
    make(photos(tmp_path / "in", ("train",)) / "train", tmp_path / "data")
    assert not list(tmp_path.rglob(INFO))
