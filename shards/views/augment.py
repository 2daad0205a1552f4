"""Drawing what RandAugment, 3-Augment, colour jitter and random erasing do to one view.

RandAugment: Cubuk et al., arXiv:1909.13719, as timm varies it: each of n operations, chosen with replacement, is
applied with probability p at a magnitude drawn around m. 3-Augment: Touvron et al., arXiv:2204.07118. Random erasing:
Zhong et al., arXiv:1708.04896. Streams are explicit (shards.rng).
"""

import math
from typing import NamedTuple

from shards.rng import Stream
from shards.views.operations import Operation
from shards.views.rand_augment import FULL_MAGNITUDE, RandAugment

# What timm calls AutoContrast, Equalize, … TranslateYRel, in its order.
RAND_AUGMENT_OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def draw_rand_augment(settings: RandAugment, size: int, rng: Stream) -> tuple[Operation, ...]:
    """The operations that are applied to a view of `size` pixels, in order; fewer than n when some are not."""
    chosen = []
    for _ in range(settings.num_operations):
        name = RAND_AUGMENT_OPERATIONS[rng.below(len(RAND_AUGMENT_OPERATIONS))]
        if rng.uniform() < settings.prob:
            chosen.append(Operation(name, operation_value(name, draw_magnitude(settings, rng), settings, size, rng)))
    return tuple(chosen)


def draw_magnitude(settings: RandAugment, rng: Stream) -> float:
    """A magnitude around the mean one, in [0, magnitude_max]."""
    magnitude = settings.magnitude
    if math.isinf(settings.magnitude_std):
        magnitude = rng.uniform(0.0, magnitude)
    elif settings.magnitude_std > 0:
        magnitude = rng.normal(magnitude, settings.magnitude_std)
    return max(0.0, min(magnitude, settings.magnitude_max))


def operation_value(name: str, magnitude: float, settings: RandAugment, size: int, rng: Stream) -> float:
    """The number of the operation at a magnitude, in the units of `Operation`."""
    level = magnitude / FULL_MAGNITUDE
    increasing = settings.increasing
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        reach = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3}.get(name, 0.45 * size)
        return _random_sign(level * reach, rng)
    if name in ("color", "contrast", "brightness", "sharpness"):
        return max(0.1, 1.0 + _random_sign(0.9 * level, rng)) if increasing else 1.8 * level + 0.1
    if name == "posterize":
        bits = int(level * 4)
        return float(max(0, 4 - bits) if increasing else bits)
    if name == "solarize":
        threshold = min(256, int(level * 256))
        return float(256 - threshold if increasing else threshold)
    if name == "solarize_add":
        return float(min(128, int(level * 110)))
    return 0.0


def _random_sign(value: float, rng: Stream) -> float:
    return -value if rng.uniform() < 0.5 else value


def draw_three_augment(rng: Stream) -> Operation:
    """One of grey, solarize at 128, and blur with a radius in [0.1, 2) pixels, with equal chances."""
    choice = rng.below(3)
    if choice == 0:
        return Operation("grey")
    return Operation("solarize", 128.0) if choice == 1 else Operation("blur", rng.uniform(0.1, 2.0))


def draw_color_jitter(strength: float, rng: Stream) -> tuple[Operation, ...]:
    """Brightness, contrast and saturation in a random order, each by a factor in [1 − strength, 1 + strength)."""
    names = ("brightness", "contrast", "color")
    order = rng.permutation(len(names))
    return tuple(Operation(names[i], rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength)) for i in order)


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
