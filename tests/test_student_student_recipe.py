"""Recipes: the published numbers, typed changes from outside, and what may not contradict."""

import functools
import itertools
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shards.views.view_recipe import RECIPES as VIEW_RECIPES
from student.feed.answers import answer_from_logits
from student.feed.batch import Labels
from student.learn.learning_rate import lr_at
from student.learn.loss import student_loss
from student.learn.network import Heads
from student.recipe.overrides import override, parse_sets, read_toml
from student.recipe.papers import STUDENT_RECIPES, chosen_recipe, recipe_for, student_recipe_named, with_cache_views
from student.recipe.student_recipe import StudentRecipe
from student.recipe.zoo import MODELS

ALL = sorted(STUDENT_RECIPES)


def test_recipes_and_the_table_import_without_torch_or_zarr() -> None:
    """The CLI prints help and tables from them; torch alone takes seconds to import."""
    code = (
        "import sys, student.recipe.student_recipe, student.recipe.zoo, student.recipe.overrides;"
        "import student.learn.learning_rate;"
        "sys.exit(bool({'torch', 'zarr', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ALL)
def test_json_round_trip_is_the_identity(name: str) -> None:
    """A run's config is read back on resume; through real JSON text, not only dicts."""
    recipe = STUDENT_RECIPES[name]
    assert StudentRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_json_refuses_missing_and_unknown_fields() -> None:
    """A config of another version must not be read with defaults."""
    data = STUDENT_RECIPES["deit"].to_json()
    with pytest.raises(ValueError, match=r"missing fields \['lr'\], unknown fields \['learning_rate'\]"):
        StudentRecipe.from_json({("learning_rate" if k == "lr" else k): v for k, v in data.items()})


def test_deit_has_the_published_settings() -> None:
    """arXiv:2012.12877, table 9, and the defaults of the authors' main.py."""
    recipe = recipe_for("deit_small_patch16_224")
    expected = {
        "epochs": 300, "batch_size": 1024, "repeats": 3, "optimizer": "adamw", "betas": (0.9, 0.999), "eps": 1e-8,
        "weight_decay": 0.05, "clip_grad": 0.0, "warmup_epochs": 5, "warmup_lr": 1e-6, "min_lr": 1e-5,
        "drop_path": 0.1, "drop_path_shape": "linear", "ema_decay": 0.99996, "label_smoothing": 0.1,
        "base_loss": "cross_entropy", "distill": "none", "schedule_unit": "epoch", "eval_crop_pct": 0.875,
    }  # fmt: skip
    assert {name: getattr(recipe, name) for name in expected} == expected
    assert recipe.scaled_lr == pytest.approx(1e-3)
    assert replace(recipe, batch_size=256).scaled_lr == pytest.approx(2.5e-4)
    views = recipe.view_recipe
    assert (views.rand_augment, views.erase_prob) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (views.mixup_alpha, views.cutmix_alpha) == (0.8, 1.0)


def test_distillation_has_the_two_published_settings() -> None:
    """Hard is ½ + ½; soft is τ = 3, λ = .1 (arXiv:2012.12877, section 6), the KL divided by B · C as in the code."""
    hard, soft = recipe_for("deit_tiny_distilled_patch16_224"), STUDENT_RECIPES["deit_soft"]
    assert (hard.distill, hard.distill_weight) == ("hard", 0.5)
    assert (soft.distill, soft.distill_weight, soft.temperature, soft.reduction) == ("soft", 0.1, 3.0, "reference")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("hard", 0.5, 1.0, "textbook")),
        ({"distill": "hard"}, ("hard", 0.5, 1.0, "textbook")),
        ({"distill": "soft"}, ("soft", 0.1, 3.0, "reference")),
        ({"distill": "soft", "temperature": 2.0}, ("soft", 0.1, 2.0, "reference")),
        ({"distill": "soft", "distill_weight": 0.5}, ("soft", 0.5, 3.0, "textbook")),
        ({"distill": "soft", "reduction": "textbook"}, ("soft", 0.1, 3.0, "textbook")),
        ({"distill": "dist"}, ("dist", 0.5, 1.0, "textbook")),
        ({"distill": "soft-std", "temperature": 3.0}, ("soft-std", 0.989, 3.0, "textbook")),
        ({"distill": "none"}, ("none", 0.5, 1.0, "textbook")),
    ],
    ids=str,
)
def test_a_loss_that_is_asked_for_comes_with_its_paper(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """`--distill soft` alone is a published setting; a λ of the user's is on the textbook form, in any loss."""
    model = "deit_tiny_distilled_patch16_224"
    recipe = chosen_recipe(model, name=None, stage=0, user_fields=given, cached=VIEW_RECIPES["deit"])
    assert (recipe.distill, recipe.distill_weight, recipe.temperature, recipe.reduction) == expected


@pytest.mark.parametrize(("weight", "converted"), [(0.1, 1.111e-4), (0.5, 9.990e-4), (0.9, 8.920e-3)])
def test_lambda_of_the_authors_code_is_a_thousandth_in_the_textbook(weight: float, converted: float) -> None:
    """λ' = (λ/C) / ((1 − λ) + λ/C), and the whole loss is (1 − λ) + λ/C times the textbook's: docs/recipes.md."""
    classes, scale = 1000, (1 - weight) + weight / 1000
    textbook = weight / classes / scale
    assert textbook == pytest.approx(converted, rel=1e-3)
    generator = torch.Generator().manual_seed(0)
    student_BC, teacher_BC = torch.randn(2, 6, classes, generator=generator, dtype=torch.float64)
    totals = [
        student_loss(
            Heads(student_BC, None),
            Labels.of(torch.arange(6)),
            answer_from_logits(teacher_BC),
            StudentRecipe(distill="soft", temperature=3.0, distill_weight=of, reduction=reduction),  # type: ignore[arg-type]
        ).total.item()
        for of, reduction in ((weight, "reference"), (textbook, "textbook"))
    ]
    assert totals[0] == pytest.approx(scale * totals[1], rel=1e-6)


BINARY = "deit3_small_patch16_224"


@pytest.mark.parametrize(
    ("given", "cached", "reduction"),
    [
        ({}, True, "per_class"),
        ({"distill": "hard"}, True, "per_class"),
        ({"distill": "hard"}, False, "per_class"),
        ({"distill": "soft"}, True, "reference"),
        ({"distill": "soft", "distill_weight": 0.5}, True, "per_class"),
        ({"base_loss": "cross_entropy"}, True, "textbook"),
        ({"reduction": "textbook"}, True, "textbook"),
        ({"distill": "none"}, True, "textbook"),
        ({}, False, "textbook"),
    ],
    ids=str,
)
def test_beside_a_mean_over_classes_the_teacher_is_one_too(given: dict[str, Any], cached: bool, reduction: str) -> None:
    """DeiT-III's labels would weigh a thousandth of the teacher; without a teacher the recipe stays the paper's."""
    views = replace(VIEW_RECIPES["deit3"], size=224) if cached else None
    recipe = chosen_recipe(BINARY, name=None, stage=0, user_fields=given, cached=views)
    assert (recipe.base_loss == "binary") == ("base_loss" not in given)
    assert recipe.reduction == reduction


# model, resolution, lr, drop path of the long DeiT-III stage (README_revenge.md of the authors)
DEIT3_LONG = [
    ("small", 224, 4e-3, 0.05),
    ("base", 192, 3e-3, 0.2),
    ("large", 192, 3e-3, 0.45),
    ("huge", 160, 3e-3, 0.6),
]
# model, resolution, drop path of the 20 epochs after
DEIT3_SHORT = [
    ("base_patch16_224", 224, 0.2), ("large_patch16_224", 224, 0.45), ("huge_patch14_224", 224, 0.55),
    ("small_patch16_384", 384, 0.0), ("base_patch16_384", 384, 0.15), ("large_patch16_384", 384, 0.4),
]  # fmt: skip


@pytest.mark.parametrize(("size", "pixels", "lr", "drop_path"), DEIT3_LONG)
def test_deit3_trains_800_epochs_with_lamb(size: str, pixels: int, lr: float, drop_path: float) -> None:
    """The long stage of DeiT-III; its learning rate is literal, at any batch size."""
    recipe = recipe_for(f"deit3_{size}_patch{14 if size == 'huge' else 16}_224")
    assert (recipe.image_size, recipe.scaled_lr, recipe.drop_path) == (pixels, lr, drop_path)
    assert replace(recipe, batch_size=64).scaled_lr == lr
    assert (recipe.optimizer, recipe.epochs, recipe.batch_size, recipe.repeats) == ("lamb", 800, 2048, 3)
    assert (recipe.base_loss, recipe.label_smoothing, recipe.weight_decay) == ("binary", 0.0, 0.05)
    assert (recipe.drop_path_shape, recipe.layer_scale_init, recipe.eval_crop_pct) == ("uniform", 1e-4, 1.0)
    views = recipe.view_recipe
    assert views.size == pixels
    assert (views.three_augment, views.color_jitter, views.erase_prob, views.rand_augment) == (True, 0.3, 0.0, "")


@pytest.mark.parametrize(("model", "pixels", "drop_path"), DEIT3_SHORT)
def test_deit3_fine_tunes_20_epochs_with_adamw(model: str, pixels: int, drop_path: float) -> None:
    """The short stage: constant 1e-5 after the warm-up, RandAugment, cross-entropy, no repeats, no erasing."""
    name = f"deit3_{model}"
    recipe = recipe_for(name, stage=len(MODELS[name].recipes) - 1)
    assert (recipe.image_size, recipe.drop_path, recipe.finetune) == (pixels, drop_path, True)
    assert (recipe.optimizer, recipe.epochs, recipe.batch_size, recipe.repeats) == ("adamw", 20, 512, 1)
    assert (recipe.scaled_lr, recipe.min_lr, recipe.weight_decay) == (1e-5, 1e-5, 0.1)
    assert (recipe.base_loss, recipe.label_smoothing) == ("cross_entropy", 0.1)
    views = recipe.view_recipe
    assert (views.rand_augment, views.erase_prob, views.size) == ("rand-m9-mstd0.5-inc1", 0.0, pixels)


def test_deit_base_at_384_fine_tunes_at_a_constant_5e_6() -> None:
    """lr 5e-6 = min lr, weight decay 1e-8, 30 epochs of 512; its command leaves the drop path at main.py's .1."""
    recipe = recipe_for("deit_base_patch16_384")
    assert (recipe.scaled_lr, recipe.min_lr, recipe.weight_decay) == (5e-6, 5e-6, 1e-8)
    assert (recipe.epochs, recipe.batch_size, recipe.drop_path, recipe.image_size) == (30, 512, 0.1, 384)
    assert recipe_for("deit_base_distilled_patch16_384").distill == "hard"


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_stage_of_every_model_is_a_recipe(model: str) -> None:
    """The last stage runs at the resolution of the name; where drop path is published, the first stage has it."""
    entry = MODELS[model]
    stages = [recipe_for(model, stage=stage) for stage in range(len(entry.recipes))]
    assert [recipe.name for recipe in stages] == list(entry.recipes)
    assert stages[-1].image_size == entry.image_size
    assert entry.drop_path is None or stages[0].drop_path == entry.drop_path
    if entry.family:
        assert all(recipe.distill == ("hard" if entry.teacher else "none") for recipe in stages)
    with pytest.raises(ValueError, match=r"stage: .* expected 0"):
        recipe_for(model, stage=len(stages))


def test_other_timm_models_get_deit_and_learn_from_a_cache_that_is_given() -> None:
    """A student that was handed a teacher and did not listen would be a surprise."""
    assert recipe_for("convnext_tiny") == replace(STUDENT_RECIPES["deit"], model="convnext_tiny")
    assert recipe_for("convnext_tiny", with_cache=True).distill == "hard"
    assert recipe_for("deit3_small_patch16_224", with_cache=True).distill_weight == 0.5


@pytest.mark.parametrize("recipe", STUDENT_RECIPES.values(), ids=list(STUDENT_RECIPES))
def test_every_field_survives_the_command_line(recipe: StudentRecipe) -> None:
    """`--set field=value` of a field's own value changes nothing: law of the text form of every type."""
    texts = []
    for field in fields(StudentRecipe):
        value = getattr(recipe, field.name)
        if field.name not in ("model", "view_overrides", "model_args") and value != "":
            texts.append(f"{field.name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    assert override(recipe, parse_sets(texts)) == recipe


REFUSED = [
    ("warmup_epoch=3", "unknown key 'warmup_epoch': the nearest is 'warmup_epochs'"),
    ("view.erase_probability=0", "the nearest is 'view.erase_prob'"),
    ("lr=fast", "lr: expected a number, got 'fast'"),
    ("epochs=1.5", "epochs: expected an integer, got '1.5'"),
    ("lr_lag=perhaps", "lr_lag: expected true or false, got 'perhaps'"),
    ("betas=0.9,much", "betas: expected a number, got 'much'"),
    ("betas=0.9", "betas: expected two numbers"),
    ("optimizer=sgd", "optimizer: expected one of adamw, lamb, got 'sgd'"),
    ("temperature=0", "temperature: expected a number in"),
    ("distill_weight=1.5", "distill_weight: expected a number in"),
    ("lr=nan", "lr: expected a number in"),
    ("label_smoothing=-0.1", "label_smoothing: expected a number in"),
    ("view=imagenet", "view: expected one of"),
    ("view.flip=2", "recipe.flip"),
    ("view.size=64", "is set with image_size"),
    ("model=vit_tiny", "is set with --model"),
    ("base_loss=binary", "label_smoothing: expected 0 with base_loss binary"),
    ("warmup_epochs=300", "warmup_epochs: expected less than epochs"),
    ("init_weights=x.pt", "set finetune=true"),
    ("lr", "expected key=value"),
]


@pytest.mark.parametrize(("item", "message"), REFUSED, ids=[item for item, _ in REFUSED])
def test_a_wrong_setting_is_refused_by_name(item: str, message: str) -> None:
    """Nothing a user mistypes may be ignored."""
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        override(STUDENT_RECIPES["deit"], parse_sets([item]))


def test_a_lag_per_step_is_refused() -> None:
    """The reference's quirk is a lag of one epoch; per step it would mean nothing."""
    with pytest.raises(ValueError, match="needs schedule_unit=epoch"):
        override(STUDENT_RECIPES["deit"], parse_sets(["lr_lag=true", "schedule_unit=step"]))


def test_unknown_recipe_names_the_nearest() -> None:
    """`--recipe` is typed by hand."""
    with pytest.raises(ValueError, match="unknown recipe 'deit_sof': the nearest is 'deit_soft'"):
        student_recipe_named("deit_sof", model="deit_tiny_patch16_224")


def test_toml_sets_fields_and_views(tmp_path: Path) -> None:
    """A file says the same as the flags; an integer is good enough for a float."""
    path = tmp_path / "run.toml"
    path.write_text("epochs = 90\nlr = 1\nbetas = [0.9, 0.95]\nlr_lag = true\n[view]\nerase_prob = 0\nseed = 3\n")
    recipe = override(STUDENT_RECIPES["deit"], read_toml(path))
    assert (recipe.epochs, recipe.lr, recipe.betas, recipe.lr_lag) == (90, 1.0, (0.9, 0.95), True)
    assert (recipe.view_recipe.erase_prob, recipe.view_recipe.seed) == (0.0, 3)
    flags = ["epochs=90", "lr=1", "betas=0.9,0.95", "lr_lag=true", "view.erase_prob=0", "view.seed=3"]
    assert override(STUDENT_RECIPES["deit"], parse_sets(flags)) == recipe


BAD_TOML = [
    ("lr = ", "cannot be read as TOML"),
    ("lr = '1e-3'", "lr: expected float, got '1e-3'"),
    ("lr_lag = 1", "lr_lag: expected bool, got 1"),
    ("epochs = true", "epochs: expected int, got True"),
    ("[views]\nflip = 1", "the nearest is 'view.flip'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TOML, ids=[message for _, message in BAD_TOML])
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    """The message says which file."""
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_toml(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("epochs", "warmup"), [(300, 5), (600, 5), (100, 5), (49, 4), (20, 2), (3, 0), (1, 0)])
def test_a_shorter_run_keeps_a_tenth_as_warm_up(epochs: int, warmup: int) -> None:
    """Five of three epochs at 1e-6 would train nothing; said warm-ups are kept."""
    assert override(STUDENT_RECIPES["deit"], {"epochs": epochs}).warmup_epochs == warmup
    if epochs > 2:
        assert override(STUDENT_RECIPES["deit"], {"epochs": epochs, "warmup_epochs": 2}).warmup_epochs == 2


def test_another_view_recipe_drops_the_overrides_of_the_old_one() -> None:
    """`erase_prob = 0` belongs to the fine-tuning recipe's own views."""
    recipe = student_recipe_named("deit3_base_finetune224", model="deit3_base_patch16_224")
    assert override(recipe, {"view.flip": 0.0}).view_overrides == (("erase_prob", 0.0), ("flip", 0.0))
    assert override(recipe, {"view": "deit3"}).view_overrides == ()


def test_views_come_from_the_cache() -> None:
    """Law 5: the cache's resolution is taken; asking for other views is an error that names the key."""
    cached = replace(VIEW_RECIPES["deit3"], size=64)
    recipe = STUDENT_RECIPES["deit"]
    assert with_cache_views(recipe, cached).image_size == 64
    assert with_cache_views(replace(recipe, image_size=64), cached, explicit=["image_size"]).image_size == 64
    for key in ("view", "view.flip", "image_size"):
        with pytest.raises(ValueError, match=rf"^{key}: the "):
            with_cache_views(recipe, cached, explicit=["lr", key])


@functools.cache
def printed(*words: str) -> list[str]:
    """The lines of `cli.py recipes`."""
    done = CliRunner().invoke(cli, ["recipes", *words])
    assert done.exit_code == 0, done.output
    return str(done.output).splitlines()


@pytest.mark.parametrize("recipe", STUDENT_RECIPES.values(), ids=list(STUDENT_RECIPES))
def test_the_list_of_recipes_shows_their_fields(recipe: StudentRecipe) -> None:
    """A cell under each heading; drop path and loss may have several words."""
    heading, line = printed()[0], next(line for line in printed() if line.split()[:1] == [recipe.name])
    names = ("recipe", "px", "epochs", "batch", "repeats", "optim", "peak lr", "decay", "drop path", "views", "loss")
    starts = [heading.index(name) for name in names] + [None]
    cells = [line[start:end].strip() for start, end in itertools.pairwise(starts)]
    drop_path = [f"{recipe.drop_path:g}", *([recipe.drop_path_shape] if recipe.drop_path else [])]
    assert cells[:-1] == [
        recipe.name, str(recipe.image_size), str(recipe.epochs), str(recipe.batch_size), str(recipe.repeats),
        recipe.optimizer, f"{recipe.scaled_lr:g}", f"{recipe.weight_decay:g}", " ".join(drop_path),
        recipe.view + ("*" if recipe.view_overrides else ""),
    ]  # fmt: skip
    losses = {"deit": "CE 0.1", "deit_hard": "CE 0.1, hard λ 0.5", "deit_soft": "CE 0.1, soft λ 0.1 τ 3 reference",
              "small": "CE 0, soft λ 0.5 τ 1", "deit3_base": "BCE", "deit3_base_finetune224": "CE 0.1"}  # fmt: skip
    assert losses.get(recipe.name, cells[-1]) == cells[-1]


def test_a_recipe_is_printed_with_its_learning_rates() -> None:
    """From warm-up to end: the numbers that timm's scheduler gives, as `recipes` prints them."""
    expected = {
        "deit": "1.0000e-06 2.0080e-04 8.0020e-04 9.9932e-04 8.5502e-04 5.0500e-04 1.5498e-04 1.0027e-05",
        "deit3_base": "1.0000e-06 6.0080e-04 2.4002e-03 2.9997e-03 2.5621e-03 1.5050e-03 4.4788e-04 1.0012e-05",
        "deit_finetune384": "1.0000e-06 1.8000e-06 4.2000e-06 " + " ".join(5 * ["5.0000e-06"]),
    }
    for name, rates in expected.items():
        lines = [line.split() for line in printed(name)]
        assert next(words[2:] for words in lines if words[:2] == ["learning", "rate"]) == rates.split()
    lagging = replace(STUDENT_RECIPES["deit"], lr_lag=True)
    assert [f"{lr_at(lagging, epoch):.4e}" for epoch in (0, 1, 4, 299)] == [
        "1.0000e-06", "1.0000e-06", "6.0040e-04", "1.0109e-05"
    ]  # fmt: skip


def test_model_args_reach_timm_from_text_and_from_toml(tmp_path: Path) -> None:
    """A smaller student is a setting like any other: typed, round-tripped, and merged key by key."""
    file = tmp_path / "small.toml"
    file.write_text("epochs = 3\n[view]\nname = 'plain'\nflip = 0.5\n[model_args]\nembed_dim = 96\ndepth = 2\n")
    recipe = override(recipe_for("deit_tiny_patch16_224"), read_toml(file) | parse_sets(["model_args.depth=4"]))
    assert dict(recipe.model_args) == {"embed_dim": 96, "depth": 4}
    assert recipe.view == "plain" and recipe.view_recipe.flip == 0.5
    assert StudentRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
