"""The benchmark of small sets: what it makes, which commands it runs, and what it prints."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import click
import numpy as np
import pytest
from PIL import Image

from benchmarks.own_data import all_photos
from benchmarks.own_data.__main__ import result_of, run_path, run_set, table
from benchmarks.own_data.sets import Picture, icons, letters, write_set
from benchmarks.study.commands import Commands
from cli import cli
from teacher_cache.network.weights_metadata import BEST_WEIGHTS

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


@pytest.mark.parametrize("begun", [False, True])
def test_the_teacher_answers_with_the_weights_that_train_teacher_advises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """It answered with its last epoch's; a cache that was begun with those goes on with them, as in `distill`."""
    place = tmp_path / "cats"
    summary = {"top1": 90.0, "best_epoch": 1, "best_top1": 93.0, "best_weights": BEST_WEIGHTS}

    class Training(Noted):
        """Leaves what train-teacher leaves."""

        def run(self, stage: str, *words: str | Path) -> None:
            """Note a command."""
            super().run(stage, *words)
            if words[0] == "train-teacher":
                (place / "teacher").mkdir(parents=True)
                (place / "teacher" / BEST_WEIGHTS).write_bytes(b"")
                (place / "teacher" / "summary.json").write_text(json.dumps(summary))

    if begun:
        last = place / "teacher" / "weights.safetensors"
        monkeypatch.setattr(
            "student.commands.distill.header_at", lambda _: SimpleNamespace(spec=SimpleNamespace(teacher=1))
        )
        monkeypatch.setattr("teacher_cache.network.teacher.weights_of_cache", lambda *_: last)
    noted = Training()
    run_set("cats", tmp_path / "photos", tmp_path, 1, cast("Commands", noted))
    (cached,) = (line for line in noted.lines if line[0] == "cache-teacher")
    used = Path(cached[cached.index("--teacher-weights") + 1])
    assert used == place / "teacher" / ("weights.safetensors" if begun else BEST_WEIGHTS)
    assert result_of("cats", tmp_path, 1)["teacher"]["mean"] == (90.0 if begun else 93.0)


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


def test_no_icon_of_validation_is_trained_on(tmp_path: Path) -> None:
    """A theme has an icon under several names, in several categories; 42 of 244 were also in training."""
    for category in ("actions", "places"):
        (tmp_path / category).mkdir()
        for n in range(60):
            pixel_HWC = np.full((8, 8, 3), n // 3, np.uint8)  # three names have the same pixels
            Image.fromarray(pixel_HWC).save(tmp_path / category / f"{n}.png")
    first, again = list(icons(tmp_path)), list(icons(tmp_path))
    pixels = {split: {p.pixel_HWC.tobytes() for p in first if p.split == split} for split in ("train", "val")}
    assert pixels["train"] and pixels["val"] and not pixels["train"] & pixels["val"]
    assert len(pixels["train"] | pixels["val"]) == 20, "each picture is in one of the two"
    assert [p[:3] for p in first] == [p[:3] for p in again]


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


def test_students_are_also_measured_on_all_photos_of_their_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every validation photo of the first classes, none of training; only students that have finished."""
    for split, label, n in itertools.product(("train", "val"), "abcdefg", range(3)):
        path = tmp_path / "photos" / split / label / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 9 * n, np.uint8)).save(path)
    for arm, finished in (("none", True), ("soft", False)):
        folder = run_path(tmp_path, "nette5", arm, 0)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}") if finished else None

    def evaluated(weights: Path, shards: Path) -> dict[str, object]:
        assert weights == run_path(tmp_path, "nette5", "none", 0) / "weights.safetensors"
        return {"cls": {"top1": 50.0}}

    monkeypatch.setattr(all_photos, "evaluated", evaluated)
    nothing = {"top1": [], "mean": None}
    assert all_photos.result_of("nette5", tmp_path, tmp_path / "photos") == {
        "name": "nette5", "num_images": 15, "none": {"top1": [50.0], "mean": 50.0}, "soft": nothing, "hard": nothing,
    }  # fmt: skip
