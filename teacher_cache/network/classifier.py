"""A network that answers with logits, as both sources of teachers build it, and the part of it that stays float32."""

from typing import Any, NamedTuple

import torch
from torch import nn

Rgb = tuple[float, float, float]


class Classifier(NamedTuple):
    """A network with its weights, and what is known of it.

    Attributes:
        num_classes: C.
        mean, std: the normalisation that it was trained with, in [0, 1] units.
        head: the name of the module whose output the logits are; "" where there is none.
        channels_last: whether it takes images that lie channels last in memory.
        class_lists: the names of its classes in their order, in each naming that is known.
        part: which tensors of its weights file it has, in words; "" where it has all.
    """

    network: nn.Module
    num_classes: int
    mean: Rgb
    std: Rgb
    head: str
    channels_last: bool = True
    class_lists: tuple[tuple[str, ...], ...] = ()
    part: str = ""


def run_in_float32(network: nn.Module, name: str) -> None:
    """Let the module of that name run in float32 inside autocast: bf16 logits tie and flip first classes."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, _Float32(network.get_submodule(name)))


class _Float32(nn.Module):
    """A module that runs in float32 inside autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, feature: torch.Tensor) -> Any:
        with torch.autocast(feature.device.type, enabled=False):
            return self.module(feature.float())
