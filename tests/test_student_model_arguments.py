"""Arguments for timm from flags and files: an architecture that can be built, or one sentence before anything is."""

import inspect
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import ConvNeXt, EfficientNet, ResNet, SwinTransformer, VisionTransformer, register_model
from timm.models.deit import VisionTransformerDistilled

from shards.errors import ArtefactError
from shards.world import World
from student.feed.batch import Labels
from student.learn.network import make_student
from student.learn.process_group import ProcessGroup
from student.learn.timm_model import bare_model, own_errors
from student.learn.trainer import Trainer
from student.recipe.papers import recipe_for
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.export import ExportInfo, export_weights, load_student, timm_call
from student.sweep.memory import UncountableError, memory_need
from teacher_cache.network.teacher import TeacherOptions, load_teacher
from teacher_cache.network.trial import tried
from teacher_cache.network.weights_metadata import (
    ARCHITECTURE,
    METADATA_KEY,
    NOT_ARCHITECTURE,
    require_arguments,
    require_possible,
)
from tests.student_tiny import CLASSES, student_recipe


@register_model
def student_flat(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """A layer for images of 28 pixels, with as many answers as it is told or as it likes."""
    answers = options.get("answers", options["num_classes"])
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, answers))


class _Careful(torch.nn.Linear):
    """Looks at its numbers, as a guard against overflow does."""

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        mean_BC = image_BCHW.mean((2, 3))
        return super().forward(mean_BC if mean_BC.abs().max().item() < 1e6 else mean_BC * 0)


