"""Try a network on the meta device, where tensors hold no numbers, before it costs time or memory.

Arguments for timm come from flags, TOML files and weights files of others. What timm or torch make of them shows here:
one sentence, before gigabytes are allocated, instead of a stack trace at the first step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from shards.names import short
from shards.text.figures import count

MOST_PARAMETERS = 10**10
"""Half as many again as the largest network that timm has."""
MOST_MODULES = 20_000
"""Seven times as many as the largest; each one takes time to build, however small it is."""


def tried(build: Callable[[], nn.Module], *, image_size: int, num_classes: int) -> nn.Module:
    """Build a network on the meta device and let it answer one image (1, 3, image_size, image_size).

    Returns:
        the network on the meta device, in evaluation mode.

    Errors:
        ValueError with the reason when it cannot be built, is larger than any network can be, or does not answer with
        logits (1, num_classes).
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _bounded():
            network = build().eval()
            answer = network(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # timm and torch refuse arguments with whatever they stumble on
        raise ValueError(reason_of(error)) from error
    require_logits(answer, num_classes)
    return network


def require_logits(answer: Any, num_classes: int, num_images: int = 1) -> None:
    """ValueError unless the answer, or each of several heads, is logits of shape (num_images, num_classes)."""
    for logit_BC in answer if isinstance(answer, tuple) else (answer,):
        if getattr(logit_BC, "shape", None) != (num_images, num_classes):
            raise ValueError(
                f"it must answer {count(num_images, 'image')} with logits of shape "
                f"({num_images}, {num_classes}), got {_form(logit_BC)}"
            )


def reason_of(error: Exception) -> str:
    """The first lines of an error of timm or torch, as a part of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = short(" ".join(lines[:2]), 200)
    return words if isinstance(error, ValueError) and words else f"{type(error).__name__}: {words}".removesuffix(": ")


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop whoever builds more modules or parameters than a network can have."""
    counts = {"parameters": 0, "modules": 0}

    def count(name: str, number: int, most: int) -> None:
        counts[name] += number
        if counts[name] > most:
            raise ValueError(f"it would have more than {most:,} {name}")

    def parameter(_: nn.Module, __: str, value: Any) -> None:
        count("parameters", 0 if value is None else value.numel(), MOST_PARAMETERS)

    def module(*_: Any) -> None:
        count("modules", 1, MOST_MODULES)

    handles = (
        register_module_parameter_registration_hook(parameter),
        register_module_module_registration_hook(module),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _form(answer: Any) -> str:
    return str(tuple(answer.shape)) if isinstance(answer, torch.Tensor) else type(answer).__name__
