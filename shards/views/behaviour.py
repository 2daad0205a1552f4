"""The behavioural digest: what this code, with these libraries on this machine, renders for fixed images and seeds.

A cache records the digest it was made with. Another Pillow, libjpeg, resize kernel or CPU path that changes a pixel is
noticed before the first step instead of at the first sample. The digest has one part for each thing that the recipe can
do, and nothing else: another operation in the table changes no cache, and where two digests differ, the names of the
parts say what renders differently. Each operation is sampled at many of the values that the recipe draws, since a
kernel may differ at one value in three.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.rng import stream
from shards.views.augment import draw_color_jitter, draw_rand_augment, draw_three_augment, in_versions
from shards.views.mixing import block_mix, block_rows
from shards.views.operations.apply import apply_operations
from shards.views.operations.operation import Operation
from shards.views.operations.operation_names import RAND_AUGMENT_OPERATIONS
from shards.views.rand_augment import parse_rand_augment
from shards.views.view import decoded_size, render_views, view_params
from shards.views.view_recipe import ViewRecipe

_RULE = "2"
_VIEWS = range(8)
_DRAWS = range(256)
"""Views whose parameters are compared: with them "the same parameters" is claimed of all others."""
SIZES = ((375, 500), (500, 333), (240, 180))
_VALUES = 32
"""Values per operation: a kernel that differs at a tenth of them is missed once in 29 times, one at a third never."""
_LARGEST_PROBE = 224
_DIGITS = 12


def behaviour_digest(recipe: ViewRecipe) -> str:
    """The digest by the rule of today: "2 draw=… decode=… rotate=…", 12 hexadecimal digits of a sha256 per part.

    The recipe's seed and name are left out: two caches that differ by them alone have the same digest.
    """
    parts = behaviour_parts(replace(recipe, seed=0, name="behaviour"))
    return " ".join([_RULE, *(f"{name}={digest}" for name, digest in parts.items())])


def behaviour_difference(recorded: str, here: str) -> tuple[str, ...]:
    """The parts in which two digests of one recipe differ, by name; ("pixels",) where the rule has no parts."""
    if recorded == here:
        return ()
    if not (has_parts(recorded) and has_parts(here)):
        return ("pixels",)
    theirs, ours = _parts_of(recorded), _parts_of(here)
    return tuple(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))


def has_parts(digest: str) -> bool:
    """Whether a digest says which part differs; those of version 0.1 do not."""
    return digest.startswith(f"{_RULE} ")


def _parts_of(digest: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in digest.split()[1:])
    return {name: value for name, _, value in pairs}


@lru_cache(maxsize=8)
def behaviour_parts(recipe: ViewRecipe) -> Mapping[str, str]:
    """Digest of each part, by name: "draw" (parameters and mixing), "decode" and "crop" (what every view goes through),
    "flip", "erase" and each operation that the recipe can draw.
    """
    sha = {name: hashlib.sha256() for name in ("draw", "decode")}
    plain = replace(
        recipe, flip=0.0, rand_augment="", three_augment=False, color_jitter=0.0, erase_prob=0.0, operations=()
    )
    whole = replace(plain, crop="resize")
    variants = {"crop": plain}
    if recipe.flip:
        variants["flip"] = replace(plain, flip=1.0)
    if recipe.erase_prob:
        variants["erase"] = replace(plain, erase_prob=1.0)
    sha |= {name: hashlib.sha256() for name in variants}
    for number, size in enumerate(SIZES):
        sampling = ("444", "420", "422")[number]
        image_HWC = fixed_image(*size)
        data = simplejpeg.encode_jpeg(image_HWC, quality=90, colorspace="RGB", colorsubsampling=sampling)
        for view in _DRAWS:
            params = view_params(recipe, str(number), view, decoded_size(data, recipe, "behaviour"))
            sha["draw"].update(json.dumps(params.to_json(), sort_keys=True).encode())
        sha["decode"].update(data + render_views(data, whole, str(number), [0], "behaviour").tobytes())
        for name, variant in variants.items():
            sha[name].update(render_views(data, variant, str(number), _VIEWS, "behaviour").tobytes())
    sha["draw"].update(_mixing(recipe))
    side = min(recipe.size, _LARGEST_PROBE)
    image_HWC = fixed_image(side, side)
    for operation in in_versions(list(_probes(recipe)), recipe.versions):
        part = sha.setdefault(operation.name, hashlib.sha256())
        part.update(apply_operations(image_HWC, [operation], (124, 116, 104)).tobytes())
    return {name: part.hexdigest()[:_DIGITS] for name, part in sha.items()}


def _probes(recipe: ViewRecipe) -> Iterator[Operation]:
    """Every operation that the recipe can draw, each at many of the values it draws."""
    if recipe.rand_augment:
        settings = replace(parse_rand_augment(recipe.rand_augment), num_operations=1, prob=1.0)
        for name in recipe.operations or RAND_AUGMENT_OPERATIONS:
            rng = stream(0, "behaviour", name)
            for _ in range(_VALUES):
                yield from draw_rand_augment(settings, recipe.size, rng, (name,))
    rng = stream(0, "behaviour", "others")
    for _ in range(_VALUES):
        if recipe.three_augment:
            yield draw_three_augment(rng)
        if recipe.color_jitter:
            yield from draw_color_jitter(recipe.color_jitter, rng)


def _mixing(recipe: ViewRecipe) -> bytes:
    """Blocks of a shard of 40 samples, and how 16 of them are mixed, in a few views."""
    arrays = [block_rows(recipe, "behaviour", 40, view).astype("<i8") for view in _VIEWS]
    arrays += [array for view in _VIEWS for array in block_mix(recipe, "behaviour", 0, 16, view)]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def fixed_image(height: int, width: int) -> NDArray[np.uint8]:
    """An image with slopes, edges and noise, made of integers alone: the same everywhere; uint8 (H, W, 3)."""
    y_H1, x_W = np.arange(height)[:, None], np.arange(width)
    red_HW = (x_W * 3 + y_H1) // 4 % 256
    green_HW = ((x_W // 16 + y_H1 // 16) % 2) * 160 + 40 + 0 * red_HW
    noise_HW = (stream(0, "behaviour", height, width).words(height * width) >> np.uint64(58)).reshape(height, width)
    blue_HW = (y_H1 * 2 + noise_HW.astype(np.int64)) % 256
    return np.stack([red_HW, green_HW, blue_HW], axis=2).astype(np.uint8)
