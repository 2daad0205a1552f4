"""What was done to the images of a set of shards follows it: to teachers, starts, caches and both kinds of card."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cli import cli
from shards.index.pixel_rule import PixelRule, other_pixels
from shards.index.shard_index import open_index
from student.learn.timm_model import bare_model
from student.recipe.papers import recipe_for
from student.run.export import ExportInfo, export_folder, model_card, read_info
from teacher_cache import TeacherCache

RULES = {"stored": PixelRule(), "upright": PixelRule(upright=True), "white": PixelRule(background=(255, 255, 255))}
SAID = {"stored": "as they are stored", "upright": "turned upright", "white": "on white"}
QUICK = ("--size", "32", "--workers", "0", "--batch-size", "16")


def done(*words: str | Path) -> str:
    """The output of a command that must succeed."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of each rule, two images of which were left out, and weights that were trained on such shards."""
    home = tmp_path_factory.mktemp("provenance")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (home / "photos" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (36, 36, 3), np.uint8)).save(
                home / "photos" / name / f"{number:02d}.png"
            )
    torch.manual_seed(0)
    network = bare_model("test_resnet", 2, image_size=32, arguments={})
    recipe = replace(recipe_for("test_resnet"), model="test_resnet", image_size=32)
    rgb = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    info = ExportInfo(
        recipe=recipe, mean=rgb[0], std=rgb[1], num_classes=2, class_names=("ant", "bee"), fingerprints={}, metrics={}
    )
    for name, rule in RULES.items():
        done("make-shards", home / "photos", home / name)
        index = open_index(str(home / name))
        replace(index, pixels=rule, num_skipped=2 if name == "upright" else 0).save(home / name / "shards.index")
        export_folder(network, home / f"{name}-weights", replace(info, pixels=rule))
    return home


@pytest.mark.parametrize("trained", RULES)
@pytest.mark.parametrize("here", RULES)
def test_two_rules_are_told_apart_in_words(trained: str, here: str) -> None:
    words = other_pixels(RULES[trained], RULES[here])
    expected = f"trained on images {SAID[trained]}, those of the shards are {SAID[here]}"
    assert words == ("" if trained == here else expected)


@pytest.mark.parametrize(("trained", "here"), [("upright", "upright"), ("upright", "white"), ("stored", "upright")])
def test_stage_1_says_that_the_teacher_knows_images_of_another_rule(
    home: Path, tmp_path: Path, trained: str, here: str
) -> None:
    weights = home / f"{trained}-weights"
    command = ("cache-teacher", "--shards", home / here, "--cache", tmp_path / "c", "--views", "6", *QUICK)
    output = done(*command, "--recipe", "plain", "--record", "dense", "--teacher-weights", weights)
    words = other_pixels(RULES[trained], RULES[here])
    assert output.count("warning: the teacher was trained on images") == bool(words) and words in output
    left_out = 2 if here == "upright" else 0
    with TeacherCache.open(tmp_path / "c") as cache:
        assert cache.header.num_skipped == left_out
    attributes = json.loads((tmp_path / "c" / "zarr.json").read_text())["attributes"]
    assert ("num_skipped" in attributes) == bool(left_out), "no field where none was left out: bytes as before"
    done("copy-cache", tmp_path / "c", tmp_path / "copies" / "d", "--card")
    row = "| images left out | 2, which could not be read when the shards were made |"
    assert (row in (tmp_path / "copies" / "README.md").read_text()) == bool(left_out)


@pytest.mark.parametrize(("trained", "here"), [("upright", "upright"), ("stored", "upright")])
def test_a_run_says_it_of_its_start_and_the_card_how_many_were_left_out(
    home: Path, tmp_path: Path, trained: str, here: str
) -> None:
    start = home / f"{trained}-weights" / "model.safetensors"
    command = ("train-teacher", "--shards", home / here, "--epochs", "1", "--model", "test_resnet", *QUICK)
    output = done(*command, "--init-weights", start, "--out", tmp_path / "run")
    words = other_pixels(RULES[trained], RULES[here])
    assert f"starts from {start}: {words or 'all as in the file'}" in output
    info = read_info(tmp_path / "run" / "weights.safetensors")
    assert info is not None and info.num_skipped == 2
    sentence = "2 images could not be read and have been left out of the training shards."
    assert sentence in (tmp_path / "run" / "model_card.md").read_text()
    none = replace(info, num_skipped=0)
    assert "left out" not in model_card(none) and "num_skipped" not in none.to_json()
