"""The table of students against timm itself."""

import functools
import json
from dataclasses import replace

import pytest
import timm
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from benchmarks import student_steps
from cli import cli
from shards.views.view_recipe import ViewRecipe
from student.learn.network import make_student
from student.learn.timm_model import bare_model
from student.recipe.papers import recipe_for
from student.recipe.zoo import MODELS, PAPERS, TEACHER, ModelEntry, explain, model_entry
from student.run.export import ExportInfo, model_card

NAMES = sorted(name for name, entry in MODELS.items() if entry.transformer)


@functools.cache
def on_meta(name: str) -> nn.Module:
    """The model without memory."""
    with torch.device("meta"):
        return bare_model(name, 1000, image_size=MODELS[name].image_size, arguments={})


def test_the_table_is_every_deit_of_timm_and_one_of_ours() -> None:
    """A DeiT that timm adds later shows up here."""
    deits = {name for name, entry in MODELS.items() if entry.family in PAPERS}
    assert deits == {*timm.list_models("*deit*"), "deit3_tiny_patch16_224"}


@pytest.mark.parametrize("name", NAMES)
def test_architecture_is_what_timm_builds(name: str) -> None:
    """Width, depth, heads, patch, resolution, tokens and heads of the row."""
    entry, model = MODELS[name], on_meta(name)
    shape = entry.transformer
    assert shape is not None
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (shape.dim, shape.depth, shape.heads)
    assert model.patch_embed.patch_size == (shape.patch, shape.patch)
    assert model.patch_embed.img_size == (entry.image_size, entry.image_size)
    assert model.patch_embed.num_patches + model.num_prefix_tokens == entry.num_tokens
    assert hasattr(model, "head_dist") == entry.distilled
    assert (entry.teacher == TEACHER) == (entry.distilled and bool(entry.family))
    if entry.built_as == name:
        assert timm.get_pretrained_cfg(name).input_size == (3, entry.image_size, entry.image_size)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_to_the_last_one(name: str) -> None:
    """The table rounds what the stages sum to, and that is what timm allocates."""
    count = sum(param.numel() for param in on_meta(name).parameters())
    assert explain(name).params == count
    assert MODELS[name].params_m == round(count / 1e6, 2)


@pytest.mark.parametrize("name", NAMES)
def test_macs_of_the_stages_are_the_published_ones(name: str) -> None:
    """timm's figure counts normalisation and softmax too: at most one percent more."""
    assert 0.99 * MODELS[name].gmacs <= explain(name).macs / 1e9 <= MODELS[name].gmacs


@pytest.mark.parametrize("name", NAMES)
def test_stage_shapes_are_those_of_a_forward_pass(name: str) -> None:
    """What `models NAME` prints is what flows; at the real resolution, on the meta device."""
    model, seen = on_meta(name).train(), {}

    def note(stage: str, value: Tensor) -> None:
        seen[stage] = f"(B, {', '.join(map(str, value.shape[1:]))})"

    block = model.blocks[-1]
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, stage=stage: note(stage, out))
        for stage, module in {
            "patch embedding": model.patch_embed,
            "block: norm, MLP up, GELU": block.mlp.act,
            "block: projection, residual": block.attn,
            "block: MLP down, residual": block,
            "norm": model.norm,
            "head: logits": model.head,
        }.items()
    ]
    with torch.device("meta"):
        model(torch.empty(1, 3, MODELS[name].image_size, MODELS[name].image_size))
    for hook in hooks:
        hook.remove()
    shapes = {stage.name: stage.shape for stage in explain(name).stages}
    assert {stage: shapes[stage] for stage in seen} == seen
    times = {stage.name: stage.times for stage in explain(name).stages}
    assert times["block: attention"] == len(model.blocks)


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_of_the_name_is_explained(name: str) -> None:
    """The pieces are the name, and each says something of its own."""
    explanation = explain(name)
    assert "_".join(piece for piece, _ in explanation.pieces) == name
    meanings = [meaning for _, meaning in explanation.pieces]
    assert len(set(meanings)) == len(meanings)


def test_weight_tags_are_pieces_too_and_strangers_meet_the_nearest_name() -> None:
    """Names come with tags in timm; typing errors come from users."""
    assert explain("deit_tiny_patch16_224.fb_in1k").pieces[-1][0] == "fb_in1k"
    assert model_entry("convnext_tiny") is None
    with pytest.raises(ValueError, match="the nearest is 'deit_tiny_patch16_224'"):
        explain("deit_tny_patch16_224")


def test_what_is_not_published_is_said_so() -> None:
    """No numbers are invented: None and a note."""
    tiny, medium = MODELS["deit3_tiny_patch16_224"], MODELS["deit3_medium_patch16_224"]
    assert (tiny.top1_published, tiny.top1_timm, tiny.drop_path, medium.drop_path) == (None, None, None, None)
    assert all(MODELS[name].note for name in NAMES if MODELS[name].drop_path is None)
    row = MODELS["deit_base_distilled_patch16_384"].to_json()
    assert (row["name"], row["teacher"], row["drop_path"]) == ("deit_base_distilled_patch16_384", TEACHER, None)
    assert MODELS["deit_base_patch16_224"].to_json()["teacher"] is None


def test_a_convolutional_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name and a recipe are enough for every reader of the table; the step runs through BatchNorm."""
    monkeypatch.setitem(MODELS, "resnet10t", ModelEntry(name="resnet10t", recipes=("deit_hard",)))
    recipe = replace(recipe_for("resnet10t"), drop_path=0.0, image_size=64)
    assert (recipe.distill, recipe.model) == ("hard", "resnet10t")
    assert make_student(recipe, 10, seed=0) is not None
    runner = CliRunner()
    listed = runner.invoke(cli, ["models"])
    assert listed.exit_code == 0 and "resnet10t" in listed.output
    explained = runner.invoke(cli, ["models", "resnet10t"])
    assert explained.exit_code == 0 and "recipe deit_hard" in explained.output
    row = json.loads(runner.invoke(cli, ["models", "resnet10t", "--json"]).output)
    assert (row["name"], row["stages"], row["gmacs"]) == ("resnet10t", [], None) and "dim" not in row
    refused = runner.invoke(cli, ["cost", "--model", "resnet10t"])
    assert refused.exit_code == 2 and "--student-rate" in refused.output
    views = ViewRecipe()
    info = ExportInfo(recipe=recipe, mean=views.mean, std=views.std, num_classes=10, fingerprints={}, metrics={})
    assert "timm.create_model('resnet10t', num_classes=10, checkpoint_path" in model_card(info, "weights.safetensors")
    step = student_steps.step("resnet10t", "cpu")
    assert step["gradients"] == step["parameters"] and step["loss"] > 0
