"""Teachers from folders and repositories in timm's layout, and from transformers through the user's own function."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.errors import ArtefactError
from student.run.export import export_folder
from teacher_cache.network import hub, timm_network
from teacher_cache.network.teacher import load_teacher
from teacher_cache.network.teacher_name import require_known
from tests.stage1_tiny import loaded
from tests.test_student_export_folder import student

ONE = "deit_tiny_patch16_224"


def views(size: int = 32) -> Tensor:
    """Some normalised views."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of a small student with a normalisation of its own."""
    model, info = student(ONE, 32, (("depth", 1), ("embed_dim", 48)))
    export_folder(model, tmp_path / "net", info)
    return tmp_path / "net"


def test_a_folder_of_export_is_a_teacher_as_timm_loads_it(folder: Path) -> None:
    teacher = loaded(f"local-dir:{folder}", input_size=32, view_mean=(0.5, 0.4, 0.3), view_std=(0.2, 0.3, 0.25))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits(views()), theirs(views()), rtol=1e-5, atol=1e-5)
    assert teacher.num_classes == 5 and teacher.spec.name == f"local-dir:{folder}"
    other = load_teacher(f"local-dir:{folder}", input_size=32)
    assert other.spec.weights_sha256 != teacher.spec.weights_sha256, "views of ImageNet's normalisation get a layer"


@pytest.mark.parametrize("name", ["resnet10t", "test_resnet"])
def test_a_folder_that_timm_itself_writes_is_a_teacher(tmp_path: Path, name: str) -> None:
    """`save_for_hf` writes more than is needed here, and pytorch_model.bin beside or instead of safetensors."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=7).eval()
    for form in (True, False):
        place = tmp_path / str(form)
        timm.models.save_for_hf(model, place, safe_serialization=form)
        said = {"view_mean": model.pretrained_cfg["mean"], "view_std": model.pretrained_cfg["std"]}
        teacher = loaded(f"local-dir:{place}", input_size=32, **said)
        with torch.no_grad():
            torch.testing.assert_close(teacher.logits(views()), model(views()), rtol=1e-4, atol=1e-4)


def changed(folder: Path, **changes: Any) -> Path:
    """The folder with other fields in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path: describes no architecture"),
        ({"model_args": {"pretrained_cfg": {"file": "x"}}}, "pretrained_cfg: describes no architecture"),
        ({"model_args": {"nonsense": 1}}, "nonsense describes no architecture"),
        ({"model_args": {"depth": 10**9}}, "at most 65536"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "mean"),
        ({"architecture": 7}, "architecture"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_what_a_configuration_may_not_ask_for_is_refused_before_anything_is_built(
    folder: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArtefactError, match=f"config.json.*{says}"):
        require_known("--teacher", f"local-dir:{changed(folder, **changes)}")
    with pytest.raises(ArtefactError, match=f"config.json.*{says}"):
        load_teacher(f"local-dir:{folder}", input_size=32)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("local-dir:", "config.json of timm"),
        ("local-dir:{tmp}", "config.json of timm"),
        ("hf-hub:nonsense", "hf-hub:USER/NAME"),
        ("hf-hub:../../etc", "hf-hub:USER/NAME"),
    ],
)
def test_places_that_cannot_be_are_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        require_known("--teacher", name.format(tmp=tmp_path))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "w.bin")
    with pytest.raises(ArtefactError, match="holds none of"):
        require_known("--teacher", f"local-dir:{folder}")


def test_a_repository_of_the_hub_is_a_folder_once_it_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is asked for both files, of the revision that is named, and for nothing else."""
    asked = []

    def download(repo: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((repo, name, revision, local_files_only))
        if not (folder / name).exists():
            raise FileNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_unreachable", lambda url: "")
    there = load_teacher(f"local-dir:{folder}", input_size=32)
    teacher = load_teacher("hf-hub:some/net@main", input_size=32)
    assert teacher.spec == replace(there.spec, name="hf-hub:some/net@main")
    assert asked == [("some/net", "config.json", "main", False), ("some/net", "model.safetensors", "main", False)]
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_teacher("hf-hub:some/net", input_size=32).spec.weights_sha256 == teacher.spec.weights_sha256
    (folder / "pytorch_model.bin").unlink()
    monkeypatch.setattr(hub, "_unreachable", lambda url: "no answer in 5 s")
    with pytest.raises(ValueError, match=r"hf-hub:some/net cannot be had: no answer in 5 s.*local-dir:FOLDER"):
        timm_network.hub_folder("some/net")
    assert asked[-1][3], "what is on this disk is taken where the hub does not answer"


STUB = """
from torch import nn

class Output(dict):
    def __init__(self, logits):
        super().__init__(logits=logits)
        self.logits = logits

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 5)

    def forward(self, pixel_values, labels=None):
        return Output(self.classifier(self.convolution(pixel_values).mean((2, 3))))

def teacher():
    import torch
    torch.manual_seed(1)
    network = Classifier()
    network.mean, network.std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
    return network
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_answers_with_an_object_gives_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """As the classifiers of transformers do; the classifier is found, so bf16 keeps float32 logits."""
    (tmp_path / "answers_with_object.py").write_text(STUB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    half = {"view_mean": (0.5,) * 3, "view_std": (0.5,) * 3}
    teacher = loaded("answers_with_object:teacher", input_size=32, precision=precision, **half)
    import answers_with_object  # type: ignore[import-not-found]

    with torch.no_grad():
        expected = answers_with_object.teacher()(views()).logits
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(teacher.logits(views()), expected, rtol=tolerance, atol=tolerance)
    save_file(answers_with_object.teacher().state_dict(), tmp_path / "w.safetensors")
    again = loaded("answers_with_object:teacher", weights=tmp_path / "w.safetensors", input_size=32, **half)
    assert again.spec.weights_sha256 == teacher.spec.weights_sha256


TRANSFORMERS = """
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

def teacher(folder):
    network = ViTForImageClassification.from_pretrained(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    network.mean, network.std = processor.image_mean, processor.image_std
    network.input_size = processor.size["height"]
    return network
"""


@pytest.mark.slow
def test_a_classifier_of_transformers_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random one, saved and loaded as from the hub; its processor says mean, std and size."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**shape, image_size=32, patch_size=16, num_labels=5)
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "net")
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    processor.save_pretrained(tmp_path / "net")
    (tmp_path / "of_transformers.py").write_text(TRANSFORMERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    options = {"model_kwargs": {"folder": str(tmp_path / "net")}, "view_mean": (0.5,) * 3, "view_std": (0.25,) * 3}
    teacher = loaded("of_transformers:teacher", input_size=32, **options)
    with torch.no_grad():
        expected = network(views()).logits
    torch.testing.assert_close(teacher.logits(views()), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="takes images of 32 px"):
        loaded("of_transformers:teacher", input_size=64, **options)
