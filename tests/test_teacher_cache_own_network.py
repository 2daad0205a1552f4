"""A teacher of the user's own: any function that returns a network, with its weights as tensors and nothing else."""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import Tensor

from cli import cli
from shards.errors import ArtefactError
from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD, recipe_named
from student.feed.feed import Feed
from teacher_cache.network import heap
from teacher_cache.network.teacher import Teacher
from tests.stage1_tiny import loaded
from tests.student_tiny import write_shards

RESNET = "torchvision.models:resnet18"
OWN = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes=5, width=4, normalised=True):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.fc = nn.Linear(width, classes)
        if normalised:
            self.mean, self.std = (0.485, 0.456, 0.406), torch.tensor([0.229, 0.224, 0.225])

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

class Flat(nn.Module):
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 15 * 15, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(len(x), -1))

class Scaled(Small):
    def forward(self, x):
        return 2 * super().forward(x)

class Moody(Small):
    fault = ""

    def forward(self, x):
        if self.fault == "raises" and x.any():
            raise KeyError("bright")
        return super().forward(x)[int(self.fault == "fewer images" and bool(x.any())):]

def moody(fault):
    network = Moody()
    network.fault = fault
    return network

def small(**options):
    torch.manual_seed(3)
    return Small(**options)

def sized():
    network = small()
    network.input_size = 48
    return network

def nothing():
    return "a network"

def fails():
    raise RuntimeError("no such file: weights.bin")

def maps():
    return nn.Conv2d(3, 4, 3)

def words():
    network = small(normalised=False)
    network.mean = network.std = "imagenet"
    return network

def numbers():
    class Indices(Small):
        def forward(self, x):
            return super().forward(x).argsort()
    return Indices()

NUMBER = 7

class Session(nn.Module):
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, file):
        super().__init__()
        self.outside = (lambda x: x.flatten(1)[:, :5] * float(open(file).read()),)

    def forward(self, x):
        return self.outside[0](x)

def session(file):
    return Session(file)

def registered(file):
    network = Session(file)
    network.register_buffer("file", torch.frombuffer(bytearray(open(file, "rb").read()), dtype=torch.uint8))
    return network
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A module of the user's in the current folder, under a name that no other test has imported."""
    name = f"own_net_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield name


def load(name: str, **options: Any) -> Teacher:
    """At 32 pixels."""
    return loaded(name, **({"input_size": 32} | options))


def views(size: int = 32) -> Tensor:
    """Some normalised views."""
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def imagenet(**options: Any) -> dict[str, Any]:
    """The normalisation that torchvision's networks do not carry."""
    return {"model_mean": IMAGENET_MEAN, "model_std": IMAGENET_STD, **options}


