"""Gaussian blur, of 3-Augment; in RandAugment its radius grows with the magnitude."""

import cv2
import numpy as np

from shards.views.operations.operation import Draw, Fill, Image, OperationKind


def _blur(image_HWC: Image, radius: float, _: Fill) -> Image:
    return np.asarray(cv2.GaussianBlur(image_HWC, (0, 0), radius, borderType=cv2.BORDER_REPLICATE))


def _drawn(draw: Draw) -> float:
    """The radii of 3-Augment, 0.1 to 2 pixels; never 0, which is no blur."""
    return 0.1 + 1.9 * draw.level


BLUR = OperationKind(name="blur", unit="standard deviation in pixels", drawn=_drawn, kernel=_blur)
