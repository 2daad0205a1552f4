"""Shear, translation and rotation at one size, after Pillow's `Image.transform` with bicubic interpolation.

Pillow's rules, which timm's augmentation inherits: pixel centres at half-integers; the cubic kernel with a = −1 (not
the −0.5 of its resize, not OpenCV's −0.75); a pixel whose source lies outside the image takes the fill colour, whole;
taps outside repeat the edge; the result is truncated to an integer, not rounded.

Translation and shear are one-dimensional: four taps with weights in 1/128, in exact arithmetic, the same on every
machine. Rotation is OpenCV's warp.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# H = W = size of a view; C = 3; T = 4 taps; F fractions of a pixel.

Image = NDArray[np.uint8]
Fill = tuple[int, int, int]
_TAPS = 4
_WEIGHT_BITS = 7
_FRACTIONS = 1024


def shear_x(image_HWC: Image, factor: float, fill: Fill) -> Image:
    """Row y takes its pixels from x + factor · (y + ½)."""
    return _shift_rows(image_HWC, factor * (np.arange(image_HWC.shape[0]) + 0.5), fill)


def shear_y(image_HWC: Image, factor: float, fill: Fill) -> Image:
    """Column x takes its pixels from y + factor · (x + ½)."""
    return _transpose(shear_x(_transpose(image_HWC), factor, fill))


def translate_x(image_HWC: Image, pixels: float, fill: Fill) -> Image:
    """Every pixel comes from x + pixels."""
    return _translate(image_HWC, pixels, fill, axis=1)


def translate_y(image_HWC: Image, pixels: float, fill: Fill) -> Image:
    """Every pixel comes from y + pixels."""
    return _translate(image_HWC, pixels, fill, axis=0)


def _translate(image_HWC: Image, pixels: float, fill: Fill, axis: int) -> Image:
    length = image_HWC.shape[axis]
    # Around the nearest whole shift a target has a source exactly when the shifted index is inside.
    whole = math.floor(pixels + 0.5)
    fraction = pixels - whole
    weight_T = _cubic_weights(np.array([fraction % 1.0]))[:, 0] / np.float32(1 << _WEIGHT_BITS)
    anchor = 1 if fraction >= 0 else 2
    # The sums are multiples of 1/128, exact in float32, fused or not; less 127/256, rounding truncates them.
    moved_HWC = cv2.filter2D(
        image_HWC,
        -1,
        weight_T[None] if axis else weight_T[:, None],
        anchor=(anchor, 0) if axis else (0, anchor),
        delta=-127 / 256,
        borderType=cv2.BORDER_REPLICATE,
    )
    out_HWC = _filled(image_HWC.shape[0], image_HWC.shape[1], fill).copy()
    target = slice(max(0, -whole), max(0, min(length, length - whole)))
    source = slice(max(0, whole), max(0, min(length, length + whole)))
    if axis:
        out_HWC[:, target] = moved_HWC[:, source]
    else:
        out_HWC[target] = moved_HWC[source]
    return out_HWC


def _transpose(image_HWC: Image) -> Image:
    return np.asarray(cv2.transpose(image_HWC), np.uint8)


def _shift_rows(image_HWC: Image, shift_H: NDArray[Any], fill: Fill) -> Image:
    """Row y of the result at x is row y of the image at x + shift_H[y]."""
    height, width = image_HWC.shape[:2]
    whole_H = np.floor(shift_H).astype(np.int64)
    # Beyond the width every pixel is fill, so the margin need not be wider.
    margin = min(int(np.abs(whole_H).max()), width) + _TAPS
    padded_HX = cv2.copyMakeBorder(image_HWC, 0, 0, margin, margin, cv2.BORDER_REPLICATE).reshape(height, -1)
    start_H = np.clip(whole_H + margin - 1, 0, 2 * margin + 1 - _TAPS) * 3
    # A sliding window over each row; NumPy's function for it takes longer than the copy.
    stride, length = padded_HX.shape[1], (width + _TAPS - 1) * 3
    window_HX = np.ndarray((height, stride - length + 1, length), np.uint8, padded_HX, strides=(stride, 1, 1))
    out_HX = _convolve(window_HX[np.arange(height), start_H], _cubic_weights(shift_H - whole_H), width * 3)
    return _fill_outside(out_HX.reshape(image_HWC.shape), [_span(1.0, shift_H + 0.5, width)], fill)


def _convolve(value_HX: Image, weight_TH: NDArray[np.int16], length: int) -> Image:
    """Four taps, three bytes apart, with one set of weights per row; truncated and clipped to uint8 (H, length).

    Around 128 a sum is at most 1.5 · 128 · 128 in size, so it fits int16, whatever the partial sums wrapped to.
    """
    centred_HX = (value_HX ^ 0x80).view(np.int8).astype(np.int16)
    out_HX = centred_HX[:, :length] * weight_TH[0, :, None]
    term_HX = np.empty_like(out_HX)
    for tap in range(1, _TAPS):
        np.multiply(centred_HX[:, 3 * tap : 3 * tap + length], weight_TH[tap, :, None], out=term_HX)
        out_HX += term_HX
    out_HX >>= _WEIGHT_BITS
    np.clip(out_HX, -128, 127, out=out_HX)
    return out_HX.astype(np.uint8) ^ np.uint8(0x80)


def _cubic_weights(fraction_H: NDArray[Any]) -> NDArray[np.int16]:
    """The four weights of cubic convolution with a = −1 (Keys 1981, equation 15) in 1/128, summing to 128; (4, H)."""
    return _weight_table()[:, np.rint(fraction_H * _FRACTIONS).astype(np.int64)]


@lru_cache(maxsize=1)
def _weight_table() -> NDArray[np.int16]:
    """The weights at fractions 0, 1/1024 … 1: finer steps would move a weight by less than its own rounding."""
    d = np.arange(_FRACTIONS + 1) / _FRACTIONS
    weight_TF = np.stack([-d * (1 - d) ** 2, 1 - 2 * d**2 + d**3, d * (1 + d - d**2), -(d**2) * (1 - d)])
    whole_TF = np.rint(weight_TF * (1 << _WEIGHT_BITS))
    # What rounding lost goes to the largest weight: a flat area must keep its level.
    lost_F = (1 << _WEIGHT_BITS) - whole_TF.sum(axis=0)
    whole_TF[np.where(d < 0.5, 1, 2), np.arange(len(d))] += lost_F
    return np.asarray(whole_TF, np.int16)


def _span(slope: float, start_H: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """First x of each row with 0 ≤ start + slope · x < size, and the first after it that is outside again; x ≥ 0."""
    if slope == 0:
        return np.zeros_like(start_H), np.where((start_H >= 0) & (start_H < size), size, 0)
    low_H, high_H = -start_H / slope, (size - start_H) / slope
    if slope > 0:
        return np.ceil(low_H), np.ceil(high_H)
    return np.floor(high_H) + 1, np.floor(low_H) + 1


def _fill_outside(image_HWC: Image, spans: Sequence[tuple[NDArray[Any], NDArray[Any]]], fill: Fill) -> Image:
    """The image, but `fill` at every pixel that is outside one of the `spans` of its row."""
    height, width = image_HWC.shape[:2]
    x_W = np.arange(width, dtype=np.int16)
    inside_HW = np.ones((height, width), np.bool_)
    for first_H, last_H in spans:
        inside_HW &= x_W >= first_H.clip(0, width).astype(np.int16)[:, None]
        inside_HW &= x_W < last_H.clip(0, width).astype(np.int16)[:, None]
    out_HWC = _filled(height, width, fill).copy()
    cv2.copyTo(image_HWC, inside_HW.view(np.uint8), out_HWC)
    return out_HWC


@lru_cache(maxsize=16)
def _filled(height: int, width: int, fill: Fill) -> Image:
    return np.tile(np.array(fill, np.uint8), (height, width, 1))


def rotate(image_HWC: Image, degrees: float, fill: Fill) -> Image:
    """Counter-clockwise about the centre."""
    height, width = image_HWC.shape[:2]
    angle = -math.radians(degrees % 360.0)
    # Rounded as Pillow does, so that right angles are exact.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    offset_x = width / 2 * (1 - cos) - height / 2 * sin
    offset_y = width / 2 * sin + height / 2 * (1 - cos)
    # OpenCV counts from pixel centres, Pillow from corners. Two pixels of repeated edge are all a source inside the
    # image can touch, and make OpenCV's fast border do.
    shift_x = offset_x + 0.5 * (cos + sin - 1) + 2
    shift_y = offset_y + 0.5 * (cos - sin - 1) + 2
    warped_HWC = cv2.warpAffine(
        cv2.copyMakeBorder(image_HWC, 2, 2, 2, 2, cv2.BORDER_REPLICATE),
        np.array([[cos, sin, shift_x], [-sin, cos, shift_y]]),
        (width, height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
    )
    y_H = np.arange(height) + 0.5
    source_x = _span(cos, 0.5 * cos + (sin * y_H + offset_x), width)
    source_y = _span(-sin, -0.5 * sin + (cos * y_H + offset_y), height)
    return _fill_outside(np.asarray(warped_HWC, np.uint8), [source_x, source_y], fill)
