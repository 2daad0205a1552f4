"""`distill` runs the other commands in order, as a user would type them, and ends with what came out."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from student.commands.distill import distill, outcome

SUMMARY = {"validation_images": 100, "validation_majority": 20.0}


def write_run(out: Path, top1: float) -> None:
    """A finished run, as far as `distill` reads it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps({"recipe": {"epochs": 7}, "train": {}}))
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
                Path(words[1], split).mkdir(parents=True, exist_ok=True)
                Path(words[1], split, "shards.index").touch()
        elif name.startswith("train"):
            write_run(Path(words[-1]), 90.0 if name == "train-teacher" else 26.0)
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
    assert output.count("next: ") == 1 and "predict photos --weights work/student" in output


def test_the_same_line_again_asks_for_the_same_runs(group: click.Group) -> None:
    """Otherwise each command would refuse a directory of another run."""
    _, first = run(group, "photos", "--out", "work")
    _, second = run(group, "photos", "--out", "work", "--budget", "90")
    assert second[4] == first[4] and second[3][-4:-2] == ["--epochs", "7"]
    assert "--views" not in second[2] and second[1][-4:-2] == ["--epochs", "7"]


@pytest.mark.parametrize(("top1", "verdict"), [(26.0, "within the noise"), (60.0, "more than the noise")])
def test_a_difference_is_called_noise_where_it_is(top1: float, verdict: str) -> None:
    """Of 100 images one photo is one point."""
    student: dict[str, Any] = {**SUMMARY, "top1": top1}
    lines = "\n".join(outcome({"top1": 93.0}, student, {"top1": 25.0}))
    assert verdict in lines and "93 %" in lines and "20 %" in lines
