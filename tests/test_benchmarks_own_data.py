"""The benchmark of small sets: what it makes, which commands it runs, and what it prints."""

import itertools
import json
from pathlib import Path
from typing import cast

import click
import numpy as np
import pytest
from PIL import Image

from benchmarks.own_data.__main__ import result_of, run_path, run_set, table
from benchmarks.own_data.sets import Picture, letters, write_set
from benchmarks.study.commands import Commands
from cli import cli

PATHS = {"--shards", "--val-shards", "--out", "--cache", "--teacher-weights"}
NAMES = {"--pretrained", "--distill", "--seed"}


class Noted:
    """Notes the commands that would be run."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []

    def run(self, stage: str, *words: str | Path) -> None:
        """Note one."""
        self.lines.append([str(word) for word in words])


def test_a_set_goes_through_the_commands_with_no_flag_but_paths(tmp_path: Path) -> None:
    """What is measured is what a user gets who types nothing else."""
    noted = Noted()
    run_set("cats", tmp_path / "photos", tmp_path, 2, cast("Commands", noted))
    kinds = [line[0] for line in noted.lines]
    assert kinds == ["make-shards"] * 2 + ["train-teacher", "cache-teacher"] + ["train-student"] * 6
    for line in noted.lines:
        assert {word for word in line if word.startswith("--")} <= PATHS | NAMES
        command = cli.get_command(click.Context(cli), line[0])
        assert command is not None
        command.make_context(line[0], list(line[1:]), resilient_parsing=True)


def test_a_set_is_written_once_and_whole(tmp_path: Path) -> None:
    """A folder that was being written when the power failed is not taken for a set."""
    pictures = [Picture(split, "a", "1", np.zeros((4, 4, 3), np.uint8)) for split in ("train", "val")]

    def broken():
        yield pictures[0]
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_set(broken(), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    write_set(iter(pictures), tmp_path / "set")
    write_set(broken(), tmp_path / "set")
    with Image.open(tmp_path / "set" / "val" / "a" / "1.png") as image:
        assert image.size == (4, 4)


def test_letters_are_unbalanced_and_validated_in_other_fonts() -> None:
    """The first ones of each class, enough to see a picture of each."""
    first = list(itertools.islice(letters(), 60))
    assert {picture.split for picture in first} == {"train", "val"}
    assert all(picture.pixel_HWC.std() > 5 for picture in first), "a letter is seen"


def test_the_results_are_top1_by_seed_and_their_mean(tmp_path: Path) -> None:
    """A run that has not finished is null, and counts in no mean."""
    runs = {"none": [60.0, 62.0], "soft": [66.0, None], "hard": [None, None]}
    (tmp_path / "cats" / "teacher").mkdir(parents=True)
    (tmp_path / "cats" / "teacher" / "summary.json").write_text(json.dumps({"top1": 90.0}))
    for arm, values in runs.items():
        for seed, top1 in enumerate(values):
            folder = run_path(tmp_path, "cats", arm, seed)
            folder.mkdir(parents=True)
            if top1 is not None:
                (folder / "summary.json").write_text(json.dumps({"top1": top1}))
    row = result_of("cats", tmp_path, 2)
    assert row["teacher"] == {"top1": [90.0], "mean": 90.0}
    assert row["none"]["mean"] == 61.0 and row["soft"]["top1"] == [66.0, None] and row["hard"]["mean"] is None
    assert "| cats | 90.0 | 61.0 | 66.0 | – | +6.0 | 1 |" in table([row])
