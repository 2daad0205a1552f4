"""Every command on photos without labels, and on labelled and unlabelled ones together."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cli import cli
from shards.index.shard_index import open_index
from tests.stage1_tiny import TINY

CLASSES = 3
SMALL = [
    *(
        "--model",
        "deit_tiny_distilled_patch16_224",
        "--set",
        "warmup_epochs=0",
        "--set",
        "ema_decay=0",
        "--set",
        "repeats=1",
    ),
    *("--set", "model_args.embed_dim=16", "--set", "model_args.depth=1", "--set", "model_args.num_heads=1"),
    *("--epochs", 1, "--batch-size", 16, "--workers", 0),
]


def run(*words: object, fails: bool = False) -> str:
    """Everything that a command says; the exit code is as expected."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled shards, unlabelled ones, validation shards, and a teacher's weights."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for split, count in (("few", 6), ("more", 11), ("val", 3)):
        for label in range(CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True)
            for n in range(count):
                image = cv2.resize(rng.integers(0, 256, (5, 5, 3), np.uint8), (48, 40), interpolation=cv2.INTER_CUBIC)
                assert cv2.imwrite(str(folder / split / f"class{label}" / f"{split}{n}.png"), image)
    run("make-shards", folder / "few", folder / "labelled", "--workers", 0)
    run("make-shards", folder / "more", folder / "unlabelled", "--no-labels", "--workers", 0)
    run("make-shards", folder / "val", folder / "validation", "--workers", 0)
    torch.manual_seed(0)
    save_file(timm.create_model(TINY, num_classes=CLASSES).state_dict(), folder / "teacher.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sets", [["unlabelled"], ["labelled", "unlabelled"]], ids=["none", "some"])
def test_every_command_takes_photos_without_labels(sets: list[str], photos: Path, tmp_path: Path) -> None:
    shards = "::".join(str(photos / name) for name in sets)
    none = len(sets) == 1
    teacher = ["--teacher", TINY, "--teacher-weights", photos / "teacher.safetensors"]
    views = ["--size", 32, "--views", 2, "--views-per-unit", 2]
    said = run("cache-teacher", "--shards", shards, "--cache", tmp_path / "cache", *teacher, *views, "--workers", 0)
    assert ("teacher accuracy" in said) == (not none), "nothing to agree with where nothing is labelled"
    assert none or "views of labelled images" in said
    run("copy-cache", tmp_path / "cache", tmp_path / "copy")
    data = ["--shards", shards, "--val-shards", photos / "validation"]
    taught = ["--cache", tmp_path / "copy", *SMALL]
    said = run("train-student", *data, *taught, "--distill", "soft", "--tau", 2, "--out", tmp_path / "run")
    assert "every head learns from the teacher" in said
    assert ("λ = 1" in said) == none
    assert ("none of 33 training images has a label" if none else "18 of 51 training images have a label") in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert (config["teacher_heads"], config["distill_weight"]) == ("both", 1.0 if none else 0.1)
    assert "both trained on the teacher" in (tmp_path / "run" / "model_card.md").read_text()
    again = run("train-student", *data, *taught, "--distill", "soft", "--tau", 2, "--out", tmp_path / "run")
    assert "error:" not in again
    run("ablate", *data, *taught, "--distill", "soft,hard", "--tau", 2, "--out", tmp_path / "sweep",
        *([] if none else ["--lambda", "0,0.9"]))  # fmt: skip
    cells = sorted(path.name for path in (tmp_path / "sweep" / "cells").iterdir() if path.is_dir())
    assert cells == (["hard-l1-s0", "soft-l1-t2-s0"] if none else ["hard-l0.9-s0", "none-s0", "soft-l0.9-t2-s0"])
    run("report", tmp_path / "sweep", "--html", tmp_path / "report.html")
    run("predict", photos / "val" / "class0" / "val0.png", "--weights", tmp_path / "run")
    run("evaluate", "--shards", photos / "validation", "--weights", tmp_path / "run", "--workers", 0)
    run("show-views", "--shards", shards, "--cache", tmp_path / "cache", "--views", 2, "--out", tmp_path / "v.png")
    run("verify-cache", tmp_path / "cache")
    run("check-shards", photos / "unlabelled", "--workers", 0)


@pytest.mark.slow
def test_online_distillation_takes_photos_without_labels(photos: Path, tmp_path: Path) -> None:
    teacher = ["--teacher", TINY, "--teacher-weights", photos / "teacher.safetensors", "--online", *SMALL]
    said = run("train-student", "--shards", photos / "unlabelled", "--val-shards", photos / "validation", *teacher,
               "--set", "image_size=32", "--distill", "soft", "--views-used", 2, "--out", tmp_path / "run")  # fmt: skip
    assert "none of 33 training images has a label" in said


def test_what_cannot_be_learnt_without_labels_is_refused(photos: Path, tmp_path: Path) -> None:
    data = ["--shards", photos / "unlabelled", "--out", tmp_path / "run"]
    said = run("train-student", *data, *SMALL, "--distill", "none", fails=True)
    assert "no training image has a label" in said
    said = run("ablate", *data, "--val-shards", photos / "validation", "--cache", tmp_path / "none.zarr",
               "--lambda", "0,.5", fails=True)  # fmt: skip
    assert "expected 1, got 0,0.5" in said
    assert open_index(f"{photos / 'labelled'}::{photos / 'unlabelled'}").num_unlabelled == 33
