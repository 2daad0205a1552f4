"""Drawing what RandAugment, 3-Augment, colour jitter and random erasing do to one view.

RandAugment: Cubuk et al., arXiv:1909.13719, as timm varies it: each of n operations, chosen with replacement, is
applied with probability p at a magnitude drawn around m. 3-Augment: Touvron et al., arXiv:2204.07118. Random erasing:
Zhong et al., arXiv:1708.04896. Streams are explicit (shards.rng).
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from shards.rng import Stream
from shards.views.operations.operation import Draw, Operation
from shards.views.operations.operation_names import (
    COLOR_JITTER_OPERATIONS,
    RAND_AUGMENT_OPERATIONS,
    THREE_AUGMENT_OPERATIONS,
    replaced,
)
from shards.views.operations.table import OPERATIONS
from shards.views.rand_augment import FULL_MAGNITUDE, RandAugment


def draw_rand_augment(
    settings: RandAugment, size: int, rng: Stream, names: tuple[str, ...] = ()
) -> tuple[Operation, ...]:
    """The operations that are applied to a view of `size` pixels, in order; fewer than n when some are not.

    `names` are those to choose from; () are timm's.
    """
    names = names or RAND_AUGMENT_OPERATIONS
    drawn = []
    for _ in range(settings.num_operations):
        name = names[rng.below(len(names))]
        if rng.uniform() < settings.prob:
            drawn.append(Operation(name, operation_value(name, draw_magnitude(settings, rng), settings, size, rng)))
    return tuple(drawn)


def draw_magnitude(settings: RandAugment, rng: Stream) -> float:
    """A magnitude around the mean one, in [0, magnitude_max]."""
    magnitude = settings.magnitude
    if math.isinf(settings.magnitude_std):
        magnitude = rng.uniform(0.0, magnitude)
    elif settings.magnitude_std > 0:
        magnitude = rng.normal(magnitude, settings.magnitude_std)
    return max(0.0, min(magnitude, settings.magnitude_max))


def operation_value(name: str, magnitude: float, settings: RandAugment, size: int, rng: Stream) -> float:
    """The number of the operation at a magnitude, in the operation's own unit."""
    return OPERATIONS[name].drawn(Draw(magnitude / FULL_MAGNITUDE, settings.increasing, size, rng))


def draw_three_augment(rng: Stream) -> Operation:
    """One of grey, solarize at 128, and blur with a radius in [0.1, 2) pixels, with equal chances."""
    name = THREE_AUGMENT_OPERATIONS[rng.below(3)]
    if name == "blur":
        return Operation(name, rng.uniform(0.1, 2.0))
    return Operation(name, 128.0 if name == "solarize" else 0.0)


def draw_color_jitter(strength: float, rng: Stream) -> tuple[Operation, ...]:
    """Brightness, contrast and saturation in a random order, each by a factor in [1 − strength, 1 + strength)."""
    names = COLOR_JITTER_OPERATIONS
    order = rng.permutation(len(names))
    return tuple(Operation(names[i], rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength)) for i in order)


def in_versions(operations: Sequence[Operation], versions: Sequence[str]) -> tuple[Operation, ...]:
    """The operations, each in the version that a recipe uses; their numbers stay."""
    version = _replaced(tuple(versions))
    return tuple(
        Operation(version[operation.name], operation.value) if operation.name in version else operation
        for operation in operations
    )


@lru_cache(maxsize=64)
def _replaced(versions: tuple[str, ...]) -> Mapping[str, str]:
    return replaced(versions)


class Erase(NamedTuple):
    """A box of noise: its corner and size in pixels, and the key of its stream of noise (32 hexadecimal digits)."""

    y: int
    x: int
    height: int
    width: int
    noise_key: str


def draw_erase(
    size: int, prob: float, scale: tuple[float, float], ratio: tuple[float, float], rng: Stream
) -> Erase | None:
    """The erased box of a size × size view; None with probability 1 − prob, or when ten boxes in a row do not fit."""
    if rng.uniform() >= prob:
        return None
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = rng.uniform(*scale) * size * size
        aspect = math.exp(rng.uniform(*log_ratio))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < size and 0 < width < size:
            y, x = rng.below(size - height + 1), rng.below(size - width + 1)
            return Erase(y, x, height, width, rng.words(2).astype("<u8").tobytes().hex())
    return None
