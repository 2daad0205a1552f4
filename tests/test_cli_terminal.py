"""On a terminal, where bars are drawn, every other line begins on a line of its own."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from PIL import Image

from tests.golden import SETS
from tests.golden.make import TEACHER

ROOT = Path(__file__).parent.parent
# What a bar may have behind its last stroke: the count, then the rate, and the time taken or left.
BEHIND = re.compile(r"[ \d,/]*(, (in |under )*[\d.,]+ ?\S*( \d+ \w+)*( left)?)*\s*")
TEACH = ["--shards", "train", "--teacher-weights", "teacher.safetensors", *TEACHER, "--recipe", "deit", "--size", "32"]
TEACH += ["--set", "block_size=4", "--views", "6", "--views-per-unit", "3", "--record", "lowrank", "--bytes", "48"]
TEACH += ["--workers", "0", "--device", "cpu"]
TRAIN = ["--shards", "train", "--val-shards", "val", "--cache", "dense.zarr", "--model", "small_cnn", "--epochs", "2"]
TRAIN += ["--batch-size", "16", "--workers", "0", "--device", "cpu"]


def lines_of(words: list[str], folder: Path, code: int = 0) -> list[str]:
    """What stays on a terminal of words for Python, line by line; they must end with this exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))  # no bar fits into a width of 0
    command = [sys.executable, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    shown = b"".join(parts).decode().replace("\r\n", "\n")
    assert process.wait() == code, shown
    return [line.rstrip("\r").rpartition("\r")[2] for line in shown.split("\n")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["make-shards", "photos", "shards"],
        ["check-shards", "train"],
        ["cache-teacher", *TEACH, "--cache", "new.zarr"],
        ["copy-cache", "dense.zarr", "copy.zarr"],
        ["verify-cache", "dense.zarr"],
        ["train-student", *TRAIN, "--out", "runs/new"],
        ["ablate", *TRAIN, "--lambda", "0.5", "--tau", "1", "--out", "grids/new"],
    ],
    ids=lambda words: words[0],
)
def test_a_line_that_stays_begins_where_no_bar_is(tmp_path: Path, words: list[str]) -> None:
    shutil.copytree(SETS[-1], tmp_path / "set")
    for name in ("one", "two"):
        (tmp_path / "set/photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (len(name), 9, 9)).save(tmp_path / "set/photos" / name / "0.png")
    lines = lines_of([str(ROOT / "cli.py"), *words], tmp_path / "set")
    assert any(line.strip() for line in lines)
    mixed = [line for line in lines if "%|" in line and not BEHIND.fullmatch(line.rpartition("|")[2])]
    assert mixed == [], "\n".join(lines)


TALK = """
from shards.console import Bar, close_bars, result, say
first = Bar("first", 2, "step")
first.to(1)
say("a remark")
result("a result")
first.to(2)
first.close()
say("between them")
second = Bar("second", 2, "step")
second.to(1)
close_bars()
say("error: at the end")
"""


def test_lines_stand_above_the_bars_that_are_drawn_and_below_those_that_are_closed(tmp_path: Path) -> None:
    lines = [line.rstrip() for line in lines_of(["-c", TALK], tmp_path) if line.strip()]
    shown = [line.split()[0] if "%" in line else line for line in lines]
    assert shown == ["a remark", "a result", "first", "between them", "second", "error: at the end"]


@pytest.mark.slow
def test_an_error_stands_below_the_bar(tmp_path: Path) -> None:
    shutil.copytree(SETS[-1], tmp_path / "set")
    for shard in sorted((tmp_path / "set" / "train").glob("*.tar"))[-1:]:
        shard.write_bytes(shard.read_bytes()[:-3000])
    lines = lines_of([str(ROOT / "cli.py"), "train-student", *TRAIN, "--out", "runs/new"], tmp_path / "set", code=1)
    errors = [line for line in lines if "error: " in line]
    assert errors and all(line.startswith("error: ") for line in errors), "\n".join(lines)
