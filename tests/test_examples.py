"""The examples as a stranger would run them: each in a process of its own, on real digits."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import write_samples
from tests.test_other_loops import LIBRARIES

EXAMPLES = Path(__file__).parent.parent / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAUNCH = {"plain_pytorch.py": (), "timm_pieces.py": (), "accelerate_ranks.py": TORCHRUN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards, teacher and cache, made by the first example that runs."""
    return tmp_path_factory.mktemp("examples") / "digits"


def test_every_example_is_run():
    """Other tests run the others: of the codec, and of other loops."""
    others = {"stored_logits.py", *LIBRARIES}
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*LAUNCH, "digits.py", *others}


@pytest.mark.parametrize("name", LAUNCH)
@pytest.mark.slow
def test_an_example_learns_the_digits_and_says_so(name, folder):
    """Better than its teacher's worst day: far above the tenth that guessing reaches."""
    said, top1 = run(name, folder)
    assert top1 > 60, said
    if name == "accelerate_ranks.py":
        assert "2 processes, 32 views each" in said
        assert said.count("student:") == 1, "one process reports"


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """Shards of 100 classes, a class a colour: the record is then another kind than that of ten classes."""
    folder = tmp_path_factory.mktemp("examples") / "colours"
    for split, count in (("train", 256), ("val", 100)):
        samples = []
        for n in range(count):
            label, buffer = n % 100, io.BytesIO()
            Image.fromarray(np.full((28, 28, 3), (label * 2, 255 - label, n % 256), np.uint8)).save(buffer, "png")
            samples.append((f"{n:04d}", label, "png", buffer.getvalue()))
        write_samples(samples, folder / "shards" / split, samples_per_shard=128, num_classes=100)
    return folder


@pytest.mark.parametrize("name", LAUNCH)
@pytest.mark.slow
def test_an_example_runs_with_a_hundred_classes(name, hundred):
    """Whatever it learns in so few steps: a cache of many classes has another kind of record."""
    run(name, hundred)


def run(name, folder):
    """What an example printed, and its student's top-1 in percent."""
    command = [sys.executable, *LAUNCH[name], str(EXAMPLES / name), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    said = re.search(r"student: top-1 (\d+\.\d) %", done.stdout)
    assert said, done.stdout
    return done.stdout, float(said[1])


def test_a_plain_loop_fits_on_a_page():
    """The promise to people with a loop of their own."""
    lines = (EXAMPLES / "plain_pytorch.py").read_text().splitlines()
    assert len(lines) < 40
