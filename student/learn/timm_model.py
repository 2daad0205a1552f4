"""A timm model by the name of a student: how it is built, how plain timm loads it, and how its images are prepared.

bare_model        the network without weights
preparation_of    what timm says of the images that a model wants
own_errors        what a user's network raises, in one sentence
renormalise       a trained network takes images with another mean and standard deviation
timm_expression   one line of Python that loads a weights file
timm_config       the config.json with which timm loads a folder
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from shards.errors import device_words
from shards.names import short, unknown
from shards.text.figures import count
from student.recipe.zoo import model_entry
from teacher_cache.network.teacher_name import split_name, timm_name
from teacher_cache.network.trial import reason_of, require_logits, tried
from teacher_cache.network.weights_metadata import require_arguments

Rgb = tuple[float, float, float]
_USUAL_SIZES = (16, 28, 32, 48, 64, 84, 96, 112, 128, 144, 160, 176, 192, 224, 256, 288, 299, 320, 384, 448, 512)
"""Pixels; the first that a user's network answers is named where it does not answer the views."""


class Normalisation(NamedTuple):
    """What the images of a network are normalised with: mean and std of each colour, in [0, 1] units."""

    mean: Rgb
    std: Rgb


class Preparation(NamedTuple):
    """What timm says of the images that a model and its weights want.

    Attributes:
        image_size: pixels. crop_pct: the short side is resized to image_size / crop_pct. interpolation: of the resize.
        mean, std: in [0, 1] units. classifiers: names of the layers that answer.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: Rgb
    std: Rgb
    classifiers: tuple[str, ...]


def preparation_of(name: str) -> Preparation | None:
    """Look up how timm prepares the images of a model, with or without a tag; None where timm says nothing of it."""
    entry = model_entry(name)
    config = timm.get_pretrained_cfg(name if "." in name or entry is None else entry.built_as)
    if config is None:
        return None
    (a, b, c), (d, e, f) = config.mean, config.std
    named = config.classifier or ()
    return Preparation(
        image_size=config.input_size[-1],
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        mean=(a, b, c),
        std=(d, e, f),
        classifiers=(named,) if isinstance(named, str) else tuple(named),
    )


@torch.no_grad()
def renormalise(model: nn.Module, before: Normalisation, after: Normalisation) -> str:
    """Change the first layer so that images normalised like `after` give what those like `before` gave.

    The scale of each colour goes into the weights, and the shift into the bias, which is exact but for the border of a
    padded convolution. A layer without bias is followed by a normalisation, which takes a constant shift out.

    Returns:
        what was changed, in words; "" where both are the same.
    """
    if before == after:
        return ""
    shown = ", ".join(f"{value:.3g}" for value in (*before.mean, *before.std))
    wanted = f"the weights want images normalised with their own mean and standard deviation ({shown})"
    colours = {name: layer for name, layer in model.named_modules() if getattr(layer, "in_channels", 0) == 3}
    named = getattr(model, "pretrained_cfg", {}).get("first_conv") or tuple(colours)[: len(colours) == 1]
    names = (named,) if isinstance(named, str) else tuple(named)
    layers = [layer for name in names if isinstance(layer := colours.get(name), nn.Conv2d) and _is_plain(layer)]
    if not layers or len(layers) < len(names):
        return f"{wanted}, other ones than those of the views; no plain first convolution is known: training must adapt"
    own_C, view_C, own_mean_C, view_mean_C = (
        torch.tensor(values, dtype=torch.float64) for values in (before.std, after.std, before.mean, after.mean)
    )
    for layer in layers:
        weight_OCHW = layer.weight.double()
        shift_1C11 = ((view_mean_C - own_mean_C) / own_C).view(1, 3, 1, 1).to(weight_OCHW)
        if layer.bias is not None:
            layer.bias += (weight_OCHW * shift_1C11).sum((1, 2, 3)).to(layer.bias)
        layer.weight.copy_(weight_OCHW * (view_C / own_C).view(1, 3, 1, 1).to(weight_OCHW))
    return f"{wanted}: {', '.join(names)} is changed to take those of the views"


def _is_plain(layer: nn.Conv2d) -> bool:
    """Whether it answers with its own weights: one that standardises them undoes what is folded into them."""
    return type(layer) in (nn.Conv2d, Conv2dSame) and layer.groups == 1


def bare_model(name: str, num_classes: int, *, image_size: int, arguments: Mapping[str, Any]) -> nn.Module:
    """The timm model of that name and class count at that image size, without weights.

    Args:
        arguments: for timm, beyond the name's own.

    A network of timm's is tried on the meta device first. ValueError with the nearest name when timm has none, or with
    the reason when it cannot be built with these arguments or answer images of that size.
    """
    require_arguments(arguments, "model_args.")
    timm_name, options = timm_options(name, num_classes, image_size, arguments)

    def build() -> nn.Module:
        network: nn.Module = timm.create_model(timm_name, pretrained=False, **options)
        return network

    try:
        if _of_timm(name):
            network = tried(build, image_size=image_size, num_classes=num_classes)
            return network if torch.get_default_device().type == "meta" else build()
        return build()
    except Exception as error:  # timm and torch refuse arguments with whatever they stumble on
        hint = "; this model has no drop path: set drop_path=0" if "drop_path_rate" in str(error) else ""
        with_arguments = (
            f" with {short(', '.join(f'{key}={value}' for key, value in arguments.items()), 150)}" if arguments else ""
        )
        raise ValueError(
            f"model {name}: cannot be built{with_arguments} for images of {image_size} px: {reason_of(error)}{hint}"
        ) from error


def require_answer(model: nn.Module, name: str, *, image_size: int, num_classes: int, device: torch.device) -> None:
    """Let a network that a user registered answer one image before it is trained; timm's own are tried when built.

    Args:
        name: of the model. device: where the network is.

    ValueError with the image size that it does answer, where one of the usual sizes is.
    """
    if _of_timm(name):
        return
    was_training = model.training
    model.eval()
    try:
        _answer(model, image_size, num_classes, device)
    except Exception as error:  # the network is the user's: every error is one of its code
        if device_words(error) is not None:
            raise
        sizes = [size for size in _USUAL_SIZES if size != image_size and _answers(model, size, num_classes, device)]
        advice = (
            f"it takes images of {sizes[0]} px: make views of that size (cache-teacher --size {sizes[0]}; without a "
            f"cache --set image_size={sizes[0]}), or choose another model"
            if sizes
            else "it answers images of no other usual size either: mend the network, or choose another model"
        )
        raise ValueError(
            f"model {name}: gives no answer to images of {image_size} px: {reason_of(error)}; {advice}"
        ) from error
    finally:
        model.train(was_training)


@contextlib.contextmanager
def own_errors(name: str, num_images: int, *, training: bool = True) -> Iterator[None]:
    """Put what a network that a user registered raises into one sentence; an error of timm's own stays as it is.

    Args:
        name: of the model; "" where nobody knows it. num_images: that it is given.
        training: whether it is in training mode.

    Raises:
        ValueError: naming the model and the function that builds it.
    """
    try:
        yield
    except Exception as error:  # the network is the user's: every error is one of its code
        if not name or _of_timm(name) or device_words(error) is not None:
            raise
        function = timm.model_entrypoint(name)
        advice = "in evaluation mode it answers, so mend what it does otherwise when it is trained"
        if not training:
            advice = "it answered one black image when it was tried, so mend what it does otherwise with these"
        raise ValueError(
            f"model {name}: the network of {function.__module__}:{function.__name__} fails in "
            f"{'training' if training else 'evaluation'} mode, on {count(num_images, 'image')}: {reason_of(error)}; "
            f"{advice}"
        ) from error


@torch.no_grad()
def _answer(model: nn.Module, image_size: int, num_classes: int, device: torch.device) -> None:
    require_logits(model(torch.zeros(1, 3, image_size, image_size, device=device)), num_classes)


def _answers(model: nn.Module, image_size: int, num_classes: int, device: torch.device) -> bool:
    with contextlib.suppress(Exception):  # of the user's network
        _answer(model, image_size, num_classes, device)
        return True
    return False


def _of_timm(name: str) -> bool:
    """Whether timm itself has the network of a student."""
    entry = model_entry(name)
    return timm.model_entrypoint(entry.built_as if entry else name).__module__.startswith("timm.")


def num_params(name: str, num_classes: int) -> int | None:
    """Parameters of a teacher or student by its name, counted without memory; None for a network that timm lacks."""
    base, arguments = split_name(name)
    architecture = timm_name(base).partition(".")[0]  # a tag names weights, maybe some that timm does not publish
    if not timm.is_model(architecture):
        return None
    with torch.device("meta"):
        network: nn.Module = timm.create_model(architecture, num_classes=num_classes, **arguments)
    return sum(param.numel() for param in network.parameters())


def timm_options(
    name: str, num_classes: int, image_size: int, arguments: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name and arguments by which timm builds a model, its image size among them where timm fixes one.

    ValueError with the nearest name when timm has none.
    """
    entry = model_entry(name)
    timm_name = entry.built_as if entry else name
    if not timm.is_model(timm_name):
        raise ValueError(unknown("model", name, timm.list_models(), others="`models` lists the DeiT ones"))
    options: dict[str, Any] = {**dict(entry.timm_args if entry else ()), **arguments, "num_classes": num_classes}
    config = timm.get_pretrained_cfg(timm_name)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    return timm_name, options


