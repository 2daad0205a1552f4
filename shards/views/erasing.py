"""Random erasing's noise, as uint8 pixels.

DeiT writes N(0, 1) into the normalised image. The view is digested before normalisation, so the noise is drawn here as
round(255 · clip(mean + std · z, 0, 1)): one table of 65,536 pixels per channel, read at raw 16-bit words. What a word
gives is an integer from a table, so the noise is the same on every machine.
"""

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shards.rng import Stream

# W = 65,536 words; H, W of the view; C = 3.

_WORDS = 1 << 16


@lru_cache(maxsize=64)
def noise_table(mean: float, std: float) -> NDArray[np.uint8]:
    """The pixel for each 16-bit word, uint8: the normal quantile of (word + ½) / 65,536, rounded and clipped."""
    inverse = NormalDist(mean, std).inv_cdf
    value_W = np.array([inverse((word + 0.5) / _WORDS) for word in range(_WORDS)])
    table_W = np.floor(255.0 * value_W.clip(0.0, 1.0) + 0.5).astype(np.uint8)
    table_W.setflags(write=False)
    return table_W


def erase(
    view_HWC: NDArray[np.uint8],
    box: tuple[int, int, int, int],
    noise_key: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> NDArray[np.uint8]:
    """A copy of the view with noise in `box` = (y, x, height, width).

    Args:
        noise_key: key of the stream of noise, 32 hexadecimal digits.
        mean, std: of the noise before clipping, per channel, in [0, 1] units.
    """
    y, x, height, width = box
    count = height * width
    word = Stream(bytes.fromhex(noise_key)).words(-(-3 * count // 4)).astype("<u8").view("<u2")
    out_HWC = view_HWC.copy()
    for c in range(3):
        plane = noise_table(mean[c], std[c]).take(word[c * count : (c + 1) * count])
        out_HWC[y : y + height, x : x + width, c] = plane.reshape(height, width)
    return out_HWC
