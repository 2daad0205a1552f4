"""Machines that are no Linux: macOS works without worker processes, others are told in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import SETS
from tests.golden.make import cache_command, student_command
from tests.test_layering import ROOT

MACOS = "import mmap, os\ndel os.fork, os.posix_fallocate, os.memfd_create, os.MFD_CLOEXEC, mmap.MAP_POPULATE\n"
WINDOWS = "import os, signal\ndel os.fork, os.getuid, signal.SIGUSR1\n"
MAIN = "import runpy, sys; sys.argv = ['cli.py', *sys.argv[1:]]; runpy.run_path('cli.py', run_name='__main__')"


def run(machine: str, *words: str | Path, code: int = 0) -> str:
    """What the command says on such a machine."""
    command = [sys.executable, "-c", machine + MAIN, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_macos_makes_shards_a_cache_and_a_student_without_workers(tmp_path: Path) -> None:
    """No posix_fallocate, no memfd_create, no fork."""
    home = SETS[-1]
    run(MACOS, "check-shards", home / "train")
    run(MACOS, *cache_command(home, "dense", cache=tmp_path / "c.zarr"))
    assert "done, top-1" in run(MACOS, *student_command(home, tmp_path / "run"), "--epochs", "1")
    weights = tmp_path / "run" / "weights.safetensors"
    assert "top-1" in run(MACOS, "evaluate", "--shards", home / "val", "--weights", weights)


@pytest.mark.parametrize(
    "words", [["make-shards", "photos", "s"], ["train-student", "--shards", "s", "--distill", "none", "--out", "r"]]
)
def test_workers_are_refused_where_there_are_none(words: list[str]) -> None:
    said = run(MACOS, *words, "--workers", "2", code=2)
    assert said == "error: --workers 2: worker processes need Linux; give --workers 0 on this machine\n"


@pytest.mark.parametrize("command", ["make-shards", "train-student", "models"])
def test_elsewhere_every_command_is_one_sentence_and_help_is_help(command: str) -> None:
    said = run(WINDOWS, command, code=2)
    assert said.startswith("error: this machine (") and "expected Linux" in said and said.count("\n") == 1
    assert command in run(WINDOWS, "--help")