@register_model
def student_careful(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    return _Careful(3, options["num_classes"])


DEIT = "deit_tiny_distilled_patch16_224"

REFUSED: list[tuple[str, dict[str, Any]]] = [
    *((DEIT, {"num_heads": number}) for number in (0, -1, 7, 2.5, "three", (1, 2))),
    *((DEIT, {"embed_dim": number}) for number in (0, -64, 1, 191, 1.5, "wide", (64, 64))),
    *((DEIT, {"depth": number}) for number in (-1, 1.5, "deep", 60_000)),
    *((DEIT, {"patch_size": number}) for number in (0, -16, 33, 64, 1.5, "p")),
    *((DEIT, {"mlp_ratio": number}) for number in (-1, -4.0, "x", 60_000)),
    *((DEIT, {name: 3}) for name in ("drop_path_rate", "drop_rate", "pos_drop_rate", "attn_drop_rate")),
    *((DEIT, {name: "x"}) for name in ("norm_layer", "act_layer", "block_fn", "mlp_layer", "weight_init", "pos_embed")),
    *((DEIT, {"global_pool": value}) for value in ("x", "", 3)),
    *((DEIT, {"no_such_argument": 1}), (DEIT, {"reg_tokens": -1}), (DEIT, {"class_token": False})),
    (DEIT, {"embed_dim": 65_536, "num_heads": 64, "depth": 200}),
    ("resnet10t", {"layers": (0, 0, 0, 0)}),
    ("resnet10t", {"layers": (1, 1)}),
    ("resnet10t", {"block_fn": "x"}),
    ("resnet10t", {"cardinality": 7}),
    ("resnet10t", {"output_stride": 3}),
    ("convnext_atto", {"dims": (0, 0, 0, 0)}),
    ("convnext_atto", {"kernel_sizes": "x"}),
    ("swin_tiny_patch4_window7_224", {"window_size": 0}),
]


@pytest.mark.parametrize(("model", "arguments"), REFUSED, ids=lambda value: str(value))
def test_arguments_that_make_no_network_are_refused_in_one_sentence(model: str, arguments: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=r"model_args\.|cannot be built") as refused:
        bare_model(model, 5, image_size=32, arguments=arguments)
    assert time.process_time() - began < 60, "a bound stops what would be built for ever"
    said = str(refused.value)
    assert len(said) <= 600 and "\n" not in said
    assert all(name in said for name in arguments)


class _BadBackward(torch.autograd.Function):
    """Answers, and cannot be learnt from."""

    @staticmethod
    def forward(ctx: Any, mean_BC: torch.Tensor) -> torch.Tensor:
        return mean_BC.clone()

    @staticmethod
    def backward(ctx: Any, gradient_BC: torch.Tensor) -> torch.Tensor:
        raise KeyError("no way back")


class _OnlyAnswers(torch.nn.Linear):
    """Does in training mode what it is told, and answers well otherwise."""

    def __init__(self, num_classes: int, trained: str) -> None:
        super().__init__(3, num_classes)
        self.trained, self.norm = trained, torch.nn.BatchNorm1d(num_classes)

    def forward(self, image_BCHW: torch.Tensor) -> Any:
        logit_BC = super().forward(image_BCHW.mean((2, 3)))
        if self.training:
            match self.trained:
                case "raises":
                    raise KeyError("augment")
                case "refuses":
                    raise ValueError("two images, please")
                case "three heads":
                    return logit_BC, logit_BC, logit_BC
                case "names":
                    return {"logits": logit_BC}
                case "fewer classes":
                    return logit_BC[:, :-1]
                case "one value":
                    return self.norm(logit_BC[:1])
                case "no gradient":
                    return _BadBackward.apply(logit_BC)
        return logit_BC


@register_model
def student_only_answers(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    return _OnlyAnswers(options["num_classes"], options["trained"])


FAILS = {
    "raises": "KeyError: 'augment'",
    "refuses": "two images, please",
    "three heads": r"logits of shape \(\d+, 5\), got tuple",
    "names": r"logits of shape \(\d+, 5\), got dict",
    "fewer classes": r"logits of shape \(\d+, 5\), got \(\d+, 4\)",
    "one value": "Expected more than 1 value per channel when training",
    "no gradient": "KeyError: 'no way back'",
}


def trained(recipe: StudentRecipe, *, steps: int = 0) -> None:
    trainer = Trainer(
        recipe,
        TrainSettings(),
        num_classes=CLASSES,
        steps_per_epoch=1,
        group=ProcessGroup(World(), torch.device("cpu")),
    )
    class_B = torch.zeros(4, dtype=torch.long)
    for step in range(steps):
        side = recipe.image_size
        trainer.feed(torch.zeros(4, 3, side, side), Labels.of(class_B, class_B, torch.ones(4)), None, step=step)


def counted(recipe: StudentRecipe) -> None:
    memory_need(recipe, num_classes=CLASSES, num_students=1)


@pytest.mark.parametrize("door", [trained, counted])
@pytest.mark.parametrize(
    ("model", "size", "arguments", "words"),
    [
        ("student_tiny_distilled", 32, {}, r"images of 32 px: .*it takes images of 16 px: .*--size 16;"),
        ("student_flat", 32, {}, r"images of 32 px: .*it takes images of 28 px: .*image_size=28\)"),
        ("student_flat", 28, {"answers": 7}, r"shape \(1, 5\), got \(1, 7\); .*mend the network"),
    ],
)
def test_a_network_of_the_users_that_does_not_fit_the_images_is_one_sentence(
    model: str, size: int, arguments: dict[str, Any], words: str, door: Callable[[StudentRecipe], None]
) -> None:
    """Where it is trained, and where a grid search counts its memory before."""
    recipe = student_recipe(model=model, image_size=size, model_args=tuple(arguments.items()))
    with pytest.raises(ValueError, match=f"model {model}: gives no answer to .*{words}") as refused:
        door(recipe)
    assert len(str(refused.value)) <= 600 and "\n" not in str(refused.value)


@pytest.mark.parametrize("fault", FAILS)
def test_a_network_of_the_users_that_fails_in_training_alone_is_one_sentence(fault: str) -> None:
    """It answers when it is tried; then a step was "a defect", and so was the count of its memory."""
    recipe = student_recipe(model="student_only_answers", model_args=(("trained", fault),), distill="none")
    function = f"{__name__}:student_only_answers"
    doors: list[Callable[[], None]] = [lambda: trained(recipe, steps=1)]
    doors += [lambda: counted(recipe)] * (fault != "no gradient")  # its forward pass is counted
    for door in doors:
        with pytest.raises(ValueError, match=rf"^model student_only_answers: .*{function} .*{FAILS[fault]}") as refused:
            door()
        assert len(str(refused.value)) <= 600 and "\n" not in str(refused.value)
    trained(student_recipe(model="student_only_answers", model_args=(("trained", ""),), distill="none"), steps=1)


def test_a_network_of_timms_that_fails_is_not_the_users() -> None:
    """What fails in it, or in the memory of a GPU, has words of its own."""
    with pytest.raises(KeyError, match="x"), own_errors(DEIT, 1):
        raise KeyError("x")
    with pytest.raises(torch.OutOfMemoryError), own_errors("student_flat", 1):
        raise torch.OutOfMemoryError("CUDA error: out of memory")


def test_a_network_that_looks_at_numbers_is_trained_and_said_to_be_uncountable() -> None:
    """It was said to answer images of no size: fake tensors have no numbers to look at."""
    recipe = student_recipe(model="student_careful")
    trained(recipe)
    with pytest.raises(UncountableError, match=r"cannot be counted.* --skip-memory-check") as refused:
        counted(recipe)
    assert len(str(refused.value)) <= 600 and "\n" not in str(refused.value)


def test_an_argument_that_no_module_reads_is_no_reason_to_refuse() -> None:
    """What builds and answers is a network, tried or not; the trial leaves the random numbers alone."""
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    tried(lambda: torch.nn.Flatten(), image_size=2, num_classes=12)
    assert torch.equal(torch.random.get_rng_state(), state)
    recipe = replace(
        recipe_for(DEIT), image_size=32, model_args=(("depth", 2), ("init_values", 1e-4), ("qk_norm", True))
    )
    assert make_student(recipe, 5, seed=0)(torch.zeros(2, 3, 32, 32))[0].shape == (2, 5)


def test_a_teacher_is_tried_with_its_arguments() -> None:
    random = TeacherOptions(pretrained=False)
    for arguments in ({"depth": 60_000}, {"num_heads": 0}, {"norm_layer": "x"}, {"cache_dir": "/"}):
        with pytest.raises(ValueError, match=rf"{next(iter(arguments))}") as refused:
            load_teacher("deit_tiny_patch16_224", num_classes=5, input_size=32, model_kwargs=arguments, options=random)
        assert len(str(refused.value)) <= 600


def test_every_argument_that_timm_keeps_for_itself_is_known() -> None:
    """A later timm may add one that opens a file: this test then says so."""
    functions = (timm.create_model, timm.models.build_model_with_cfg)
    own = {name for function in functions for name in inspect.signature(function).parameters}
    assert own - {"kwargs", "model_cls", "variant"} <= set(NOT_ARCHITECTURE)
    assert not ARCHITECTURE & set(NOT_ARCHITECTURE)


def test_files_may_ask_for_every_argument_of_the_usual_architectures() -> None:
    """What `--set model_args.NAME=…` trained before must open after."""
    usual = (VisionTransformer, VisionTransformerDistilled, ResNet, ConvNeXt, SwinTransformer, EfficientNet)
    names = {name for kind in usual for name in list(inspect.signature(kind.__init__).parameters)[1:]}
    simple = names - {"args", "kwargs", "block_args", "block"} - set(NOT_ARCHITECTURE)
    assert simple <= ARCHITECTURE, sorted(simple - ARCHITECTURE)


def info_of(recipe: StudentRecipe, num_classes: int = 5) -> ExportInfo:
    mean = std = (0.5, 0.5, 0.5)
    return ExportInfo(recipe=recipe, mean=mean, std=std, num_classes=num_classes, fingerprints={}, metrics={})


@pytest.mark.parametrize(
    "arguments",
    [{"checkpoint_path": "{other}"}, {"checkpoint_path": "/etc/passwd"}, {"cache_dir": "/"}, {"pretrained": True},
     {"pretrained_cfg": "{other}"}, {"invented": 1}, {"depth": 60_000}, {"features_only": True}, {"depth": 10**9}],
    ids=str,
)  # fmt: skip
def test_weights_open_no_other_file_and_ask_for_no_other_network(tmp_path: Path, arguments: dict[str, Any]) -> None:
    recipe = replace(recipe_for(DEIT), image_size=32, model_args=(("depth", 1), ("embed_dim", 48)))
    path, other = tmp_path / "w.safetensors", tmp_path / "other.safetensors"
    export_weights(make_student(recipe, 5, seed=0), path, info_of(recipe))
    load_student(path)
    tensors = load_file(path)
    save_file(tensors, other)
    said = info_of(recipe).to_json()
    said["recipe"]["model_args"] |= {
        k: v.format(other=other) if isinstance(v, str) else v for k, v in arguments.items()
    }
    save_file(tensors, path, {"format": "pt", METADATA_KEY: json.dumps(said)})
    with pytest.raises(ArtefactError, match=next(iter(arguments))) as refused:
        load_student(path)
    assert len(str(refused.value)) <= 600
    with pytest.raises(ArtefactError, match=next(iter(arguments))):
        require_possible(path, said["recipe"]["model_args"])


def test_numbers_that_are_none_are_refused() -> None:
    for value in (float("nan"), float("inf"), [1, [float("nan")]], 10**400):
        with pytest.raises(ValueError, match=r"model_args\.depth"):
            require_arguments({"depth": value}, "model_args.")


PRINTED = [
    *((name, 48) for name in ("deit_tiny_patch16_224", DEIT, "deit3_tiny_patch16_224", "vit_tiny_patch16_224")),
    ("vit_base_patch32_384", 64), ("vit_tiny_patch16_384", 224), ("beit_base_patch16_224", 48), ("cait_xxs24_224", 48),
    ("xcit_nano_12_p16_224", 48), ("mixer_s32_224", 64), ("resmlp_12_224", 48), ("pit_ti_224", 64),
    ("convit_tiny", 48), ("swin_tiny_patch4_window7_224", 448), ("levit_128s", 96), ("tnt_s_patch16_224", 48),
    ("resnet10t", 64), ("convnext_atto", 64), ("efficientnet_b0", 64), ("regnety_002", 64),
]  # fmt: skip


@pytest.mark.parametrize(("model", "size"), PRINTED)
def test_the_printed_line_loads_the_weights_of_every_family_at_another_size(
    tmp_path: Path, model: str, size: int
) -> None:
    """The line is executed, and its network answers as the student does."""
    recipe = replace(recipe_for(model), image_size=size, drop_path=0.0, layer_scale_init=0.0)
    student, path = make_student(recipe, 5, seed=0).eval(), tmp_path / "w.safetensors"
    info = info_of(recipe)
    export_weights(student, path, info)
    plain = eval(timm_call(info, str(path)), {"timm": timm}).eval()
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain(image), student(image))
