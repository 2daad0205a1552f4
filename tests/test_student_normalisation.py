"""Published weights under views that are normalised otherwise: the first layer changes, and the answers do not."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from student.learn.network import make_student, student_and_start
from student.learn.timm_model import Normalisation, renormalise
from student.recipe.papers import recipe_for
from student.run.export import ExportInfo, export_weights
from student.run.run_events import StartedFrom
from tests.student_tiny import run_to_end, student_recipe, views, write_shards
from tests.test_student_network import ONE, TWO, small

OWN, OTHERS = (
    Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Normalisation((0.5, 0.4, 0.3), (0.5, 0.3, 0.2)),
)


def normalised(pixels_BCHW: torch.Tensor, like: Normalisation) -> torch.Tensor:
    return (pixels_BCHW - torch.tensor(like.mean).view(3, 1, 1)) / torch.tensor(like.std).view(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "like"),
    [(ONE, OTHERS), (TWO, OTHERS), ("convnext_atto", OTHERS), ("resnet10t", Normalisation(OWN.mean, OTHERS.std))],
)
def test_a_start_answers_images_of_another_normalisation_as_it_did_those_of_its_own(name, like: Normalisation) -> None:
    """Exactly where the first layer has a bias and no padding, or where only the scale is another."""
    model = make_student(replace(recipe_for(name), image_size=32, drop_path=0.0), 5, seed=1).eval()
    pixels_BCHW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(normalised(pixels_BCHW, OWN))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert renormalise(model, OWN, OWN) == "" and all(map(torch.equal, before.values(), model.state_dict().values()))
    assert "is changed to take those of the views" in renormalise(model, OWN, like)
    torch.testing.assert_close(model(normalised(pixels_BCHW, like)), expected, rtol=1e-3, atol=1e-4)


def test_a_network_whose_first_layer_is_unknown_says_what_its_weights_want() -> None:
    assert "training must adapt" in renormalise(nn.Linear(3, 3), OWN, OTHERS)


@pytest.mark.parametrize("name", ["test_nfnet", "resnetv2_50x1_bit"])
def test_weights_that_are_standardised_stay_as_they_are(name: str) -> None:
    """What was folded into them was undone or did harm, and was said to have been changed."""
    model = timm.create_model(name, num_classes=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert "training must adapt" in renormalise(model, OWN, OTHERS)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_a_students_weights_say_how_their_images_were_normalised(tmp_path: Path) -> None:
    """A run's file has metadata, published weights have timm's; of a bare file nothing is known, nothing changed."""
    old = make_student(small(ONE), 5, seed=1)
    info = ExportInfo(recipe=small(ONE), mean=OWN.mean, std=OWN.std, num_classes=5, fingerprints={}, metrics={})
    export_weights(old, tmp_path / "known.safetensors", info)
    save_file(old.state_dict(), tmp_path / "bare.safetensors")
    for file, changed in (("known", True), ("bare", False)):
        recipe = small(ONE, finetune=True, init_weights=str(tmp_path / f"{file}.safetensors"))
        model, report = student_and_start(recipe, 5, seed=2, normalisation=OTHERS)
        assert report is not None and ("patch_embed.proj is changed" in report.words) == changed
        assert torch.equal(model.patch_embed.proj.weight, old.patch_embed.proj.weight) != changed


@pytest.mark.slow
def test_a_run_says_that_its_start_was_changed_for_the_views(tmp_path: Path) -> None:
    index, recipe = write_shards(tmp_path / "shards"), student_recipe(distill="none", epochs=1, ema_decay=0.0)
    run_to_end(tmp_path / "first", index, recipe=recipe, views=views())
    start = replace(recipe, finetune=True, init_weights=str(tmp_path / "first/weights.safetensors"))
    for name, changes, changed in (("same", {}, False), ("other", {"mean": OTHERS.mean, "std": OTHERS.std}, True)):
        events = run_to_end(tmp_path / name, index, recipe=start, views=views(**changes))
        (begun,) = [event for event in events if isinstance(event, StartedFrom)]
        assert ("is changed to take those of the views" in begun.changes) == changed
