"""Paths in the hints that commands print: any spelling of a folder has neighbours."""

from pathlib import Path

import pytest

from shards.commands.make_shards import _next_command
from shards.commands.shard_place import beside, val_beside
from student.learn.timm_model import num_params

SPELLINGS = ["S", "./S", "data/train", ".", "..", "../S", "/", "/x/train", "data/.."]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_folder_has_a_neighbour(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--shards .` and a DEST in the working folder ended commands after all their work was done."""
    here = tmp_path / "a" / "b"
    (here / "data").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert beside(Path(spelling), "n").resolve() == (Path(spelling).resolve().parent / "n")
    assert val_beside(spelling) is None
    for splits in ((), ("train", "val")):
        words = [str(word) for word in _next_command(Path("photos"), Path(spelling), splits)]
        assert words[0] == "train-teacher" and Path(words[-1]).name == "teacher"


def test_the_teacher_goes_where_its_data_are() -> None:
    folders = {spelling: str(_next_command(Path("photos"), Path(spelling), ())[-1]) for spelling in ("S", "data/train")}
    assert folders == {"S": "teacher", "data/train": "teacher"}


def test_parameters_are_counted_whatever_the_tag() -> None:
    """A tag names weights, which need not be timm's: a run had ended there, after its last epoch."""
    assert num_params("test_resnet.of_mine, answers to a crop", 10) == num_params("test_resnet", 10)
    assert num_params("package.module:function", 10) is None


@pytest.mark.parametrize("more", ["", "::data/more", "::s3://b/more"])
def test_the_validation_set_beside_the_first_of_joined_ones_is_found(
    more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With photos without labels joined to it, a training set had no validation in the command that comes next."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "val").mkdir(parents=True)
    (tmp_path / "data" / "val" / "shards.index").write_text("")
    assert val_beside(f"data/train{more}") == "data/val" and val_beside(f"data/other{more}") is None
