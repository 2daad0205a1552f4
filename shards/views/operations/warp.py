"""Share code of shear, translation and rotation, after Pillow's `Image.transform` with bicubic interpolation.

Pillow's rules, which timm's augmentation inherits: pixel centres at half-integers; the cubic kernel with a = −1 (not
the −0.5 of its resize, not OpenCV's −0.75); a pixel whose source lies outside the image takes the fill colour, whole;
taps outside repeat the edge; the result is truncated to an integer, not rounded.
"""

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from shards.views.operations.operation import Fill, Image

# H = W = size of a view; C = 3; T = 4 taps; F fractions of a pixel.

TAPS = 4
WEIGHT_BITS = 7
FRACTIONS = 1024


def convolve(value_HX: Image, weight_TH: NDArray[np.int16], length: int) -> Image:
    """Four taps, three bytes apart, with one set of weights per row; truncated and clipped to uint8 (H, length).

    Around 128 a sum is at most 1.5 · 128 · 128 in size, so it fits int16, whatever the partial sums wrapped to.
    """
    # PyTorch multiplies rows with one number each, and adds, in half the time of NumPy's multiplication alone.
    centred_HX = torch.from_numpy((value_HX ^ 0x80).view(np.int8).astype(np.int16))
    weight_TH1 = torch.from_numpy(weight_TH)[:, :, None]
    sum_HX = centred_HX[:, :length] * weight_TH1[0]
    for tap in range(1, TAPS):
        sum_HX.addcmul_(centred_HX[:, 3 * tap : 3 * tap + length], weight_TH1[tap])
    level_HX = sum_HX.bitwise_right_shift_(WEIGHT_BITS).clamp_(-128, 127).to(torch.uint8)
    return np.asarray(level_HX.numpy() ^ np.uint8(0x80), np.uint8)


def cubic_weights(fraction_H: NDArray[Any]) -> NDArray[np.int16]:
    """The four weights of cubic convolution with a = −1 (Keys 1981, equation 15) in 1/128, summing to 128; (4, H)."""
    return cubic_table(WEIGHT_BITS)[:, np.rint(fraction_H * FRACTIONS).astype(np.int64)]


@lru_cache(maxsize=4)
def cubic_table(bits: int) -> NDArray[np.int16]:
    """The weights in 1 / 2^bits at fractions 0, 1/1024 … 1, int16 (4, 1025).

    Finer steps would move a weight by less than its own rounding.
    """
    d = np.arange(FRACTIONS + 1) / FRACTIONS
    weight_TF = np.stack([-d * (1 - d) ** 2, 1 - 2 * d**2 + d**3, d * (1 + d - d**2), -(d**2) * (1 - d)])
    whole_TF = np.rint(weight_TF * (1 << bits))
    # What rounding lost goes to the largest weight: a flat area must keep its level.
    lost_F = (1 << bits) - whole_TF.sum(axis=0)
    whole_TF[np.where(d < 0.5, 1, 2), np.arange(len(d))] += lost_F
    return np.asarray(whole_TF, np.int16)


def span(slope: float, start_H: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """First x of each row with 0 ≤ start + slope · x < size, and the first after it that is outside again; x ≥ 0."""
    if slope == 0:
        return np.zeros_like(start_H), np.where((start_H >= 0) & (start_H < size), size, 0)
    low_H, high_H = -start_H / slope, (size - start_H) / slope
    if slope > 0:
        return np.ceil(low_H), np.ceil(high_H)
    return np.floor(high_H) + 1, np.floor(low_H) + 1


def fill_outside(image_HWC: Image, spans: Sequence[tuple[NDArray[Any], NDArray[Any]]], fill: Fill) -> Image:
    """The image, but `fill` at every pixel that is outside one of the `spans` of its row."""
    height, width = image_HWC.shape[:2]
    first_H = np.maximum(reduce(np.maximum, [first_H for first_H, _ in spans]), 0)
    last_H = np.minimum(reduce(np.minimum, [last_H for _, last_H in spans]), width)
    first_H, last_H = np.minimum(first_H, width), np.maximum(last_H, np.minimum(first_H, width))
    before_NW = _before(width)
    inside_HW = before_NW.take(last_H.astype(np.intp), axis=0)
    inside_HW ^= before_NW.take(first_H.astype(np.intp), axis=0)
    out_HWC = filled(height, width, fill).copy()
    cv2.copyTo(image_HWC, inside_HW, out_HWC)
    return out_HWC


@lru_cache(maxsize=4)
def _before(width: int) -> Image:
    """For each number of pixels up to `width`, a row with 1 in so many; uint8 (width + 1, width)."""
    return np.tri(width + 1, width, -1, np.uint8)


@lru_cache(maxsize=16)
def filled(height: int, width: int, fill: Fill) -> Image:
    return np.tile(np.array(fill, np.uint8), (height, width, 1))


def transpose(image_HWC: Image) -> Image:
    return np.asarray(cv2.transpose(image_HWC), np.uint8)
