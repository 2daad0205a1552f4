"""The examples as a stranger would run them: each in a process of its own, on real digits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAUNCH = {"plain_pytorch.py": (), "timm_pieces.py": (), "accelerate_ranks.py": TORCHRUN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, teacher and cache, made by the first example that runs."""
    return tmp_path_factory.mktemp("examples") / "digits"


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*LAUNCH, "digits.py"}


@pytest.mark.parametrize("name", LAUNCH)
def test_an_example_learns_the_digits_and_says_so(name, folder):
    """Better than its teacher's worst day: far above the tenth that guessing reaches."""
    command = [sys.executable, *LAUNCH[name], str(EXAMPLES / name), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    said = re.search(r"student: top-1 (\d+\.\d) %", done.stdout)
    assert said and float(said[1]) > 60, done.stdout
    if name == "accelerate_ranks.py":
        assert "2 processes, 32 views each" in done.stdout
        assert done.stdout.count("student:") == 1, "one process reports"


def test_a_plain_loop_fits_on_a_page():
    """The promise to people with a loop of their own."""
    lines = (EXAMPLES / "plain_pytorch.py").read_text().splitlines()
    assert len(lines) < 40
