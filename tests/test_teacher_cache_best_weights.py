"""A run keeps the weights of its last and of its best epoch: commands say which they take, and caches keep theirs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from teacher_cache import TeacherOptions, load_teacher
from teacher_cache.network.teacher import weights_of_cache
from teacher_cache.network.weights_metadata import BEST_WEIGHTS, METADATA_KEY, trained_as, which_weights

LAST = "weights.safetensors"


def save(path: Path, top1: object, *, seed: int = 0) -> None:
    """Weights of a tiny network, as `train-teacher` writes them; a list is said in place of all measured numbers."""
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=3)
    metrics = {} if top1 is None else top1 if isinstance(top1, list) else {"top1": top1}
    said = {"mean": [0.5] * 3, "std": [0.5] * 3, "class_names": [], "metrics": metrics}
    said["recipe"] = {"model": "test_resnet", "model_args": {}}
    save_file(network.state_dict(), path, {METADATA_KEY: json.dumps(said)})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "weights.safetensors, last epoch, top-1 91.0 %; the best epoch has 94.0 %: "),
        (LAST, "weights.safetensors, last epoch, top-1 91.0 %; the best epoch has 94.0 %: "),
        (BEST_WEIGHTS, "weights_best.safetensors, best epoch, top-1 94.0 %"),
    ],
)
def test_the_meant_weights_are_named(path: str, expected: str, tmp_path: Path) -> None:
    """Nobody could see whether the answers of 91 % or of 94 % were stored."""
    save(tmp_path / LAST, 91.0)
    save(tmp_path / BEST_WEIGHTS, 94.0)
    words = which_weights(tmp_path / path)
    assert expected in words and (BEST_WEIGHTS in words) and words.startswith(str(tmp_path))


@pytest.mark.parametrize("top1", [None, "high", {}, [], ["top1"], math.nan, math.inf, 91, 91.0])
def test_weights_without_a_number_are_not_praised_and_stay_ours(top1: object, tmp_path: Path) -> None:
    """Without a validation nothing is known of them but how their images were made; nothing better lies beside."""
    save(tmp_path / LAST, top1)
    known = trained_as(tmp_path / LAST)
    assert known is not None and known.mean == (0.5, 0.5, 0.5)
    assert known.top1 == (91.0 if top1 == 91.0 else None)
    assert which_weights(tmp_path) == (f"{tmp_path / LAST}, last epoch, top-1 91.0 %" if top1 == 91.0 else "")


@pytest.mark.parametrize(
    ("size", "words"), [(96, ""), (64, "images of 96 pixels, these views have 64"), (224, "(--size)")]
)
def test_views_of_another_size_than_the_teachers_are_pointed_out(size: int, words: str, tmp_path: Path) -> None:
    """A teacher that was fine-tuned at 224 pixels answered views of 96, the default, without a word."""
    save(tmp_path / LAST, 91.0)
    unknown = trained_as(tmp_path / LAST)
    assert unknown is not None and unknown.size_words(size) == "", "files of old versions may not say it"
    said = unknown._replace(image_size=96).size_words(size)
    assert words in said and bool(words) == bool(said)


@pytest.mark.parametrize("name", ["weights_ema.safetensors", "dogs.safetensors", "model.safetensors"])
def test_no_epoch_is_made_up_for_a_file_of_another_name(name: str, tmp_path: Path) -> None:
    """A copy of the best weights under a name of the user's was called the last epoch's."""
    save(tmp_path / name, 94.0)
    assert which_weights(tmp_path / name) == ""


def test_a_damaged_file_of_one_epoch_does_not_hide_the_other(tmp_path: Path) -> None:
    """The commands that extend a cache are a hint at the end of a training: it had ended in the error of that file."""
    for seed, name in enumerate((LAST, BEST_WEIGHTS)):
        save(tmp_path / name, 90.0, seed=seed)
    known = trained_as(tmp_path / LAST)
    assert known is not None
    options = TeacherOptions(view_mean=known.mean, view_std=known.std, model_mean=known.mean, model_std=known.std)
    spec = load_teacher("test_resnet", weights=tmp_path / LAST, input_size=32, options=options).spec
    for name, expected in ((BEST_WEIGHTS, tmp_path / LAST), (LAST, tmp_path)):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
        assert weights_of_cache(tmp_path, spec) == expected
    (tmp_path / LAST).unlink()
    assert weights_of_cache(tmp_path, spec) == tmp_path


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_a_cache_keeps_the_weights_that_it_was_begun_with(mean: tuple[float, float, float], tmp_path: Path) -> None:
    """The commands that extend or continue it name the file of the same digest, whatever the views' normalisation."""
    files = {LAST: 0, BEST_WEIGHTS: 1}
    for name, seed in files.items():
        save(tmp_path / name, 90.0, seed=seed)
    for name in files:
        known = trained_as(tmp_path / name)
        assert known is not None
        options = TeacherOptions(view_mean=mean, view_std=known.std, model_mean=known.mean, model_std=known.std)
        teacher = load_teacher("test_resnet", weights=tmp_path / name, input_size=32, options=options)
        assert weights_of_cache(tmp_path, teacher.spec) == tmp_path / name
        assert weights_of_cache(tmp_path, replace(teacher.spec, weights_sha256="0" * 64)) == tmp_path
