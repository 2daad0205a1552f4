"""What commands print as `next:` runs as it is printed, with the settings that were typed, in folders of any name."""

import ast
import shlex
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from cli import cli
from shards.console import command_line
from student.commands.ablate import say_report
from tests.command_line import done

ROOT = Path(__file__).parent.parent
SMALL = {
    "train-teacher": ("--epochs", "1", "--workers", "0"),
    "cache-teacher": ("--views", "6", "--workers", "0"),
    "train-student": ("--epochs", "1", "--workers", "0"),
    "evaluate": ("--workers", "0"),
}
"""What makes the printed commands short, and nothing else of them."""


def next_commands(output: str) -> list[list[str]]:
    """The words of every line behind `next:`, without the program; each has a command that reads them."""
    lines = output.partition("next: ")[2].splitlines()
    commands = [words[2 if words[0] == "python" else 1 :] for words in map(shlex.split, lines) if len(words) > 1]
    for name, *words in commands:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        command.make_context(name, list(words))
    return commands


def pictures(folder: Path, names: tuple[str, ...], number: int) -> None:
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for n in range(number):
            Image.fromarray(np.full((40, 44, 3), 60 * label + n, np.uint8)).save(folder / name / f"{n}.png")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder whose name a shell would cut."""
    folder = tmp_path / "it's my folder; $HOME"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def followed(words: list[str]) -> list[list[str]]:
    """Run a printed command, made short; the commands that it prints next."""
    output = done(*words, *SMALL.get(words[0], ()))
    assert "warning: classes" not in output
    return next_commands(output)


@pytest.mark.slow
def test_the_printed_commands_lead_from_photos_to_an_export(place: Path) -> None:
    """Each is run as it is printed; a placeholder in capitals is the user's to fill."""
    pictures(place / "own photos" / "train", ("a cat", "dog's"), 20)
    pictures(place / "own photos" / "val", ("a cat", "dog's"), 4)
    (place / "names.txt").write_text("dog's\na cat\n")
    options = ["--class-names", "names.txt", "--upright", "--background", "white", "--skip-bad", "left out.txt"]
    commands = next_commands(done("make-shards", "own photos/train", "the data/train", *options))
    assert commands[0][0] == "make-shards" and all(word in commands[0] for word in options[:-1])
    (teach,) = followed(commands[0])
    assert "--val-shards" in teach
    (store,) = followed(teach)
    assert store[store.index("--teacher-weights") + 1].endswith(".safetensors")
    (train,) = followed(store)
    assert "--val-shards" in train
    commands = followed(train)
    assert [words[0] for words in commands] == ["report", "evaluate", "predict", "export"]
    for words in commands:
        followed([str(place / "own photos/val/a cat/0.png") if word == "PHOTO" else word for word in words])


def test_a_next_command_is_made_of_words_not_of_text() -> None:
    """So that every path in it is quoted: no `next:` is written but by `say_next`."""
    for path in [*ROOT.glob("shards/**/*.py"), *ROOT.glob("teacher_cache/**/*.py"), *ROOT.glob("student/**/*.py")]:
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert path.name == "console.py" or not any(
            isinstance(text, str) and text.startswith("next: ") for text in texts
        )


@pytest.mark.parametrize(
    ("started", "name", "shown"),
    [
        ("cli.py", "cli.py", "python cli.py x 'a b'"),
        ("/my repo/cli.py", "cli.py", "python '/my repo/cli.py' x 'a b'"),
        ("/venv/bin/deit-cache", "deit-cache", "deit-cache x 'a b'"),
    ],
)
def test_a_printed_command_starts_as_this_one_was_started(
    started: str, name: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python cli.py` was printed to users in other folders."""
    monkeypatch.setattr(sys, "argv", [started])
    with click.Context(cli, info_name=name):
        assert command_line(["x", "a b"]) == shown


@pytest.mark.parametrize("typed", [(), ("--first-label", "1", "--labels", "l.csv"), ("--max-side", "64")])
def test_the_validation_part_gets_the_typed_options(place: Path, typed: tuple[str, ...]) -> None:
    """Otherwise its labels or its pixels are others than those of the training part."""
    pictures(place / "photos" / "train", ("ant", "bee"), 2)
    (place / "photos" / "val").mkdir()
    (place / "l.csv").write_text(
        "".join(f"{name}/{n}.png,{c}\n" for c, name in ((1, "ant"), (2, "bee")) for n in (0, 1))
    )
    (words,) = next_commands(done("make-shards", "photos/train", "data/train", *typed))
    expected = ["LABELS" if word == "l.csv" else word for word in typed]
    assert words[:3] == ["make-shards", "photos/val", "data/val"] and sorted(words[3:]) == sorted(expected)


@pytest.mark.parametrize("has_teacher", [False, True])
def test_photos_without_labels_are_for_a_teacher_that_exists(place: Path, has_teacher: bool) -> None:
    """A folder that is not there is a placeholder, in capitals."""
    pictures(place / "photos", ("x",), 3)
    if has_teacher:
        (place / "teacher").mkdir()
    (words,) = next_commands(done("make-shards", "photos", "data/more", "--no-labels"))
    assert words[words.index("--teacher-weights") + 1] == ("teacher" if has_teacher else "TEACHER")


@pytest.mark.parametrize("num_left", [0, 1, 5])
def test_a_process_of_a_shared_sweep_says_that_others_still_train(num_left: int, capsys: pytest.CaptureFixture) -> None:
    """`next: … report` was printed while half of the cells were missing."""
    with click.Context(cli, info_name="deit-cache"):
        say_report(Path("sweeps/one"), num_left)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "next: deit-cache report sweeps/one" and len(lines) == (2 if num_left else 1)
    assert not num_left or lines[0].startswith(f"other processes still train {num_left} cell")
