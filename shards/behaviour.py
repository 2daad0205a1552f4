"""What this code and these libraries render: a digest that another Pillow, libjpeg or resize kernel changes.

Versions say which libraries are installed, not what they do. So a cache keeps the digest of the pixels that its machine
gave for fixed images and seeds, and a student compares it before its first step.
"""

import hashlib
import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.recipe import ViewRecipe
from shards.rng import stream
from shards.views import render_views

_NUM_VIEWS = 16


@lru_cache(maxsize=8)
def behaviour_digest(recipe: ViewRecipe) -> str:
    """sha256 (hex) of the pixels of a few fixed images, JPEG and PNG, in the first views of a recipe."""
    digest = hashlib.sha256()
    for name, data in _images().items():
        digest.update(render_views(data, recipe, name, range(_NUM_VIEWS), where=f"built-in image {name}").tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _images() -> dict[str, bytes]:
    """Fixed pictures with smooth parts, edges and noise, larger and smaller than a view, as encoded bytes."""
    return {
        "wide.jpg": _encoded(_picture(240, 400), "JPEG", quality=90, subsampling=2),
        "tall.jpg": _encoded(_picture(150, 90), "JPEG", quality=75, subsampling=0),
        "small.png": _encoded(_picture(28, 31), "PNG"),
    }


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    bands = np.stack([(x * 5 + y * 3) % 256, (x * y) % 251, ((x // 16 + y // 16) % 2) * 200], -1)
    noise = stream(0, "behaviour", height, width).words(height * width * 3).reshape(height, width, 3) % 32
    return (bands % 224 + noise.astype(np.int64)).astype(np.uint8)


def _encoded(picture_HWC: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HWC).save(buffer, kind, **options)
    return buffer.getvalue()
