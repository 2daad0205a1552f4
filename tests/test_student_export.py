"""Exports: plain timm loads them with equal logits, and they know what they are."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from shards.errors import ArtefactError, RunError, ShardError
from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD
from student.learn.network import heads, make_student
from student.recipe.papers import recipe_for
from student.recipe.student_recipe import StudentRecipe
from student.run.export import (
    ExportInfo,
    export_weights,
    load_student,
    model_card,
    predict,
    read_info,
    timm_call,
)
from teacher_cache.network.weights_metadata import METADATA_KEY

TWO = "deit_tiny_distilled_patch16_224"
NAMES = ("cat", "dog", "newt", "pike|perch", "élan")


def info_of(recipe: StudentRecipe, num_classes: int = 5, names: tuple[str, ...] = NAMES) -> ExportInfo:
    """What a run would say."""
    return ExportInfo(
        recipe=recipe,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_classes=num_classes,
        class_names=names,
        fingerprints={"cache": "c0ffee", "shards": "5ca1ab1e"},
        metrics={"top1": 71.25, "dist_top1": 72.5},
    )


def trained(recipe: StudentRecipe, num_classes: int = 5) -> nn.Module:
    """A student whose heads differ and whose LayerScale is not at its start."""
    model = make_student(recipe, num_classes, seed=3)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn(param.shape, generator=torch.Generator().manual_seed(param.numel())), alpha=0.05)
    return model.eval()


def test_a_smaller_student_is_exported_with_its_arguments(tmp_path: Path) -> None:
    """The card must not claim the width of the table; an argument wins over the field of the recipe."""
    arguments = (("depth", 2), ("drop_path_rate", 0.0), ("embed_dim", 48))
    recipe = replace(recipe_for(TWO), image_size=32, model_args=arguments)
    model, path, info = trained(recipe), tmp_path / "student.safetensors", info_of(recipe)
    export_weights(model, path, info)
    plain = eval(timm_call(info, str(path)), {"timm": timm}).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(plain(x), heads(model, x).average())
        assert torch.equal(load_student(path)[0](x), plain(x))
    assert "changed by depth = 2, drop_path_rate = 0.0, embed_dim = 48" in model_card(info, str(path))


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [(TWO, 224, 1000), (TWO, 32, 5), ("deit_tiny_patch16_224", 48, 5), ("deit3_tiny_patch16_224", 224, 1000),
     ("deit3_tiny_patch16_224", 64, 5), ("convnext_atto", 64, 5)],
)  # fmt: skip
@pytest.mark.slow
def test_plain_timm_loads_an_export_with_equal_logits(tmp_path: Path, name: str, size: int, classes: int) -> None:
    """The very expression of the model card, evaluated; the bits of the answers are the same."""
    recipe = replace(recipe_for(name), image_size=size)
    model, path = trained(recipe, classes), tmp_path / "student.safetensors"
    info = info_of(recipe, classes, ())
    export_weights(model, path, info)
    call = timm_call(info, str(path))
    plain = eval(call, {"timm": timm}).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(plain(x), heads(model, x).average())
    assert call in model_card(info, str(path))
    if (size, classes) == (224, 1000) and name == TWO:
        assert call == f"timm.create_model({name!r}, checkpoint_path={str(path)!r})"


def test_an_export_reads_back_as_it_was(tmp_path: Path) -> None:
    """Weights to the bit, float32; recipe, names and numbers in the file itself."""
    recipe = replace(recipe_for(TWO), image_size=32)
    model, path, info = trained(recipe), tmp_path / "student.safetensors", info_of(recipe)
    export_weights(model.bfloat16(), path, info)
    assert read_info(path) == info
    loaded, said = load_student(path)
    assert said == info and not loaded.training
    for a, b in zip(loaded.parameters(), model.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())
    assert [p.name for p in tmp_path.iterdir()] == ["student.safetensors"]


def test_what_weights_say_may_be_numbers_of_numpy_and_any_mapping() -> None:
    """The fields are mappings and numbers, and a caller's mean of accuracies is NumPy's."""
    plain = info_of(recipe_for(TWO))
    other = replace(
        plain,
        mean=tuple(np.float64(number) for number in plain.mean),
        fingerprints=MappingProxyType(dict(plain.fingerprints)),
        metrics=MappingProxyType({name: np.float64(value) for name, value in plain.metrics.items()}),
    )
    assert json.dumps(other.to_json()) == json.dumps(plain.to_json())


@pytest.mark.slow
def test_an_export_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    """A cache keeps the digest of its teacher's weights; safetensors alone orders its metadata by a random hash."""
    recipe = replace(recipe_for(TWO), image_size=32)
    model, info = trained(recipe), info_of(recipe)
    seen = set()
    for number in range(12):
        path = tmp_path / f"{number}.safetensors"
        export_weights(model, path, info)
        seen.add(path.read_bytes())
    assert len(seen) == 1
    assert read_info(path) == info  # the names of classes are not all ASCII


