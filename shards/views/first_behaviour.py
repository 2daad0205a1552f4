"""The behavioural digest of version 0.1, for the caches it made: one value over everything. Nothing here may change.

It covers eighteen views and every operation of that version, at one value each. Today's rule is in `behaviour`.
"""

import hashlib
import json
from dataclasses import replace
from functools import lru_cache

import simplejpeg

from shards.views.behaviour import SIZES, behaviour_digest, fixed_image, has_parts
from shards.views.operations.apply import apply_operations
from shards.views.operations.operation import Operation
from shards.views.view import decoded_size, render_views, view_params
from shards.views.view_recipe import ViewRecipe

_OPERATIONS = (
    *("brightness", "invert", "posterize", "solarize", "solarize_add"),
    *("auto_contrast", "blur", "color", "contrast", "equalize", "grey", "rotate", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
_VALUES = {"posterize": 2.0, "solarize": 128.0, "solarize_add": 60.0, "rotate": 17.3, "translate_x": 20.7}


def behaviour_like(recorded: str, recipe: ViewRecipe) -> str:
    """The digest of this machine by the rule that a recorded one was made by: today's, or that of 0.1."""
    return behaviour_digest(recipe) if has_parts(recorded) else _digest(replace(recipe, seed=0, name="behaviour"))


@lru_cache(maxsize=8)
def _digest(recipe: ViewRecipe) -> str:
    digest = hashlib.sha256()
    for number, size in enumerate(SIZES):
        image_HWC = fixed_image(*size)
        sampling = ("444", "420", "422")[number]
        data = simplejpeg.encode_jpeg(image_HWC, quality=90, colorspace="RGB", colorsubsampling=sampling)
        digest.update(data)
        decoded = decoded_size(data, recipe, "behaviour")
        for view in range(6):
            params = view_params(recipe, str(number), view, decoded)
            digest.update(json.dumps(params.to_json(), sort_keys=True).encode())
        digest.update(render_views(data, recipe, str(number), range(6), "behaviour").tobytes())
    image_HWC = fixed_image(96, 96)
    for name in _OPERATIONS:
        operation = Operation(name, _VALUES.get(name, 0.7))
        digest.update(apply_operations(image_HWC, [operation], (124, 116, 104)).tobytes())
    return digest.hexdigest()
