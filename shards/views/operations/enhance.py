"""Brightness, contrast and colour: blends with black, with the mean grey, with each pixel's own grey."""

import cv2
import numpy as np

from shards.views.operations.operation import GREY_C, Fill, Image, OperationKind, Table, blend_with, drawn_factor


def _brightness(factor: float) -> Table:
    return blend_with(0, factor)


def _contrast(image_HWC: Image, factor: float, _: Fill) -> Image:
    """Blend with the mean grey of the image."""
    mean = float(GREY_C @ cv2.mean(image_HWC)[:3])
    return np.asarray(cv2.LUT(image_HWC, blend_with(int(mean + 0.5), factor)))


def _color(image_HWC: Image, factor: float, _: Fill) -> Image:
    """Blend each pixel with its grey."""
    matrix_CC = factor * np.eye(3) + (1.0 - factor) * GREY_C
    # Pillow truncates, OpenCV rounds: half a level less is the same on average.
    return np.asarray(cv2.transform(image_HWC, np.column_stack([matrix_CC, np.full(3, -0.5)])))


_UNIT = "factor, 1 = unchanged"
BRIGHTNESS = OperationKind(name="brightness", unit=_UNIT, drawn=drawn_factor, table=_brightness)
CONTRAST = OperationKind(name="contrast", unit=_UNIT, drawn=drawn_factor, kernel=_contrast)
COLOR = OperationKind(name="color", unit=_UNIT, drawn=drawn_factor, kernel=_color)
