"""Rotation: exact (`rotate2`), and the first one, for the caches that were made with it (`rotate`).

The first is OpenCV's warp: its cubic has a = −0.75, it rounds where Pillow truncates, and its float32 sums differ
between machines.

`rotate2` is integer arithmetic alone, with Pillow's kernel and rules. The image is resampled down its columns, then
along its rows (Catmull & Smith 1980, "3-D transformations of images in scanline order"): eight taps a pixel instead of
sixteen. The three channels of a pixel move as one word of four int16, in memory that a thread keeps: fresh pages would
cost as much as the arithmetic.
"""

import math
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.views.operations.operation import Draw, Fill, Image, OperationKind
from shards.views.operations.warp import FRACTIONS, WEIGHT_BITS, cubic_table, fill_outside, span, transpose

# H, W of a view; C = 3; X columns of the source with its edge; N pixels as one row, words of int16; F fractions.

_BITS = FRACTIONS.bit_length() - 1
_EDGE = 2  # pixels of repeated edge: as many as the taps of a source inside the image can touch
_ROW_BITS = WEIGHT_BITS - 1
_MOST = 340
"""Half levels around 128 that a column may give: times 96, the sum of the sizes of a row's weights, it fits int16."""
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
    """Every pixel from its source, those outside from somewhere at the edge; uint8 of the image's size."""
    cos, sin, offset_x, offset_y = turned
    height, width = image_HWC.shape[:2]
    along, down = (cos, sin, offset_x), (-sin, cos, offset_y)
    if abs(cos) < abs(sin):
        # The rows of the target run down the source rather than along it.
        image_HWC, along, down = transpose(image_HWC), down, along
    column_N = _down_columns(image_HWC, along, down, height)
    return _along_rows(column_N, along, image_HWC.shape[1], height, width)


def _down_columns(image_HWC: Image, along: Sequence[float], down: Sequence[float], height: int) -> Tensor:
    """The columns of the source where the rows of the target cross them, in half levels around 128; words (H · X)."""
    rows, columns = image_HWC.shape[:2]
    stride = columns + 2 * _EDGE
    edged_HX4 = cv2.cvtColor(cv2.copyMakeBorder(image_HWC, *(_EDGE,) * 4, cv2.BORDER_REPLICATE), cv2.COLOR_RGB2RGBA)
    around_zero = (np.asarray(edged_HX4, np.uint8) ^ np.uint8(0x80)).view(np.int8)
    word_N = _SCRATCH.take("image", around_zero.size // 4, torch.int64)
    np.copyto(word_N.view(torch.int16).numpy(), around_zero.ravel())
    # Column x meets row y of the target at its x = (x − b · y − e) / a; that is put into d · x + f · y + g.
    (a, b, e), (d, f, g) = along, down
    x_X, y_H = np.arange(stride) - (_EDGE - 0.5), np.arange(height) + 0.5
    place_HX = _places((f - d * b / a) * y_H + (g - d * e / a), (d / a) * x_X, rows)
    first_HX = place_HX >> _BITS
    first_HX *= stride
    first_HX += np.arange(stride, dtype=np.int32)
    sum_N = _weighted("columns", word_N, first_HX, stride, place_HX, WEIGHT_BITS)
    sum_N += 1 << (WEIGHT_BITS - 2)
    return sum_N.bitwise_right_shift_(WEIGHT_BITS - 1).clamp_(-_MOST, _MOST).view(torch.int64)


def _along_rows(column_N: Tensor, along: Sequence[float], columns: int, height: int, width: int) -> Image:
    """The rows of the target from what the columns gave, truncated as Pillow does; uint8 (H, W, C)."""
    a, b, e = along
    place_HW = _places(b * (np.arange(height) + 0.5) + e, a * (np.arange(width) + 0.5), columns)
    first_HW = place_HW >> _BITS
    first_HW += np.arange(height, dtype=np.int32)[:, None] * (columns + 2 * _EDGE)
    sum_N = _weighted("rows", column_N, first_HW, 1, place_HW, _ROW_BITS).bitwise_right_shift_(_ROW_BITS + 1)
    level_HW4 = sum_N.clamp_(-128, 127).to(torch.uint8).numpy().reshape(height, width, 4) ^ np.uint8(0x80)
    return np.asarray(cv2.cvtColor(level_HW4, cv2.COLOR_RGBA2RGB), np.uint8)


def _places(of_row_H: NDArray[Any], of_column_W: NDArray[Any], size: int) -> NDArray[np.int32]:
    """Return the place of the first tap of each pixel, from the edge, in fractions of a pixel; int32 (H, W).

    The arguments add up to the source, pixel centres at halves. One outside is moved to where all taps exist.
    """
    # Half a pixel less, to indices; one more, since the first tap is one before and the edge two.
    row_H, column_W = (np.rint(part * FRACTIONS).astype(np.int32) for part in (of_row_H + 0.5, of_column_W))
    place_HW = row_H[:, None] + column_W
    return np.clip(place_HW, 0, (size + 1) * FRACTIONS - 1, out=place_HW)


def _weighted(
    name: str, word_N: Tensor, first_HW: NDArray[np.int32], step: int, place_HW: NDArray[np.int32], bits: int
) -> Tensor:
    """The sums of four taps, `step` words apart, with weights in 1 / 2^bits; int16 (4 · N), kept under `name`.

    The second tap counts whole, the others as differences from it: three weights do, since the four add up to one.
    Differences and partial sums may wrap around; the whole fits int16, and so comes out right. Of the places only the
    fractions are left.
    """
    num_words = first_HW.size
    place_HW &= FRACTIONS - 1  # in their own memory, as fresh pages cost time
    first_N, fraction_N = (torch.from_numpy(part.ravel()) for part in (first_HW, place_HW))
    second_N, tap_N, weight_N = (_SCRATCH.take(use, num_words, torch.int64) for use in ("second", "tap", "weight"))
    torch.index_select(word_N[step:], 0, first_N, out=second_N)
    second_N, tap16_N, weight16_N = second_N.view(torch.int16), tap_N.view(torch.int16), weight_N.view(torch.int16)
    sum_N = _SCRATCH.take(name, 4 * num_words, torch.int16)
    torch.bitwise_left_shift(second_N, bits, out=sum_N)
    for tap in (0, 2, 3):
        torch.index_select(word_N[tap * step :], 0, first_N, out=tap_N)
        torch.index_select(_weight_words(bits)[tap], 0, fraction_N, out=weight_N)
        sum_N.addcmul_(tap16_N.sub_(second_N), weight16_N)
    return sum_N


@lru_cache(maxsize=2)
def _weight_words(bits: int) -> tuple[Tensor, ...]:
    """Of each tap, its weight at every fraction, once for each int16 of a word; words (F,)."""
    return tuple(torch.from_numpy(np.repeat(weight_F, 4).view(np.int64)) for weight_F in cubic_table(bits))


class _Scratch(threading.local):
    """Memory that each thread keeps for its next rotation; what it holds is read before anything else takes it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """So many values of the memory of that name, made larger when it is too small."""
        array = self._kept.get(name)
        if array is None or len(array) < count:
            array = self._kept[name] = torch.empty(count, dtype=dtype, device="cpu")
        return array[:count]


_SCRATCH = _Scratch()


def _drawn(draw: Draw) -> float:
    return draw.signed(draw.level * 30.0)


ROTATE = OperationKind(name="rotate", unit=_DEGREES, drawn=_drawn, kernel=rotate)
ROTATE2 = OperationKind(name="rotate2", unit=_DEGREES, drawn=_drawn, kernel=rotate2)
