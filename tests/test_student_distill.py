"""`distill` runs the other commands in order, as a user would type them, and ends with what came out."""

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from shards.commands.make_shards import _say_pixels
from shards.tars.writer import write_samples
from student.commands.distill import distill, outcome

PNG = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
SUMMARY = {"validation_images": 100, "validation_majority": 20.0}


def write_run(out: Path, top1: float, words: tuple[str, ...]) -> None:
    """A finished run, as far as `distill` reads it."""
    out.mkdir(parents=True, exist_ok=True)
    typed = dict(pairwise(words))
    start = f"timm:{typed['--pretrained']}" if "--pretrained" in typed else ""
    recipe = {"epochs": 7, "model": typed.get("--model", "net"), "init_weights": start}
    (out / "config.json").write_text(json.dumps({"recipe": recipe, "train": {}}))
    (out / "summary.json").write_text(json.dumps({**SUMMARY, "top1": top1, "images_per_s": 40.0}))


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[click.Group]:
    """Commands of the real names that write what theirs would leave, and keep what they were asked."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(b"")
    asked: list[list[str]] = []

    def act(name: str, words: tuple[str, ...]) -> None:
        asked.append([name, *words])
        if name == "make-shards":
            for split in ("train", "val"):
                samples = [(f"dog/{n}", n - 1, "png", PNG) for n in (1, 2)]
                if not Path(words[1], split).exists():
                    write_samples(samples, Path(words[1], split), num_classes=2)
        elif name.startswith("train"):
            write_run(Path(words[-1]), 90.0 if name == "train-teacher" else 26.0, words)
        elif name == "cache-teacher":
            Path(words[-1]).mkdir(exist_ok=True)

    commands: dict[str, click.Command] = {"distill": distill}
    for name in ("make-shards", "train-teacher", "cache-teacher", "train-student", "evaluate", "report"):
        params: list[click.Parameter] = [click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)]
        settings = {"ignore_unknown_options": True}
        commands[name] = click.Command(
            name, params=params, callback=lambda words, name=name: act(name, words), context_settings=settings
        )
    monkeypatch.setattr("student.commands.distill._views", lambda *_: 24)
    group = click.Group("cli.py", commands)
    vars(group)["asked"] = asked
    yield group


def run(group: click.Group, *words: str) -> tuple[str, list[list[str]]]:
    """What is printed, and the commands that ran."""
    vars(group)["asked"].clear()
    done = CliRunner().invoke(group, ["distill", *words], prog_name="cli.py")
    assert done.exit_code == 0, done.output
    return done.output, list(vars(group)["asked"])


def test_each_command_is_printed_as_it_runs_and_ends_with_the_comparison(group: click.Group) -> None:
    """Nothing is done that a reader of the terminal could not type."""
    output, asked = run(group, "photos", "--out", "work")
    order = "make-shards train-teacher cache-teacher train-student train-student evaluate report"
    assert [words[0] for words in asked] == order.split()
    for words in asked:
        assert f"python cli.py {' '.join(words)}" in output
    assert "--split" in asked[0], "two classes and no validation part"
    assert asked[4][-6:] == ["--distill", "none", "--epochs", "7", "--out", os.path.join("work", "without-teacher")]
    assert "teacher" in output and "always naming the largest class" in output
    assert output.count("next: ") == 1 and "predict photos/dog/1.jpg --weights work/student" in output


def test_the_same_line_again_asks_for_the_same_runs(group: click.Group) -> None:
    """Otherwise each command would refuse a directory of another run."""
    _, first = run(group, "photos", "--out", "work")
    _, second = run(group, "photos", "--out", "work", "--budget", "90")
    assert second[4] == first[4] and second[3][-4:-2] == ["--epochs", "7"]
    assert "--views" not in second[2] and second[1][-4:-2] == ["--epochs", "7"]


def test_a_budget_that_changes_nothing_is_said(group: click.Group) -> None:
    """Nothing was trained, and the old result was printed as that of more time."""
    assert "--budget" not in run(group, "photos", "--out", "work")[0].partition("[1]")[0]
    assert "keeps its plan of 7 epochs" in run(group, "photos", "--out", "work", "--budget", "90")[0]


def test_the_teacher_stays_when_its_package_comes_or_goes(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether published weights are installed decides for a new folder alone."""
    _, first = run(group, "photos", "--out", "work")
    monkeypatch.setattr("student.commands.distill.find_spec", lambda _: None)
    assert run(group, "photos", "--out", "work")[1][1][:7] == first[1][:7]
    assert "resnet18" in run(group, "photos", "--out", "other")[1][1]


def test_a_wrong_name_is_refused_by_the_flag_that_was_typed(
    group: click.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called --model, after the photos were packed."""
    monkeypatch.delitem(sys.modules, "timm", raising=False)  # once it is imported, any name may be registered
    refused = CliRunner().invoke(group, ["distill", "photos", "--out", "work", "--pretrained", "resnt18"])
    assert "--pretrained" in str(refused.exception) and not vars(group)["asked"]


def test_photos_are_turned_where_that_is_asked(group: click.Group) -> None:
    """As `make-shards --upright` does."""
    assert "--upright" in run(group, "photos", "--out", "work", "--upright")[1][0]


def test_every_flag_that_packing_advises_about_pixels_is_one_of_distill_too(group: click.Group) -> None:
    """The advice of make-shards stands in the output of distill; --background was advised and refused."""
    advised = set(re.findall(r"; (--[a-z]+)", inspect.getsource(_say_pixels)))
    flags = {word for param in distill.params for word in param.opts}
    assert advised == {"--upright", "--background"} and advised <= flags
    packing = run(group, "photos", "--out", "work", "--background", "white")[1][0]
    assert packing[packing.index("--background") + 1] == "white"


@pytest.mark.parametrize(("top1", "verdict"), [(26.0, "within the noise"), (60.0, "more than the noise")])
def test_a_difference_is_called_noise_where_it_is(top1: float, verdict: str) -> None:
    """Of 100 images one photo is one point."""
    student: dict[str, Any] = {**SUMMARY, "top1": top1}
    lines = "\n".join(outcome({"top1": 93.0}, student, {"top1": 25.0}))
    assert verdict in lines and "93 %" in lines and "20 %" in lines