def test_an_interrupted_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a weights file must never carry the name of a whole one."""
    recipe = replace(recipe_for(TWO), image_size=32)
    path = tmp_path / "student.safetensors"
    export_weights(trained(recipe), path, info_of(recipe))
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export_weights(trained(recipe), path, info_of(recipe))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_weights_of_others_need_a_name_and_get_its_recipe(tmp_path: Path) -> None:
    """A file without metadata: class count from the file, the rest from the table."""
    path = tmp_path / "theirs.safetensors"
    save_file(timm.create_model("deit_tiny_patch16_224", num_classes=7).state_dict(), path)
    assert read_info(path) is None
    with pytest.raises(ValueError, match="give --model NAME"):
        load_student(path)
    model, info = load_student(path, model="deit_tiny_patch16_224")
    assert (info.num_classes, info.recipe.image_size, info.recipe.eval_crop_pct) == (7, 224, 0.875)
    assert not model.training
    with pytest.raises(RunError, match="do not fit"):
        load_student(path, model="deit_small_patch16_224")
    torch.save({"model": load_file(path)}, tmp_path / "theirs.pth")
    assert load_student(tmp_path / "theirs.pth", model="deit_tiny_patch16_224")[1] == info


def test_weights_of_others_are_evaluated_at_the_size_they_were_trained_at(tmp_path: Path) -> None:
    """A resize in silence would be another network; another kind is refused by the name of what the file is."""
    for name, size in ((TWO, 32), ("deit_tiny_patch16_224", 384)):
        path = tmp_path / f"{size}.safetensors"
        save_file(timm.create_model(name, num_classes=7, img_size=size).state_dict(), path)
        assert load_student(path, model=name)[1].recipe.image_size == size
    with pytest.raises(RunError, match="weights of deit_tiny_patch16_224 at 384 px"):
        load_student(tmp_path / "384.safetensors", model=TWO)
    state = timm.create_model("deit_tiny_patch16_224", num_classes=7, patch_size=32).state_dict()
    save_file(state, tmp_path / "patch.safetensors")
    with pytest.raises(RunError, match=r"patch_embed\.proj\.weight is resized"):
        load_student(tmp_path / "patch.safetensors", model="deit_tiny_patch16_224")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_tensor(tmp_path: Path, value: float) -> None:
    """Whatever reads weights: predict and evaluate would answer with nan, export would hand it on."""
    recipe = replace(recipe_for(TWO), image_size=32)
    model, path = trained(recipe), tmp_path / "w.safetensors"
    with torch.no_grad():
        model.blocks[3].mlp.fc1.weight[1, 2] = value
    export_weights(model, path, info_of(recipe))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    for file in (path, tmp_path / "w.pth"):
        with pytest.raises(ArtefactError, match=r"tensor blocks\.3\.mlp\.fc1\.weight: 1 of 147456 numbers"):
            load_student(file, model=TWO)


def test_complex_weights_are_refused(tmp_path: Path) -> None:
    """Loading complex numbers into real ones drops the imaginary part."""
    state = timm.create_model("deit_tiny_patch16_224", num_classes=7).state_dict()
    torch.save(state | {"head.weight": state["head.weight"].to(torch.complex64)}, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match=r"tensor head\.weight: expected plain real numbers, got complex64"):
        load_student(tmp_path / "w.pth", model="deit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean", [float("nan"), 0.5, 0.5]), ("std", [0.5, float("inf"), 0.5]), ("std", [0.0, 0.5, 0.5]),
     ("metrics", {"top1": "71 %"}), ("metrics", {"top1": None}), ("fingerprints", {"cache": 3})],
)  # fmt: skip
def test_a_description_with_other_values_is_refused_by_file_and_field(
    tmp_path: Path, field: str, value: object
) -> None:
    recipe = replace(recipe_for(TWO), image_size=32)
    said = info_of(recipe).to_json() | {field: value}
    path = tmp_path / "w.safetensors"
    save_file(trained(recipe).state_dict(), path, {"format": "pt", METADATA_KEY: json.dumps(said)})
    with pytest.raises(RunError, match=field) as refused:
        load_student(path)
    assert str(path) in str(refused.value)


def test_a_name_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    """The file knows better, but the user should know too."""
    recipe = replace(recipe_for(TWO), image_size=32)
    export_weights(trained(recipe), tmp_path / "student.safetensors", info_of(recipe))
    with pytest.raises(ValueError, match=f"are of {TWO}, got deit_tiny_patch16_224"):
        load_student(tmp_path / "student.safetensors", model="deit_tiny_patch16_224")


def test_damaged_and_missing_files_are_one_clean_error(tmp_path: Path) -> None:
    """Truncation, bit rot in the header, and a file that is not there."""
    recipe = replace(recipe_for(TWO), image_size=32)
    path = tmp_path / "student.safetensors"
    export_weights(trained(recipe), path, info_of(recipe))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be read"):
        load_student(path)
    save_file({"head.bias": torch.zeros(5)}, path, {"deit_teacher_cache": '{"recipe": 1}'})
    with pytest.raises(RunError, match="cannot be read"):
        read_info(path)
    with pytest.raises(RunError, match="no such file"):
        load_student(tmp_path / "none.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two image files of unequal shape."""
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for n, path in enumerate(paths):
        pixels = np.random.Generator(np.random.Philox(n)).integers(0, 256, (40 + 9 * n, 50, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def test_predictions_are_the_evaluated_answers_with_names(pictures: list[Path]) -> None:
    """Probabilities fall, sum to one over all classes, and are the softmax of the averaged logits."""
    recipe = replace(recipe_for(TWO), image_size=32, eval_crop_pct=1.0)
    model, info = trained(recipe), info_of(recipe)
    answers = list(predict(model, info, pictures, top=9))
    assert [answer.path for answer in answers] == pictures
    for answer in answers:
        numbers, names, probabilities = zip(*answer.classes, strict=True)
        assert sorted(numbers) == list(range(5)) and list(probabilities) == sorted(probabilities, reverse=True)
        assert [NAMES[n] for n in numbers] == list(names)
        assert sum(probabilities) == pytest.approx(1.0)
    assert len({answer.classes for answer in answers}) == 2
    assert next(predict(model, info, pictures, top=1)).classes == answers[0].classes[:1]
    nameless = next(predict(model, replace(info, class_names=()), pictures, top=1)).classes[0]
    assert nameless[1] == str(nameless[0])


def test_a_predicted_image_is_seen_as_evaluation_sees_it(tmp_path: Path) -> None:
    """A grey square at the evaluation size passes resize and crop unchanged, so its logits are known."""
    recipe = replace(recipe_for(TWO), image_size=32, eval_crop_pct=1.0)
    model, info = trained(recipe), info_of(recipe)
    pixels = np.random.Generator(np.random.Philox(5)).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "square.png")
    x = (pixels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        prob = torch.softmax(model(torch.from_numpy(x).float().permute(2, 0, 1)[None]), -1)[0]
    for number, _, probability in next(predict(model, info, [tmp_path / "square.png"], top=5)).classes:
        assert probability == pytest.approx(prob[number].item(), rel=1e-4)


def test_unreadable_images_and_senseless_tops_are_refused(tmp_path: Path) -> None:
    """The message names the file."""
    recipe = replace(recipe_for(TWO), image_size=32)
    model, info = trained(recipe), info_of(recipe)
    (tmp_path / "text.png").write_bytes(b"not an image")
    for name in ("text.png", "none.png"):
        with pytest.raises(ShardError, match=name):
            list(predict(model, info, [tmp_path / name]))
    with pytest.raises(ValueError, match="expected at least 1"):
        list(predict(model, info, [], top=0))


def test_the_card_says_what_was_measured_and_from_what() -> None:
    """Fingerprints, numbers, every setting of the recipe; a table cell cannot be broken by its content."""
    recipe = replace(recipe_for(TWO), distill="soft", temperature=3.0)
    info = replace(info_of(recipe), fingerprints={"cache": "c0f|fee"})
    card = model_card(info, "student.safetensors")
    assert card.startswith(f"# {TWO}\n") and "soft distillation" in card and "τ = 3.0" in card
    assert "| top1 | `71.25` |" in card and r"| cache | `c0f\|fee` |" in card
    assert "| name of the recipe that was changed |" in card, "the paper's recipe is another one"
    for name, value in recipe.to_json().items():
        assert f"| {name} | `{json.dumps(value)}` |" in card or name == "name"
    assert "Nothing was recorded." in model_card(replace(info, metrics={}), "w")
    assert card.count("|---|---|") == 3
