"""Rotation, by OpenCV's warp: its cubic has a = −0.75, and its arithmetic differs between machines."""

import math

import cv2
import numpy as np

from shards.views.operations.operation import Draw, Fill, Image, OperationKind
from shards.views.operations.warp import fill_outside, span


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
    source_x = span(cos, 0.5 * cos + (sin * y_H + offset_x), width)
    source_y = span(-sin, -0.5 * sin + (cos * y_H + offset_y), height)
    return fill_outside(np.asarray(warped_HWC, np.uint8), [source_x, source_y], fill)


def _drawn(draw: Draw) -> float:
    return draw.signed(draw.level * 30.0)


ROTATE = OperationKind(name="rotate", unit="degrees, counter-clockwise", drawn=_drawn, kernel=rotate)
