"""Recipes: values that validate, round-trip and have a fingerprint."""

import json
from dataclasses import fields, replace

import pytest

from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_json_round_trip(name: str) -> None:
    recipe = RECIPES[name]
    assert ViewRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_every_field_but_the_name_is_in_the_fingerprint() -> None:
    """A field left out would let a student train on other views than the cache was made with."""
    other = {
        "seed": 1, "size": 192, "crop": "src", "crop_scale": (0.1, 1.0), "crop_ratio": (0.5, 2.0), "crop_pct": 0.9,
        "flip": 0.4, "rand_augment": "", "three_augment": True, "color_jitter": 0.3, "erase_prob": 0.1,
        "erase_scale": (0.02, 0.3), "erase_ratio": (0.3, 3.0), "mixup_alpha": 0.2, "cutmix_alpha": 0.0, "mix_prob": 0.5,
        "switch_prob": 0.4, "block_size": 8, "block_views": 3, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5),
        "operations": ("invert",), "versions": ("rotate2",),
    }  # fmt: skip
    assert set(other) | {"name"} == {f.name for f in fields(ViewRecipe)}
    base = replace(RECIPES["deit"], rand_augment="rand-m9-mstd0.5-inc1")
    for field, value in other.items():
        start = replace(base, rand_augment="") if field == "three_augment" else base
        assert replace(start, **{field: value}).fingerprint != start.fingerprint, field
    assert replace(base, name="mine").fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"flip": 1.5}, r"recipe.flip: expected a number in \[0.0, 1.0\], got 1.5"),
        ({"crop": "random"}, "recipe.crop: expected one of rrc"),
        ({"crop_scale": (0.9, 0.1)}, "recipe.crop_scale"),
        ({"size": 0}, "recipe.size"),
        ({"std": (0.0, 1.0, 1.0)}, "recipe.std"),
        ({"three_augment": True}, "choose one"),
        ({"versions": ("rotate",)}, "recipe.versions: expected newer operations out of rotate2, center2, got 'rotate'"),
        ({"siez": 3}, "unknown field 'siez': the nearest is 'size'"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_wrong_settings_name_field_value_and_range(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_named("deit", **overrides)
