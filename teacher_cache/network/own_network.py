"""Build a teacher from the user's own code: `package.module:function`, which returns a network.

The function is imported and called, with the arguments of --teacher-arg; what it returns maps normalised images
(B, 3, H, W) to logits (B, C). That is code which the user names and answers for. A file of weights is something else:
it is read as tensors and loaded into the network, and never runs anything.

    mean, std     of the images it was trained on, three numbers in [0, 1] units: attributes of the network, or flags
    input_size    side of its images, an attribute it may have; views of another size are then refused
    class_names   its classes in the order of its answers, an attribute it may have
"""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shards.errors import device_words
from shards.text.figures import count
from teacher_cache.network.classifier import Classifier, Rgb
from teacher_cache.network.teacher_name import is_own, require_function, split_name
from teacher_cache.network.trial import reason_of
from teacher_cache.network.weights import WeightsFile, misfit_words, part_of_network


def own_network(
    name: str,
    kwargs: Mapping[str, Any],
    weights: WeightsFile | None,
    *,
    num_classes: int | None,
    input_size: int,
    mean: Rgb | None,
    std: Rgb | None,
) -> Classifier:
    """Import the function, call it, load the weights, and look at one answer.

    Args:
        name: `package.module:function`, on the Python path; see `search_current_folder`.
        kwargs: for the function.
        weights: tensors of a file that must fit the network exactly; None keeps those that the function gave it.
        num_classes: C, where it is known; input_size: side of the views, pixels.
        mean, std: what the network was trained with; None asks the network.

    Errors:
        ValueError naming what is not there, does not fit or is not a network.
    """
    network = _called(name, kwargs)
    part = "" if weights is None else _load(network, weights, name)
    found_mean, found_std = (
        typed or _rgb(network, attribute, name) for typed, attribute in ((mean, "mean"), (std, "std"))
    )
    size = getattr(network, "input_size", input_size)
    if isinstance(size, int) and size != input_size:
        raise ValueError(f"teacher: {name} takes images of {size} px, the views have {input_size}; give --size {size}")
    names = tuple(map(str, getattr(network, "class_names", ())))
    class_lists = (names,) if names else ()
    network = network.float().eval().requires_grad_(False)
    network, channels_last, classes, head = _tried(network, name, input_size)
    if num_classes not in (None, classes):
        raise ValueError(f"teacher: {name} answers in {count(classes, 'class')}, expected {num_classes}")
    return Classifier(network, classes, found_mean, found_std, head, channels_last, class_lists, part)


@contextmanager
def own_errors(name: str, num_images: int) -> Iterator[None]:
    """Put what a teacher of the user's raises after its trial into one sentence; an error of others stays as it is.

    Args:
        name: of the teacher, as a spec has it. num_images: that it is given.

    Errors:
        ValueError naming the function.
    """
    try:
        yield
    except Exception as error:  # the user's code
        base, _ = split_name(name)
        if not is_own(base) or device_words(error) is not None:
            raise
        raise ValueError(
            f"teacher: {base} cannot answer {count(num_images, 'image')}: {reason_of(error)}; it answered two black "
            "images when it was tried, so mend what it does otherwise with these"
        ) from error


class _LogitsOf(nn.Module):
    """A network that answers with an object, such as those of transformers, of which the logits are taken."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_BCHW: Tensor) -> Any:
        return self.network(image_BCHW).logits


def search_current_folder() -> None:
    """Add the current folder to the end of this process's Python path, for modules of the user: commands do it."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _called(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    require_function(name)
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: whatever it raises is what is wrong with it
        raise ValueError(
            f"teacher: module {module_name} cannot be imported: {_reason(error)}; it is looked for on the Python path "
            "and, by commands, in the current folder"
        ) from error
    require_function(name)  # now that the module is loaded
    function = getattr(module, function_name)
    try:
        network = function(**kwargs)
    except Exception as error:
        raise ValueError(f"teacher: {name}({_shown(kwargs)}) failed: {_reason(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"teacher: {name} must return a torch.nn.Module, got {type(network).__name__}")
    return network


def _load(network: nn.Module, weights: WeightsFile, name: str) -> str:
    """The tensors of a file into a network; every name and shape must fit. What part of the file they are, in words."""
    own = network.state_dict()
    state, part = part_of_network(weights.state, own, str(weights.path))
    wrong = [
        f"{key}: {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    words = misfit_words(missing=own.keys() - state.keys(), unknown=state.keys() - own.keys(), wrong=wrong)
    if words:
        raise ValueError(f"teacher: the weights in {weights.path} do not fit {name}: {words}")
    network.load_state_dict(state)
    return part


def _rgb(network: nn.Module, attribute: str, name: str) -> Rgb:
    """Three numbers that a network says of its input."""
    value = getattr(network, attribute, None)
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        numbers = []
    if len(numbers) != 3:
        problem = f"does not say its {attribute}" if value is None else f"has {attribute} = {value!r:.60}"
        raise ValueError(
            f"teacher: {name} {problem}; give --teacher-{attribute} R,G,B (in [0, 1] units, as in its own "
            f"preprocessing), or set the attribute {attribute} of the network to three numbers"
        )
    red, green, blue = (float(f"{number:.6g}") for number in numbers)  # float32 buffers are .485 to six digits
    return red, green, blue


def _tried(network: nn.Module, name: str, input_size: int) -> tuple[nn.Module, bool, int, str]:
    """Ask about two blank images: the network that gives logits, whether they may lie channels last, C, its head."""
    image_BCHW = torch.zeros(2, 3, input_size, input_size)
    for channels_last in (True, False):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        try:
            answer, head = _answer(network, image_BCHW.contiguous(memory_format=layout))
            break
        except Exception as error:  # the user's code: `view` of a channels-last tensor, or no such input at all
            if not channels_last:
                raise ValueError(
                    f"teacher: {name} cannot answer images of shape {tuple(image_BCHW.shape)}: {_reason(error)}"
                ) from error
    if isinstance(getattr(answer, "logits", None), Tensor):
        return _tried(_LogitsOf(network), name, input_size)
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2 or answer.shape[1] < 2:
        got = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"teacher: {name} must map (B, 3, H, W) to logits (B, C), two images gave {got}")
    if not answer.is_floating_point():
        raise ValueError(f"teacher: {name} must answer with floating-point logits, got {answer.dtype}")
    return network, channels_last, int(answer.shape[1]), head


def _answer(network: nn.Module, image_BCHW: Tensor) -> tuple[Any, str]:
    """The answer, and the name of the module with weights of its own that gave it; "" where it came from none."""
    gave: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: gave.append((name, out)))
        for name, module in network.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with torch.inference_mode():
            answer = network(image_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return answer, next((name for name, out in gave if out is answer), "")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


def _shown(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
