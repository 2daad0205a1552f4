"""Translation: four taps with weights in 1/128, in exact arithmetic."""

import math

import cv2
import numpy as np

from shards.views.operations.operation import Draw, Fill, Image, OperationKind
from shards.views.operations.warp import WEIGHT_BITS, cubic_weights, filled


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
    weight_T = cubic_weights(np.array([fraction % 1.0]))[:, 0] / np.float32(1 << WEIGHT_BITS)
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
    out_HWC = filled(image_HWC.shape[0], image_HWC.shape[1], fill).copy()
    target = slice(max(0, -whole), max(0, min(length, length - whole)))
    source = slice(max(0, whole), max(0, min(length, length + whole)))
    if axis:
        out_HWC[:, target] = moved_HWC[:, source]
    else:
        out_HWC[target] = moved_HWC[source]
    return out_HWC


def _drawn(draw: Draw) -> float:
    return draw.signed(draw.level * (0.45 * draw.size))


TRANSLATE_X = OperationKind(name="translate_x", unit="pixels", drawn=_drawn, kernel=translate_x)
TRANSLATE_Y = OperationKind(name="translate_y", unit="pixels", drawn=_drawn, kernel=translate_y)