def own_arguments(name: str) -> tuple[str, ...]:
    """The arguments that a model of the user's, registered with timm, names; of timm's own models none."""
    if not timm.is_model(name) or timm.model_entrypoint(name).__module__.startswith("timm."):
        return ()
    return tuple(inspect.signature(timm.model_entrypoint(name)).parameters)


def timm_expression(name: str, num_classes: int, image_size: int, arguments: Mapping[str, Any], weights: str) -> str:
    """The Python expression by which plain timm builds a model and loads a file of weights."""
    timm_name, options = timm_options(name, num_classes, image_size, arguments)
    config = timm.get_pretrained_cfg(timm_name)
    own = {"num_classes": 1000, "img_size": config.input_size[-1] if config is not None else 0}
    shown = {key: value for key, value in options.items() if key in arguments or own.get(key) != value}
    extra = "".join(f", {key}={value!r}" for key, value in shown.items())
    return f"timm.create_model({timm_name!r}{extra}, checkpoint_path={weights!r})"


def timm_config(
    name: str,
    num_classes: int,
    arguments: Mapping[str, Any],
    *,
    image_size: int,
    crop_pct: float,
    mean: Rgb,
    std: Rgb,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """The config.json with which `timm.create_model("local-dir:FOLDER", pretrained=True)` loads a folder.

    Args:
        arguments: for timm, beyond the name's own. crop_pct, mean, std: how evaluation prepares images.
        class_names: C names, or none where they are unknown.
    """
    timm_name, options = timm_options(name, num_classes, image_size, arguments)
    del options["num_classes"]
    config = timm.get_pretrained_cfg(timm_name)
    known = {
        key: value
        for key in ("first_conv", "classifier")
        if config is not None and (value := getattr(config, key)) is not None
    }
    return {
        "architecture": timm_name.partition(".")[0],
        "num_classes": num_classes,
        **({"label_names": list(class_names)} if class_names else {}),
        **({"model_args": options} if options else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, image_size, image_size],
            "fixed_input_size": bool(config is not None and config.fixed_input_size),
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": num_classes,
            **known,
        },
    }
