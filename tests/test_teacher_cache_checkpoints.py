"""Training checkpoints of timm, the DeiT authors and torchvision's references are teachers and starts as they are."""

import argparse
import zipfile
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shards.errors import ArtefactError
from student.learn.network import load_initial, make_student
from student.recipe.papers import recipe_for
from teacher_cache.network.teacher import TeacherOptions, load_teacher
from teacher_cache.network.weights import part_of_network, read_weights
from teacher_cache.network.weights_metadata import require_whole

TINY = "test_resnet.r160_in1k"
ARGS = argparse.Namespace(model="test_resnet", lr=0.1, opt_betas=None, mean=(0.5, 0.5, 0.5), device="cuda", seed=1)


def network(seed: int = 5) -> nn.Module:
    """A small classifier whose weights depend on the seed."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("test_resnet", num_classes=7)
    return model


RAW, AVERAGE = network(5), network(6)


def timm_saver(folder: Path) -> Path:
    """What timm's train.py leaves: state_dict, state_dict_ema, optimizer, args, metric."""
    ema = ModelEmaV3(RAW)
    ema.module.load_state_dict(AVERAGE.state_dict())
    optimizer = torch.optim.SGD(RAW.parameters(), lr=0.1, momentum=0.9)
    saver = CheckpointSaver(RAW, optimizer, args=ARGS, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder)
    saver.save_checkpoint(3, metric=71.2)
    return folder / "last.pth.tar"


def deit_authors(folder: Path) -> Path:
    """What main.py of facebookresearch/deit leaves."""
    state = {"model": RAW.state_dict(), "optimizer": {}, "lr_scheduler": {}, "epoch": 3}
    torch.save({**state, "model_ema": AVERAGE.state_dict(), "scaler": {}, "args": ARGS}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def torchvision_references(folder: Path) -> Path:
    """What references/classification/train.py leaves: the average is a module with a counter."""
    ema = AveragedModel(RAW, use_buffers=True)
    ema.module.load_state_dict(AVERAGE.state_dict())
    ema.update_parameters(AVERAGE)
    state = {"model": RAW.state_dict(), "optimizer": {}, "lr_scheduler": {}, "epoch": 3, "args": ARGS}
    torch.save({**state, "model_ema": ema.state_dict()}, folder / "model_3.pth")
    return folder / "model_3.pth"


MAKERS = (timm_saver, deit_authors, torchvision_references)


def equals(found: dict[str, Tensor], model: nn.Module) -> bool:
    """Whether the tensors are those of a network, by name."""
    own = model.state_dict()
    return found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize("maker", MAKERS)
def test_of_a_training_checkpoint_the_average_is_taken_unless_told_and_said(tmp_path: Path, maker: Any) -> None:
    path = maker(tmp_path)
    average, raw = read_weights(path), read_weights(path, averaged=False)
    assert equals(average.state, AVERAGE) and equals(raw.state, RAW)
    assert average.chosen.startswith("the averaged weights (EMA) under '") and ", not '" in average.chosen
    assert raw.chosen.startswith("the weights without averaging under '") and "ema'" in raw.chosen
    teacher = load_teacher(TINY, weights=path, input_size=32)
    assert teacher.num_classes == 7 and teacher.chosen == average.chosen
    other = load_teacher(TINY, weights=path, input_size=32, options=TeacherOptions(averaged=False))
    assert other.spec.weights_sha256 != teacher.spec.weights_sha256


PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_ema", "ema", ""])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_and_prefixes_of_training_change_nothing(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = {prefix + name: value for name, value in RAW.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3, "args": ARGS} if wrapper else state, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert equals(found.state, RAW) and (found.chosen == "") == ("ema" not in wrapper)


def test_real_wrappers_give_these_prefixes(tmp_path: Path) -> None:
    """So that the table above is of names that torch makes."""
    wrapped = torch.compile(nn.DataParallel(network()))
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "w.pth")
    assert next(iter(wrapped.state_dict())).startswith("_orig_mod.module.")
    assert equals(read_weights(tmp_path / "w.pth").state, RAW)


