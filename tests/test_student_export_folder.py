"""What `export` writes is what other tools read: timm loads the folder, onnxruntime the ONNX file, equal answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config, resolve_model_data_config

from cli import cli
from shards.errors import RunError
from shards.views.view_recipe import ViewRecipe
from student.learn.evaluation import eval_views
from student.learn.network import heads, make_student
from student.recipe.papers import recipe_for
from student.run import onnx_file
from student.run.export import ExportInfo, export_folder, export_weights, image_view, load_student, model_card
from tests.test_student_export import info_of, trained

NAMES = ("cat", "dog", "newt", "pike|perch", "élan")
TWO = "deit_tiny_distilled_patch16_224"
STUDENTS: list[tuple[str, int, tuple[tuple[str, Any], ...]]] = [
    (TWO, 32, ()),
    (TWO, 48, (("depth", 2), ("embed_dim", 48))),
    ("deit3_tiny_patch16_224", 32, ()),
    ("tf_efficientnet_lite0", 64, ()),
    ("resnet10t", 64, (("stem_type", "deep"),)),
    ("convnext_atto", 64, (("drop_path_rate", 0.1),)),
    ("swin_tiny_patch4_window7_224", 64, (("depths", (1, 1, 1, 1)), ("window_size", 2))),
]


def student(name: str, size: int, arguments: tuple[tuple[str, Any], ...]) -> tuple[torch.nn.Module, ExportInfo]:
    """A student with weights of no beginning, and what a run would say of it."""
    recipe = replace(recipe_for(name), image_size=size, model_args=arguments, eval_crop_pct=0.8)
    return trained(recipe), replace(info_of(recipe), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def picture(path: Path, width: int = 90, height: int = 70) -> Path:
    """A photograph of noise, which no two resizes make equal by chance."""
    pixels = np.random.default_rng(3).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "arguments"), STUDENTS)
def test_timm_loads_the_folder_with_equal_logits_and_prepares_images_as_evaluation_does(
    tmp_path: Path, name: str, size: int, arguments: tuple[tuple[str, Any], ...]
) -> None:
    model, info = student(name, size, arguments)
    folder = tmp_path / "my student v1.2"
    export_folder(model, folder, info)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std))
    view_BHWC = image_view(picture(tmp_path / "a.png"), views)
    for config in (resolve_model_data_config(theirs), resolve_data_config(theirs.pretrained_cfg)):
        assert config["crop_pct"] == 0.8 and tuple(config["input_size"]) == (3, size, size)
        assert (tuple(config["mean"]), tuple(config["std"])) == (info.mean, info.std)
        transform = create_transform(**config, normalize=False)
        with Image.open(tmp_path / "a.png") as image:
            prepared_CHW = torch.as_tensor(transform(image))
        # Resized in another order (timm: the whole picture, then the crop), so the last bit may differ.
        assert (prepared_CHW.int() - view_BHWC[0].permute(2, 0, 1).int()).abs().max() <= 1
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(theirs(x), heads(model, x).average())
    assert theirs.num_classes == 5 and tuple(theirs.pretrained_cfg["label_names"]) == NAMES
    assert load_student(folder)[1] == info, "a folder is a place of weights for this project, too"


def test_an_export_holds_what_the_hub_shows_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    model, info = student(TWO, 32, (("depth", 1),))
    for name in ("a/e", "b/e"):
        export_folder(model, tmp_path / name, info)
    files = sorted(path.name for path in (tmp_path / "a/e").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert all((tmp_path / "a/e" / name).read_bytes() == (tmp_path / "b/e" / name).read_bytes() for name in files)
    card = (tmp_path / "a/e/README.md").read_text()
    assert "timm.create_model('local-dir:e', pretrained=True)" in card and "average" in card
    config = json.loads((tmp_path / "a/e/config.json").read_text())
    assert config["model_args"] == {"depth": 1, "img_size": 32} and config["label_names"] == list(NAMES)
    unknown = replace(info, class_names=())
    export_folder(model, tmp_path / "c", unknown)
    assert "label_names" not in json.loads((tmp_path / "c/config.json").read_text())


def test_the_card_says_what_the_two_heads_are(tmp_path: Path) -> None:
    _, taught = student(TWO, 32, (("depth", 1),))
    assert "DIST on the teacher" in model_card(replace(taught, recipe=replace(taught.recipe, distill="hard")), "w")
    assert "DIST on the teacher" not in model_card(replace(taught, recipe=replace(taught.recipe, distill="none")), "w")


def run(*args: object) -> Any:
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A finished run's folder, as far as weights go."""
    model, info = student(TWO, 32, (("depth", 1),))
    (tmp_path / "run").mkdir()
    export_weights(model, tmp_path / "run" / "weights.safetensors", info)
    return tmp_path / "run"


