"""The commands of docs/imagenet.md and of the first page's table run as they stand, on tiny copies of each layout."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from shards.index.shard_index import ShardIndex
from tests.test_shards_formats import (
    NAMES,
    WNIDS,
    class_folders,
    devkit,
    flat,
    flat_val,
    kaggle,
    labels_of,
    made,
    outer_tar,
    put,
    solution,
    tar_of,
    val_txt,
    zip_of,
)

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
FIRST_PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def layouts(at: Path) -> dict[str, str]:
    """Each download of the page, with three classes; validation image → wnid."""
    wnid_of = flat_val(at / "val")
    val = {file.name: file.read_bytes() for file in (at / "val").iterdir()}
    tar_of(at / "ILSVRC2012_img_val.tar", val)
    outer_tar(class_folders(at / "imagenet" / "train"), at)
    for name, wnid in wnid_of.items():
        put(at / "imagenet" / "val" / wnid / f"{name}.JPEG", val[f"{name}.JPEG"])
    val_txt(at, wnid_of)
    devkit(at / "ILSVRC2012_devkit_t12" / "data", wnid_of)
    put(at / "wnids.txt", "\n".join(WNIDS))
    zip_of(at / "imagenet-object-localization-challenge.zip", kaggle(at / "kaggle", inside=False))
    shutil.move(at / "kaggle" / "ILSVRC", at / "ILSVRC")
    put(at / "LOC_val_solution.csv", solution(wnid_of))
    return wnid_of


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wnid_of = layouts(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    python cli.py ")]
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)[3:]
        made(Path(words[0]), Path(words[1]), *words[2:], "--workers", "1")
    for folder in ("train", "kaggle/train", "unpacked/train", "folders/train"):
        index = ShardIndex.load(tmp_path / "data" / folder / "shards.index")
        assert index.class_names == WNIDS
        first = tmp_path / "data" / folder / "shard-000000.tar"
        assert first.read_bytes() == (tmp_path / "data" / "train" / "shard-000000.tar").read_bytes(), folder
    for folder in ("val", "val-caffe", "val-devkit", "kaggle/val", "unpacked/val", "folders/val"):
        found = {key.rpartition("/")[2]: wnid for key, wnid in labels_of(tmp_path / "data" / folder).items()}
        assert found == wnid_of, folder


@pytest.mark.slow
def test_the_table_of_the_first_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts(tmp_path)
    class_folders(tmp_path / "photos" / "train")
    class_folders(tmp_path / "photos" / "val")
    zip_of(tmp_path / "photos.zip", tmp_path / "photos")
    flat(tmp_path / "images")
    put(tmp_path / "labels.csv", "".join(f"{name},{label}\n" for name, label in NAMES.items()))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"`make-shards ([^`]+)`", FIRST_PAGE)
    assert len(commands) == 6
    for number, command in enumerate(commands):
        words = shlex.split(command)
        made(Path(words[0]), Path(f"{words[1]}-{number}"), *words[2:])
