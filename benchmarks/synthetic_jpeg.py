"""Photo-like JPEGs for benchmarks, made from a number: smooth colour fields with fine texture."""

import io

import numpy as np
from PIL import Image

from shards.rng import stream

_SIDES = (375, 500)


def synthetic_jpeg(number: int) -> bytes:
    """Return a JPEG of 500×375 pixels, with about as many bytes as a photo of that size."""
    rng = stream(number, "calibration image")
    coarse = (rng.uniforms(8 * 10 * 3).reshape(8, 10, 3) * 255).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(_SIDES[::-1], Image.Resampling.BICUBIC), np.float64)
    noise = rng.uniforms(image.size).reshape(image.shape) * 24 - 12
    buffer = io.BytesIO()
    Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()