def test_a_teacher_changes_nothing_of_the_process_that_builds_it(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python path and the memory allocator are the caller's; commands and stage 1 change them where they begin."""
    monkeypatch.setattr(heap, "ctypes", None)  # an allocator that is touched is an error
    monkeypatch.chdir("/")
    before = list(sys.path)
    load(f"{own}:small", **imagenet())
    assert sys.path == before


@pytest.mark.slow
def test_a_network_of_torchvision_answers_as_itself(tmp_path: Path) -> None:
    """Weights from a local file; the spec names the function, its arguments and the digest of the weights."""
    torch.manual_seed(5)
    network = torchvision.models.resnet18(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    teacher = load(RESNET, weights=tmp_path / "resnet18.pth", model_kwargs={"num_classes": 7}, **imagenet())
    with torch.inference_mode():
        torch.testing.assert_close(teacher.logits(views()), network(views()), rtol=1e-5, atol=1e-5)
    assert teacher.spec.name == 'torchvision.models:resnet18{"num_classes": 7}'
    assert (teacher.num_classes, teacher.spec.input_size) == (7, 32)
    again = load(teacher.spec.name, weights=tmp_path / "resnet18.pth", **imagenet())
    assert again.spec == teacher.spec, "the name of a spec builds the same teacher"
    network.fc.bias.data[3] += 1e-6
    torch.save(network.state_dict(), tmp_path / "other.pth")
    other = load(teacher.spec.name, weights=tmp_path / "other.pth", **imagenet())
    assert other.spec.weights_sha256 != teacher.spec.weights_sha256


def test_a_network_says_its_own_normalisation_and_other_views_are_changed_into_it(own: str) -> None:
    """Attributes, as numbers or as a tensor in float32; a flag is stronger; the change counts as weights."""
    plain = load(f"{own}:small")
    assert (plain.spec.mean, plain.spec.std) == (IMAGENET_MEAN, IMAGENET_STD)
    half = load(f"{own}:small", model_mean=(0.5,) * 3, model_std=(0.25,) * 3)
    pixels = views() * torch.tensor(IMAGENET_STD).view(-1, 1, 1) + torch.tensor(IMAGENET_MEAN).view(-1, 1, 1)
    torch.testing.assert_close(half.logits(views()), plain.logits((pixels - 0.5) / 0.25), rtol=1e-4, atol=1e-4)
    assert half.spec.weights_sha256 != plain.spec.weights_sha256


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_float32_in_every_precision(own: str, precision: str) -> None:
    """The layer that gives them is found by looking at an answer: bf16 logits would tie."""
    logit_BC = load(f"{own}:small", precision=precision, model_kwargs={"classes": 50}).logits(views())
    assert logit_BC.dtype == torch.float32
    assert not torch.equal(logit_BC, logit_BC.bfloat16().float()), "more digits than bf16 has"


def test_where_the_last_layer_cannot_be_told_half_precision_is_refused(own: str) -> None:
    (Path(f"{own}_scaled.py")).write_text(OWN + "\n\ndef scaled():\n    return Scaled()\n")
    assert load(f"{own}_scaled:scaled").logits(views()).shape == (4, 5)
    with pytest.raises(ValueError, match="would be rounded and tie; give --precision fp32"):
        load(f"{own}_scaled:scaled", precision="bf16")


def test_code_that_cannot_take_channels_last_gets_what_it_can_take(own: str) -> None:
    """`view` after a convolution is common and fails on channels-last tensors."""
    load(f"{own}:Flat")
    network = sys.modules[own].Flat().eval()
    torch.save(network.state_dict(), "flat.pth")
    teacher = load(f"{own}:Flat", weights=Path("flat.pth"), view_mean=(0.5,) * 3, view_std=(0.5,) * 3)
    with torch.inference_mode():
        torch.testing.assert_close(teacher.logits(views()), network(views()))


WRONG = [
    ("no_such_package:f", {}, "module no_such_package cannot be imported: ModuleNotFoundError"),
    ("{own}:smal", {}, "has no function 'smal'; similar: small"),
    ("{own}:NUMBER", {}, "has no function 'NUMBER'"),
    ("{own}:", {}, "expected package.module:function"),
    ("{own}:nothing", {}, "must return a torch.nn.Module, got str"),
    ("{own}:fails", {}, r"fails\(\) failed: RuntimeError: no such file"),
    ("{own}:small", {"model_kwargs": {"depth": 3}}, r"small\(depth=3\) failed: TypeError"),
    ("{own}:maps", imagenet(), r"two images gave shape \(2, 4, 30, 30\)"),
    ("{own}:numbers", {}, "must answer with floating-point logits, got torch.int64"),
    ("{own}:small", {"model_kwargs": {"normalised": False}}, "does not say its mean; give --teacher-mean"),
    ("{own}:words", {}, "has mean = 'imagenet'; give --teacher-mean"),
    ("{own}:small", {"model_std": (0.0, 1.0, 1.0)}, "std expected positive numbers"),
    ("{own}:sized", {}, "takes images of 48 px, the views have 32; give --size 48"),
    ("{own}:small", {"num_classes": 9}, "answers in 5 classes, expected 9"),
    ("torchvision.models:resnet18", imagenet(input_size=1, model_kwargs={"wrong": 1}), "failed: TypeError"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=[f"{n}-{w[0]}" for n, w in enumerate(WRONG)])
def test_what_is_no_teacher_is_refused_by_name(own: str, name: str, options: dict[str, Any], message: str) -> None:
    """No traceback of the user's code: what it was, and what it said."""
    with pytest.raises(ValueError, match=message) as error:
        load(name.format(own=own), **options)
    assert len(str(error.value)) < 600


def test_weights_must_fit_in_every_name_and_shape(own: str, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "head": torch.zeros(2), "fc.weight": torch.zeros(6, 4)},
               tmp_path / "w.pth")  # fmt: skip
    with pytest.raises(ValueError, match=r"2 missing \(conv.bias, fc.bias\); 1 unknown \(head\); 1 of another shape"):
        load(f"{own}:small", weights=tmp_path / "w.pth")


class Bomb:
    """What a hostile file would hold."""

    def __reduce__(self) -> Any:
        return Path("exploded").touch, ()


def test_a_file_of_weights_never_runs_code(own: str, tmp_path: Path) -> None:
    """The function is the user's; the file may be anybody's."""
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ArtefactError, match="files that hold pickled code are refused"):
        load(f"{own}:small", weights=tmp_path / "bomb.pth")
    assert not Path("exploded").exists()


def test_it_goes_through_every_command_that_asks_a_teacher(own: str, tmp_path: Path) -> None:
    """Stage 1, its verification, training with the teacher in the loop; the feed on its cache and with it."""
    sys.path.remove(str(tmp_path))  # commands look in the current folder
    index = write_shards(tmp_path / "train")
    teacher = ["--teacher", f"{own}:small", "--teacher-arg", "width=6", "--teacher-std", "0.229,0.224,0.225"]
    shown = ["--recipe", "plain", "--size", "16", "--set", "block_size=4", "--views", "2", "--views-per-unit", "2"]

    def run(*words: str | Path) -> str:
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    stage1 = ["--shards", tmp_path / "train", *teacher, *shown, "--workers", "0", "--batch-size", "8"]
    assert "0 chunks missing" in run("cache-teacher", "--cache", "c.zarr", *stage1)
    spec = json.loads(run("cache-status", "c.zarr", "--json"))["spec"]["teacher"]
    assert spec["name"] == own + ':small{"width": 6}' and spec["num_classes"] == 5
    found = run("verify-cache", "c.zarr", "--shards", tmp_path / "train", *teacher, "--blocks", "4")
    assert "teacher: 4 checked" in found and "no problems" in found.splitlines()[-1]
    student = ["--model", "student_tiny_distilled", "--epochs", "1", "--batch-size", "16", "--set", "repeats=1",
               "--set", "image_size=16", "--set", "view.name=plain", "--set", "view.block_size=4", "--workers", "0",
               "--set", "warmup_epochs=0"]  # fmt: skip
    run("train-student", "--shards", tmp_path / "train", "--online", *teacher, *student, "--distill", "soft",
        "--out", "online")  # fmt: skip
    assert json.loads(Path("online/summary.json").read_text())["teacher_forwards_in_training"] > 0
    with Feed(index, cache="c.zarr", batch_size=16, repeats=1, workers=0, device="cpu") as feed:
        cached = next(iter(feed.epoch(0))).teacher.log_prob(1.0)
    shown = recipe_named("plain", size=16, block_size=4, block_views=2)
    online = load(f"{own}:small", input_size=16, model_kwargs={"width": 6})
    with Feed(index, teacher=online, views=shown, batch_size=16, repeats=1, workers=0, views_used=2) as feed:
        torch.testing.assert_close(next(iter(feed.epoch(0))).teacher.log_prob(1.0), cached, rtol=0, atol=0.02)


@pytest.mark.parametrize(("fault", "words"), [("raises", "KeyError: 'bright'"), ("fewer images", r"got \(3, 5\)")])
@pytest.mark.parametrize("order", [(), (1, 0)])
def test_a_network_that_fails_on_later_images_alone_is_named(
    own: str, fault: str, words: str, order: tuple[int, ...]
) -> None:
    """It answers the black images that it is tried on; then its first chunk was "a defect"."""
    teacher = load(f"{own}:moody", model_kwargs={"fault": fault})
    teacher, words = (teacher.in_order(order), words.replace("5", "2")) if order else (teacher, words)
    black_BCHW = torch.zeros(4, 3, 32, 32)
    with pytest.raises(ValueError, match=rf"^teacher: {own}:moody cannot answer 4 images: .*{words}"):
        teacher.logits(black_BCHW + 1)


def test_a_network_without_tensors_is_refused_unless_it_registers_its_bytes(own: str) -> None:
    """Its digest would be that of nothing: half of a cache could be of another file, without a word."""
    digests = set()
    for number in ("1.0", "2.0"):
        Path("session.txt").write_text(number)
        with pytest.raises(ValueError, match=r"has no tensors.*register_buffer"):
            load(f"{own}:session", model_kwargs={"file": "session.txt"})
        with pytest.raises(ValueError, match="has no tensors"):  # the layer of another normalisation is no identity
            load(f"{own}:session", model_kwargs={"file": "session.txt"}, model_mean=(0.1, 0.2, 0.3))
        digests.add(load(f"{own}:registered", model_kwargs={"file": "session.txt"}).spec.weights_sha256)
    assert len(digests) == 2