def test_the_command_takes_a_run_and_writes_a_folder_or_a_file(tmp_path: Path, weights: Path) -> None:
    done = run("export", weights, tmp_path / "out")
    assert done.exit_code == 0 and f"timm.create_model('local-dir:{tmp_path}/out', pretrained=True)" in done.output
    assert run("export", weights, tmp_path / "out").exit_code == 0, "an export may be written again"
    assert run("export", tmp_path / "out", tmp_path / "x.safetensors").exit_code == 0
    assert (tmp_path / "x.safetensors").read_bytes() == (weights / "weights.safetensors").read_bytes()
    answered = run("predict", picture(tmp_path / "a.png"), "--weights", weights)
    assert (
        answered.exit_code == 0
        and answered.output == run("predict", tmp_path / "a.png", "--weights", tmp_path / "out").output
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{run}"], "expected DEST"),
        (["{run}", "{run}"], "expected a new"),
        (["{run}", "{tmp}/others"], "Nothing was changed"),
        (["{run}", "{tmp}/a.pth"], ".safetensors"),
        (["{run}", "{run}/weights.safetensors"], "WEIGHTS itself"),
        (["{tmp}/others", "{tmp}/out"], "it holds none of"),
        (["{run}", "{tmp}/out", "--images", "{tmp}"], "without --onnx"),
        (["{run}", "--onnx", "{tmp}/a.pb"], ".onnx"),
    ],
)
def test_the_command_refuses_what_it_cannot_write(tmp_path: Path, weights: Path, args: list[str], says: str) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "config.json").write_text("{}")
    done = run("export", *(arg.format(run=weights, tmp=tmp_path) for arg in args))
    assert done.exit_code in (1, 2) and says in done.output, done.output
    assert (tmp_path / "others" / "config.json").read_text() == "{}" and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "arguments"), STUDENTS[1:5])
def test_onnxruntime_answers_with_the_average_of_the_heads_at_any_batch_size(
    tmp_path: Path, name: str, size: int, arguments: tuple[tuple[str, Any], ...]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    model, info = student(name, size, arguments)
    report = onnx_file.write_onnx(model, info, tmp_path / "a.onnx", [picture(tmp_path / "a.png")])
    assert report.num_views == 1 and report.largest_difference <= onnx_file.TOLERANCE * max(1, report.largest_logit)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["mean"]) == list(info.mean) and json.loads(said["class_names"]) == list(NAMES)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.onnx", "a.png"]
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    for part in (x, x[:1]):
        (found,) = session.run(["logits"], {"image": part.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), heads(model, part).average(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_command_writes_an_onnx_file_and_says_how_it_compares(tmp_path: Path, weights: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    done = run("export", weights, "--onnx", tmp_path / "a.onnx")
    assert done.exit_code == 0, done.output
    for words in ("opset ", "(batch, 3, 32, 32)", "8 generated views", "differ by at most"):
        assert words in done.output, done.output


@pytest.mark.slow
def test_an_onnx_file_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    model, info = student("resnet10t", 32, ())
    monkeypatch.setattr(onnx_file, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="was not written"):
        onnx_file.write_onnx(model, info, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_command_says_what_to_install(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.commands.export.find_spec", lambda name: None)
    done = run("export", weights, "--onnx", tmp_path / "a.onnx")
    assert done.exit_code == 2 and "deit-teacher-cache[onnx]" in done.output


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k", "resnet10t", TWO + ".fb_in1k"])
def test_plain_timm_weights_are_seen_as_timm_prepares_them(tmp_path: Path, name: str) -> None:
    """The wrong normalisation costs EfficientNet-Lite0 ten points without a word."""
    save_file(timm.create_model(name.partition(".")[0], num_classes=6).state_dict(), tmp_path / "w.safetensors")
    config = timm.get_pretrained_cfg(name)
    _, info = load_student(tmp_path / "w.safetensors", model=name)
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std))
    assert (views.mean, views.std, views.crop_pct) == (config.mean, config.std, config.crop_pct)
    assert views.size == config.input_size[-1] and info.num_classes == 6
    assert any("as timm has them" in note for note in info.notes)


def test_a_name_of_the_table_without_a_tag_keeps_its_papers_evaluation(tmp_path: Path) -> None:
    recipe = replace(recipe_for(TWO), image_size=32)
    save_file(make_student(recipe, 5, seed=0).state_dict(), tmp_path / "w.safetensors")
    _, info = load_student(tmp_path / "w.safetensors", model=TWO)
    assert info.recipe.eval_crop_pct == 0.875 and info.recipe.image_size == 32 and info.notes == ()


def test_of_averaged_weights_it_is_said_that_they_are(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t", num_classes=6).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "w.pth")
    _, info = load_student(tmp_path / "w.pth", model="resnet10t")
    assert any("EMA" in note for note in info.notes)
