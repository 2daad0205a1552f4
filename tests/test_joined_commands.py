"""Two labelled sets of make-shards, with shards and images of one name, through the commands of both stages."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from shards.index.shard_index import open_index
from tests.stage1_tiny import TINY
from tests.test_unlabelled_commands import SMALL, run

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets of different classes: photos of either have the same file names; and the weights of a teacher of all."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(5)
    for name, classes in (("one", CLASSES[:2]), ("two", CLASSES[1:]), ("val", CLASSES)):
        for label in classes:
            (folder / name / label).mkdir(parents=True)
            for n in range(8):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / name / label / f"{n}.png")
        run("make-shards", folder / name, folder / "data" / name, "--workers", 0)
    torch.manual_seed(0)
    save_file(timm.create_model(TINY, num_classes=len(CLASSES)).state_dict(), folder / "teacher.safetensors")
    return folder


def cached(shards: object, sets: Path, cache: Path, **options: bool) -> str:
    teacher = ["--teacher", TINY, "--teacher-weights", sets / "teacher.safetensors"]
    views = ["--size", 32, "--views", 2, "--views-per-unit", 2, "--workers", 0]
    return run("cache-teacher", "--shards", shards, "--cache", cache, *teacher, *views, **options)


@pytest.mark.slow
def test_two_labelled_sets_are_cached_and_learnt_as_one(sets: Path, tmp_path: Path) -> None:
    one, two = sets / "data/one", sets / "data/two"
    both = f"{one}::{two}"
    said = cached(both, sets, tmp_path / "cache")
    assert said.count("3 classes, joined by name (2 in") == 1 and "'shard-000000~2.tar'" in said, said
    data = ["--shards", both, "--val-shards", sets / "data/val", "--cache", tmp_path / "cache", *SMALL]
    said = run("train-student", *data, "--distill", "soft", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["training_images"] == 32 and summary["pixels_checked"] == summary["images"]
    assert said.count("joined by name") == 1
    run("train-student", *data, "--distill", "soft", "--out", tmp_path / "run")
    run("ablate", *data, "--lambda", "0,0.5", "--tau", 1, "--out", tmp_path / "sweep")
    run("report", tmp_path / "sweep", "--html", tmp_path / "report.html")
    run("verify-cache", tmp_path / "cache", "--deep", "--shards", both)
    run("show-views", "--shards", both, "--cache", tmp_path / "cache", "--views", 1,
        "--out", tmp_path / "v.png")  # fmt: skip


@pytest.mark.slow
def test_a_cache_of_joined_sets_is_read_with_them_alone(sets: Path, tmp_path: Path) -> None:
    one, two = sets / "data/one", sets / "data/two"
    before = open_index(str(one)).fingerprint, open_index(str(two)).fingerprint
    cached(f"{one}::{two}", sets, tmp_path / "cache")
    for others in (f"{two}::{one}", str(one), str(two)):
        run("verify-cache", tmp_path / "cache", "--deep", "--shards", others, fails=True)
    assert (open_index(str(one)).fingerprint, open_index(str(two)).fingerprint) == before


@pytest.mark.slow
def test_bytes_per_view_are_one_figure(sets: Path, tmp_path: Path) -> None:
    """Of the command that makes a cache at its end, and of those that look at it."""
    said = cached(sets / "data/val", sets, tmp_path / "cache")
    (figure,) = re.findall(r"([0-9.]+) bytes per view", said)
    status = json.loads(run("cache-status", tmp_path / "cache", "--json").splitlines()[-1])
    assert float(figure) == pytest.approx(status["bytes_per_view"], abs=0.05)
    assert f"({figure} bytes per view)" in run("cost", "--cache", tmp_path / "cache")
