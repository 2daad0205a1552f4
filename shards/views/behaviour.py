"""The behavioural digest: what this code, with these libraries on this machine, renders for fixed images and seeds.

A cache records the digest it was made with. Another Pillow, libjpeg, resize kernel or CPU path that changes a single
pixel of these views changes the digest, and is noticed before the first step instead of at the first sample.
"""

import hashlib
import json
from dataclasses import replace
from functools import lru_cache

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.rng import stream
from shards.views.operations import OPERATIONS, Operation, apply_operations
from shards.views.view import decoded_size, render_views, view_params
from shards.views.view_recipe import ViewRecipe

_VIEWS = range(6)
_SIZES = ((375, 500), (500, 333), (240, 180))
# One value per operation that leaves none of its branches out.
_VALUES = {"posterize": 2.0, "solarize": 128.0, "solarize_add": 60.0, "rotate": 17.3, "translate_x": 20.7}


@lru_cache(maxsize=8)
def behaviour_digest(recipe: ViewRecipe) -> str:
    """sha256 (hex) over the params and pixels of fixed images in fixed views, and over every operation.

    The recipe's seed is left out: two caches that differ by seed alone have the same digest.
    """
    recipe = replace(recipe, seed=0, name="behaviour")
    digest = hashlib.sha256()
    for number, size in enumerate(_SIZES):
        image_HWC = fixed_image(*size)
        sampling = ("444", "420", "422")[number]
        data = simplejpeg.encode_jpeg(image_HWC, quality=90, colorspace="RGB", colorsubsampling=sampling)
        digest.update(data)
        decoded = decoded_size(data, recipe, "behaviour")
        for view in _VIEWS:
            params = view_params(recipe, str(number), view, decoded)
            digest.update(json.dumps(params.to_json(), sort_keys=True).encode())
        digest.update(render_views(data, recipe, str(number), _VIEWS, "behaviour").tobytes())
    image_HWC = fixed_image(96, 96)
    for name in OPERATIONS:
        operation = Operation(name, _VALUES.get(name, 0.7))
        digest.update(apply_operations(image_HWC, [operation], (124, 116, 104)).tobytes())
    return digest.hexdigest()


def fixed_image(height: int, width: int) -> NDArray[np.uint8]:
    """An image with slopes, edges and noise, made of integers alone: the same everywhere; uint8 (H, W, 3)."""
    y_H1, x_W = np.arange(height)[:, None], np.arange(width)
    red_HW = (x_W * 3 + y_H1) // 4 % 256
    green_HW = ((x_W // 16 + y_H1 // 16) % 2) * 160 + 40 + 0 * red_HW
    noise_HW = (stream(0, "behaviour", height, width).words(height * width) >> np.uint64(58)).reshape(height, width)
    blue_HW = (y_H1 * 2 + noise_HW.astype(np.int64)) % 256
    return np.stack([red_HW, green_HW, blue_HW], axis=2).astype(np.uint8)