def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path: Path) -> None:
    torch.save(RAW.state_dict(), tmp_path / "torch.safetensors")
    save_file(RAW.state_dict(), tmp_path / "safetensors.pth")
    torch.save(RAW.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert equals(read_weights(path).state, RAW), path.name


class Lightning(nn.Module):
    """A module as users of Lightning write them: the network is an attribute, beside a loss with weights."""

    def __init__(self, attribute: str) -> None:
        super().__init__()
        self.add_module(attribute, network(5))
        self.loss = nn.Linear(2, 2)


HELD = ("model", "net", "student", "student.module", "model._orig_mod")


def lightning(folder: Path, attribute: str) -> Path:
    """What Lightning's ModelCheckpoint leaves."""
    module = Lightning(attribute.partition(".")[0]).state_dict()
    first, _, rest = attribute.partition(".")
    names = {name: name.replace(f"{first}.", f"{first}.{rest}.", 1) if rest else name for name in module}
    state = {names[name]: value for name, value in module.items()}
    others = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5.0", "callbacks": {}, "loops": {}}
    torch.save({**others, "state_dict": state, "optimizer_states": [], "hyper_parameters": {"lr": 0.1}}, folder / "l")
    return folder / "l"


@pytest.mark.parametrize("attribute", HELD)
def test_a_network_inside_a_lightning_module_is_a_teacher_and_said(tmp_path: Path, attribute: str) -> None:
    torch.save(RAW.state_dict(), tmp_path / "plain.pth")
    plain = load_teacher(TINY, weights=tmp_path / "plain.pth", input_size=32)
    teacher = load_teacher(TINY, weights=lightning(tmp_path, attribute), input_size=32)
    assert teacher.spec == plain.spec and plain.part == ""
    assert teacher.part == f"the tensors under '{attribute}.', without 2 others (loss.weight, loss.bias)"


def test_a_prefix_is_taken_off_only_where_all_names_of_the_network_stand_under_it() -> None:
    one, whole = torch.ones(1), {"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}
    under = {f"net.{name}": one for name in whole}
    for state in (whole, {**whole, **under}, {"net.a.weight": one}, {"xa.weight": one, "xb.weight": one}, {}):
        assert part_of_network(state, whole, "w.pth") == (state, "")
    assert part_of_network(under, whole, "w.pth") == (dict.fromkeys(whole, one), "the tensors under 'net.'")
    assert part_of_network(under, under, "w.pth") == (under, "")
    assert part_of_network({"net.a.weight": one}, whole, "w.pth", optional=["b.weight"])[0] == {"a.weight": one}
    twice = {**under, **{f"ema.{name}": one for name in whole}}
    with pytest.raises(
        ArtefactError, match=r"w\.pth: the network stands in the file 2 times, under 'ema\.' and 'net\.'"
    ):
        part_of_network(twice, whole, "w.pth")


def dino(folder: Path, student: nn.Module, teacher: nn.Module) -> Path:
    """What main_dino.py leaves: two networks without classifier, with a projection each; the student is distributed."""

    def inside(model: nn.Module, prefix: str) -> dict[str, Tensor]:
        named = {f"{prefix}backbone.{n}": v for n, v in model.state_dict().items() if not n.startswith("head")}
        return {**named, f"{prefix}head.mlp.0.weight": torch.zeros(3, 3), f"{prefix}head.mlp.0.bias": torch.zeros(3)}

    both = {"student": inside(student, "module."), "teacher": inside(teacher, "")}
    rest = {"optimizer": {}, "epoch": 9, "args": ARGS, "dino_loss": {"center": torch.zeros(1, 3)}}
    torch.save({**both, **rest}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


@pytest.mark.slow
def test_a_student_starts_from_dino_and_says_so(tmp_path: Path) -> None:
    recipe = replace(recipe_for("deit_tiny_patch16_224"), image_size=32, model_args=(("depth", 1),))
    students = [make_student(recipe, 5, seed=seed) for seed in (1, 2, 3)]
    path = dino(tmp_path, *students[:2])
    report = load_initial(students[2], str(path))
    assert report.chosen == (
        "the averaged weights (EMA) under 'teacher', not 'student'; the tensors under 'backbone.', without 2 others "
        "(head.mlp.0.weight, head.mlp.0.bias)"
    )
    heads = {name for name in students[2].state_dict() if name.startswith("head")}
    assert set(report.fresh) == heads
    expected = students[1].state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in students[2].state_dict().items() if name not in heads
    )
    name = 'deit_tiny_patch16_224.fb_in1k{"depth": 1}'
    with pytest.raises(ValueError, match=r"checkpoint\.pth do not fit .*2 missing \(head\.bias, head\.weight\)"):
        load_teacher(name, weights=path, input_size=32)


def test_two_networks_of_other_names_are_no_dino(tmp_path: Path) -> None:
    one = {"backbone.a": torch.zeros(1)}
    torch.save({"teacher": {"backbone.b": torch.zeros(1)}, "student": one}, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match="teacher, student"):
        read_weights(tmp_path / "w.pth")


class Runs:
    """Pickled, it touches a file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        (PosixPath("data"), "pathlib"),
        (argparse.FileType("r"), "argparse.FileType"),
        (nn.Identity(), "torch.nn.modules.linear.Identity"),
        (Runs(), "getattr|pathlib"),
        (argparse.Namespace(folder=PosixPath("data")), "pathlib"),
        (argparse.Namespace(run=Runs()), "getattr|pathlib"),
    ],
)
def test_all_other_objects_are_refused_by_name(tmp_path: Path, beside: object, named: str) -> None:
    torch.save({"model": RAW.state_dict(), "args": beside}, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match=rf"w\.pth: holds \S*({named})\S* beside") as refused:
        read_weights(tmp_path / "w.pth")
    assert len(str(refused.value)) <= 600 and not Path("executed").exists()


def test_a_namespace_is_read_as_attributes_alone(tmp_path: Path) -> None:
    """Its state may name attributes of its class, which stay what they are."""
    evil = argparse.Namespace(lr=1.0)
    evil.__dict__ |= {"__class__": "x", "__init__": "y"}
    torch.save({"model": RAW.state_dict(), "args": evil}, tmp_path / "w.pth")
    assert equals(read_weights(tmp_path / "w.pth").state, RAW)
    assert argparse.Namespace(a=1).a == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teacher": {"a": torch.zeros(1)}, "student": {"a": torch.zeros(1)}}, "teacher, student"),
        ({"model": {"a": 1}}, "under 'model'.*type int"),
        ({"model": {}}, "under 'model'.*empty"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "two tensors are called a"),
    ],
)
def test_what_holds_no_one_set_of_tensors_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ArtefactError, match=message):
        read_weights(tmp_path / "w.pth")


LARGER: dict[str, tuple[Tensor, str]] = {
    "one number again and again": (torch.zeros(1).expand(10**6, 10**6), r"tensor a: expected at most \d+ bytes"),
    "one count again and again": (torch.zeros(1, dtype=torch.int64).expand(10**12), "tensor a: expected at most"),
    "no numbers": (torch.zeros(10**6, 10**6, device="meta"), "tensor a: expected plain real numbers, got .*without"),
    "few and no numbers": (torch.zeros(2, device="meta"), "tensor a: expected plain real numbers"),
}
"""Tensors that a file of a kilobyte may hold, and what is said of them."""


@pytest.mark.parametrize("name", LARGER)
def test_a_small_file_that_says_it_is_large_asks_for_no_memory(tmp_path: Path, name: str) -> None:
    """A million rows of one number are four bytes in a torch file, and terabytes to whatever looks at all of them."""
    tensor, said = LARGER[name]
    torch.save({"a": tensor}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    with pytest.raises(ArtefactError, match=said):
        read_weights(tmp_path / "w.pth")


def test_rows_that_are_the_same_are_read_where_the_file_is_larger(tmp_path: Path) -> None:
    tensor = torch.ones(1, 3).expand(7, 3)
    torch.save({"a": tensor, "b": torch.zeros(500)}, tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth").state["a"], tensor)


def test_a_file_that_was_compressed_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """Torch itself compresses nothing; weights that somebody packed again lose up to half their bytes."""
    tensor = torch.randn(2000).to(torch.bfloat16).float()
    torch.save({"a": tensor}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "w.pth", "w") as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "w.pth").stat().st_size < tensor.nbytes
    require_whole(tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth").state["a"], tensor)


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_a_file_that_unpacks_to_much_more_than_it_is_is_refused(tmp_path: Path, member: str) -> None:
    """Torch would read a megabyte of compressed zeros as the gigabyte that it stands for."""
    torch.save({"a": torch.zeros(4)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "w.pth", "w") as packed:
        for entry in whole.infolist():
            more = bytes(1 << 24) * entry.filename.endswith(member)
            packed.writestr(entry.filename, whole.read(entry) + more, zipfile.ZIP_DEFLATED)
    for read in (read_weights, require_whole):
        with pytest.raises(ArtefactError, match=r"its members unpack to \d+ bytes, expected at most 10 times"):
            read(tmp_path / "w.pth")


@pytest.mark.slow
def test_a_student_starts_from_a_checkpoint_and_says_which_weights(tmp_path: Path) -> None:
    recipe = replace(recipe_for("deit_tiny_patch16_224"), image_size=32, model_args=(("depth", 1),))
    old, new = make_student(recipe, 5, seed=1), make_student(recipe, 5, seed=2)
    averaged = {name: value + 1 for name, value in old.state_dict().items()}
    torch.save({"model": old.state_dict(), "model_ema": averaged, "args": ARGS}, tmp_path / "c.pth")
    report = load_initial(new, str(tmp_path / "c.pth"))
    assert report.words == "" and report.chosen == "the averaged weights (EMA) under 'model_ema', not 'model'"
    assert all(torch.equal(new.state_dict()[name], averaged[name]) for name in averaged)
