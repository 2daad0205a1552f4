"""Shear: rows or columns are shifted by four taps with weights in 1/128, in exact arithmetic."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.views.operations.operation import Draw, Fill, Image, OperationKind
from shards.views.operations.warp import TAPS, convolve, cubic_weights, fill_outside, span, transpose


def shear_x(image_HWC: Image, factor: float, fill: Fill) -> Image:
    """Row y takes its pixels from x + factor · (y + ½)."""
    return _shift_rows(image_HWC, factor * (np.arange(image_HWC.shape[0]) + 0.5), fill)


def shear_y(image_HWC: Image, factor: float, fill: Fill) -> Image:
    """Column x takes its pixels from y + factor · (x + ½)."""
    return transpose(shear_x(transpose(image_HWC), factor, fill))


def _shift_rows(image_HWC: Image, shift_H: NDArray[Any], fill: Fill) -> Image:
    """Row y of the result at x is row y of the image at x + shift_H[y]."""
    height, width = image_HWC.shape[:2]
    whole_H = np.floor(shift_H).astype(np.int64)
    # Beyond the width every pixel is fill, so the margin need not be wider; of it, sources inside touch two pixels.
    margin = min(int(np.abs(whole_H).max()), width) + TAPS
    padded_HWC = np.asarray(cv2.copyMakeBorder(image_HWC, 0, 0, margin, margin, cv2.BORDER_CONSTANT), np.uint8)
    padded_HWC[:, margin - 2 : margin] = image_HWC[:, :1]
    padded_HWC[:, margin + width : margin + width + 2] = image_HWC[:, -1:]
    padded_HX = padded_HWC.reshape(height, -1)
    start_H = np.clip(whole_H + margin - 1, 0, 2 * margin + 1 - TAPS) * 3
    # A sliding window over each row; NumPy's function for it takes longer than the copy.
    stride, length = padded_HX.shape[1], (width + TAPS - 1) * 3
    window_HX = np.ndarray((height, stride - length + 1, length), np.uint8, padded_HX, strides=(stride, 1, 1))
    out_HX = convolve(window_HX[np.arange(height), start_H], cubic_weights(shift_H - whole_H), width * 3)
    return fill_outside(out_HX.reshape(image_HWC.shape), [span(1.0, shift_H + 0.5, width)], fill)


def _drawn(draw: Draw) -> float:
    return draw.signed(draw.level * 0.3)


SHEAR_X = OperationKind(name="shear_x", unit="slope", drawn=_drawn, kernel=shear_x)
SHEAR_Y = OperationKind(name="shear_y", unit="slope", drawn=_drawn, kernel=shear_y)
