"""Sets of 2 to 40 pictures go through every command: what the program chose itself is never what it then refuses."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cli import cli
from shards import ViewRecipe, recipe_named, write_samples
from shards.views.view_recipe import fitting_block_size

SETS = {
    "two": (1, 1),
    "three": (2, 1),
    "fifteen in three classes, one alone": (7, 7, 1),
    "seventeen": (9, 8),
    "forty": (13, 13, 14),
}


def said(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == code, f"{words[0]}: {done.output}"
    return done.output


def pictures(folder: Path, counts: tuple[int, ...]) -> Path:
    for label, count in enumerate(counts):
        (folder / f"class{label}").mkdir(parents=True)
        for n in range(count):
            shade = np.full((40, 44, 3), (60 * label + 5 * n) % 256, np.uint8)
            Image.fromarray(shade).save(folder / f"class{label}" / f"{n}.png")
    return folder


def through_all_commands(place: Path, shards: Path) -> None:
    """Teacher, plan, cache, check, student and evaluation with no setting but the size and one epoch."""
    data, small = ("--shards", shards), ("--size", 32, "--workers", 0)
    said("train-teacher", *data, "--model", "resnet10t", *small, "--epochs", 1, "--out", place / "teacher")
    taught = (*data, "--teacher-weights", place / "teacher" / "weights.safetensors", *small, "--views", 6)
    said("plan-cache", *taught, "--seconds", 1)
    said("cache-teacher", *taught, "--cache", place / "c.zarr")
    said("cache-teacher", *taught, "--cache", place / "c.zarr")
    said("cache-status", place / "c.zarr", "--fidelity")
    said("verify-cache", place / "c.zarr")
    run = ("--cache", place / "c.zarr", "--model", "resnet10t", "--epochs", 1, "--workers", 0)
    output = said("train-student", *data, "--val-shards", shards, *run, "--out", place / "run")
    assert "epoch 1/1" in output
    weights = ("--weights", place / "run" / "weights.safetensors", "--workers", 0)
    assert json.loads(said("evaluate", *data, *weights, "--json").splitlines()[-1])["num_not_finite"] == 0


@pytest.mark.parametrize("counts", SETS.values(), ids=SETS.keys())
def test_a_small_set_trains_with_what_is_chosen_for_it(tmp_path: Path, counts: tuple[int, ...]) -> None:
    said("make-shards", pictures(tmp_path / "set", counts), tmp_path / "shards")
    through_all_commands(tmp_path, tmp_path / "shards")


@pytest.mark.parametrize("per_shard", [1, 15])
def test_small_shards_train_as_well(tmp_path: Path, per_shard: int) -> None:
    """Shards of 15 samples had a whole stage 1 and then no batch."""
    said("make-shards", pictures(tmp_path / "set", (8, 8)), tmp_path / "shards", "--samples-per-shard", per_shard)
    through_all_commands(tmp_path, tmp_path / "shards")


def test_blocks_that_no_shard_fills_are_refused_before_stage_1(tmp_path: Path) -> None:
    said("make-shards", pictures(tmp_path / "set", (5, 5)), tmp_path / "shards")
    words = ("cache-teacher", "--shards", tmp_path / "shards", "--teacher", "resnet10t", "--size", 32, "--views", 6)
    refused = said(*words, "--set", "block_size=16", "--cache", tmp_path / "c.zarr", code=2)
    assert "no shard holds so many samples (the largest has 10)" in refused
    assert not (tmp_path / "c.zarr").exists()


def test_one_class_is_refused_where_the_shards_are_made_and_before_training(tmp_path: Path) -> None:
    """A network that is always right reached 100 % of chance 100 %, and stage 1 failed."""
    refused = said("make-shards", pictures(tmp_path / "set", (4,)), tmp_path / "shards", code=1)
    assert "expected at least two classes, got one class (class0): there is nothing to learn" in refused
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "png")
    write_samples([(str(n), 0, "png", buffer.getvalue()) for n in range(20)], tmp_path / "alone", num_classes=1)
    words = ("--shards", tmp_path / "alone", "--workers", 0)
    for command in (
        ("train-teacher", *words, "--model", "resnet10t", "--out", tmp_path / "t"),
        ("train-student", *words, "--model", "resnet10t", "--distill", "none", "--out", tmp_path / "r"),
        ("cache-teacher", *words, "--teacher", "resnet10t", "--views", 6, "--cache", tmp_path / "c.zarr"),
    ):
        assert "expected at least two classes" in said(*command, code=1)


@pytest.mark.parametrize("wanted", [1, 2, 16, 24])
def test_blocks_are_smaller_only_where_no_shard_fills_one(wanted: int) -> None:
    """Caches and runs that were possible before keep their blocks."""
    for rows in ([1], [2, 3], [15, 15], [16], [17, 3], [1251, 2], [24, 1]):
        size = fitting_block_size(wanted, rows)
        assert size == wanted if max(rows) >= wanted else max(rows) / 2 < size <= max(rows)
    assert fitting_block_size(recipe_named("deit").block_size, [10]) == 8


def test_a_budget_becomes_epochs_and_the_run_goes_on_with_them(tmp_path: Path) -> None:
    """The rate is measured once: a run that exists keeps its number of epochs."""
    said("make-shards", pictures(tmp_path / "set", (20, 20)), tmp_path / "shards")
    words = ["train-student", "--shards", tmp_path / "shards", "--distill", "none", "--set", "image_size=32"]
    words += ["--workers", 0, "--out", tmp_path / "run"]
    refused = said(*words, "--budget", 1, "--epochs", 3, code=2)
    assert "--budget: chooses the number of epochs" in refused
    first = said(*words, "--budget", 0.02)
    assert "budget: " in first and "images/s, measured" in first and "student small_cnn" in first
    epochs = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["epochs"]
    again = said(*words)
    assert "budget: " not in again and "error" not in again
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == epochs


def test_show_views_draws_the_views_that_cache_teacher_would_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --cache it drew DeiT's views at 224 pixels of every set, and a small one gets others."""
    drawn: list[tuple[str, int, int]] = []

    def noted(reader: object, recipe: ViewRecipe, *_: object) -> list[object]:
        drawn.append((recipe.name, recipe.size, recipe.block_views))
        return []

    monkeypatch.setattr("teacher_cache.inspect.sheet.sheet_views", noted)
    monkeypatch.setattr("teacher_cache.inspect.sheet.write_sheets", lambda *_: None)
    said("make-shards", pictures(tmp_path / "set", (9, 8)), tmp_path / "shards")
    show = ("show-views", "--shards", tmp_path / "shards", "--sample", "class0/0", "--out", tmp_path / "x.png")
    said(*show)
    said(*show, "--view-set", "size=48", "--view-set", "flip=0")
    said(*show, "--view-recipe", "deit")
    assert drawn == [("small", 96, 6), ("small", 48, 6), ("deit", 224, 6)]
