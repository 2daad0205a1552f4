"""Rotation: exact, after Pillow (`rotate2`), and the first one, for the caches that were made with it (`rotate`).

The first is OpenCV's warp: its cubic has a = −0.75, it rounds where Pillow truncates, and its float32 sums differ
between machines.

`rotate2` is Pillow's formula in float32 sums that are exact. A pixel is the sum of the sixteen around its source: down
the columns first, then along the row. Pixels are whole numbers and weights multiples of 1/128, so every sum is a
multiple of 1/16384 below 1024 in size. float32 holds it exactly: neither the order of the terms nor a fused
multiplication can change a bit. The sums are PyTorch's `embedding_bag`, which looks up rows of a table and adds them
with weights.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from shards.views.operations.operation import Draw, Fill, Image, OperationKind
from shards.views.operations.warp import FRACTIONS, TAPS, WEIGHT_BITS, cubic_table, fill_outside, span

# H, W of a view; N = H · W pixels of it; P pixels of the image with its edge; C = 3; T = 4 taps; X = T · C.

_BITS = FRACTIONS.bit_length() - 1
_EDGE = 2  # pixels of repeated edge: as many as the taps of a source inside the image can touch
_DEGREES = "degrees, counter-clockwise"


class _Rotation(NamedTuple):
    """Where pixels come from: cos · x + sin · y + offset_x, −sin · x + cos · y + offset_y; halves are pixel centres."""

    cos: float
    sin: float
    offset_x: float
    offset_y: float


def _rotation(degrees: float, height: int, width: int) -> _Rotation:
    """Counter-clockwise about the centre."""
    angle = -math.radians(degrees % 360.0)
    # Rounded as Pillow does, so that right angles are exact.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    offset_x = width / 2 * (1 - cos) - height / 2 * sin
    return _Rotation(cos, sin, offset_x, width / 2 * sin + height / 2 * (1 - cos))


def _fill_around(image_HWC: Image, turned: _Rotation, fill: Fill) -> Image:
    """The rotated image, but `fill` at every pixel that comes from outside."""
    height, width = image_HWC.shape[:2]
    cos, sin, offset_x, offset_y = turned
    y_H = np.arange(height) + 0.5
    source_x = span(cos, 0.5 * cos + (sin * y_H + offset_x), width)
    source_y = span(-sin, -0.5 * sin + (cos * y_H + offset_y), height)
    return fill_outside(image_HWC, [source_x, source_y], fill)


def rotate(image_HWC: Image, degrees: float, fill: Fill) -> Image:
    """Counter-clockwise about the centre."""
    height, width = image_HWC.shape[:2]
    turned = _rotation(degrees, height, width)
    cos, sin, offset_x, offset_y = turned
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
    return _fill_around(np.asarray(warped_HWC, np.uint8), turned, fill)


def rotate2(image_HWC: Image, degrees: float, fill: Fill) -> Image:
    """Counter-clockwise about the centre."""
    turned = _rotation(degrees, *image_HWC.shape[:2])
    return _fill_around(_resampled(image_HWC, turned), turned, fill)


def _resampled(image_HWC: Image, turned: _Rotation) -> Image:
    """Every pixel from its source, those outside from somewhere at the edge; uint8 (H, W, C), truncated."""
    height, width, channels = image_HWC.shape
    cos, sin, offset_x, offset_y = turned
    x_W, y_H = np.arange(width) + 0.5, np.arange(height) + 0.5
    place_x_HW = _places(sin * y_H + offset_x, cos * x_W, width)
    place_y_HW = _places(cos * y_H + offset_y, -sin * x_W, height)
    stride = width + 2 * _EDGE
    first_HW = (place_y_HW >> _BITS) * stride + (place_x_HW >> _BITS)
    edged_HWC = cv2.copyMakeBorder(image_HWC, *(_EDGE,) * 4, cv2.BORDER_REPLICATE).astype(np.float32)
    # Row p holds the pixels p … p + 3: the taps of a row.
    num_rows = edged_HWC.size // channels - TAPS + 1
    taps_PX = torch.as_strided(torch.from_numpy(edged_HWC), (num_rows, TAPS * channels), (channels, 1)).contiguous()
    row_NT = _below(num_rows, stride).take(first_HW.ravel(), axis=0, mode="wrap")
    down_NX = _weighted_sums(taps_PX, torch.from_numpy(row_NT), place_y_HW)
    pixel_NC = _weighted_sums(down_NX.view(-1, channels), _in_turn(first_HW.size), place_x_HW)
    return np.asarray(pixel_NC.clamp_(0, 255).to(torch.uint8).numpy().reshape(image_HWC.shape), np.uint8)


def _places(of_row_H: NDArray[Any], of_column_W: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Where the first tap of each pixel is, counted from the edge, in fractions of a pixel; int64 (H, W).

    The arguments add up to the source, pixel centres at halves. One outside is moved to where all taps exist.
    """
    # Half a pixel less, to indices; one more, since the first tap is one before and the edge two.
    row_H, column_W = (np.rint(part * FRACTIONS).astype(np.int64) for part in (of_row_H + 0.5, of_column_W))
    place_HW = row_H[:, None] + column_W
    return np.clip(place_HW, 0, (size + 1) * FRACTIONS - 1, out=place_HW)


def _weighted_sums(table_PX: Tensor, row_NT: Tensor, place_HW: NDArray[np.int64]) -> Tensor:
    """Four rows of the table for each pixel, added with the cubic weights of its place; float32 (N, X)."""
    weight_NT = torch.from_numpy(_weights().take((place_HW & (FRACTIONS - 1)).ravel(), axis=0, mode="wrap"))
    starts_N = _starts(len(row_NT))
    return embedding_bag(row_NT.view(-1), table_PX, starts_N, mode="sum", per_sample_weights=weight_NT.view(-1))


@lru_cache(maxsize=1)
def _weights() -> NDArray[np.float32]:
    """The weights of the four taps at every fraction of a pixel, float32 (fractions, T)."""
    weight_FT = np.ascontiguousarray(cubic_table(WEIGHT_BITS)[:, :FRACTIONS].T)
    return weight_FT.astype(np.float32) / np.float32(1 << WEIGHT_BITS)


@lru_cache(maxsize=4)
def _below(num_rows: int, stride: int) -> NDArray[np.int32]:
    """The places p, p + stride, p + 2 · stride, p + 3 · stride for each p, int32 (P, T)."""
    return np.arange(num_rows, dtype=np.int32)[:, None] + np.arange(TAPS, dtype=np.int32) * stride


@lru_cache(maxsize=4)
def _in_turn(num_pixels: int) -> Tensor:
    """0, 1, 2, 3 for the first pixel, 4, 5, 6, 7 for the next …, int32 (N, T)."""
    return torch.arange(num_pixels * TAPS, dtype=torch.int32).view(-1, TAPS)


@lru_cache(maxsize=4)
def _starts(num_pixels: int) -> Tensor:
    """Where the taps of each pixel begin in the list of all, int32 (N,)."""
    return torch.arange(0, num_pixels * TAPS, TAPS, dtype=torch.int32)


def _drawn(draw: Draw) -> float:
    return draw.signed(draw.level * 30.0)


ROTATE = OperationKind(name="rotate", unit=_DEGREES, drawn=_drawn, kernel=rotate)
ROTATE2 = OperationKind(name="rotate2", unit=_DEGREES, drawn=_drawn, kernel=rotate2)
