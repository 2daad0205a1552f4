"""Gaussian blur, of 3-Augment."""

import cv2
import numpy as np

from shards.views.operations.operation import Fill, Image, OperationKind


def _blur(image_HWC: Image, radius: float, _: Fill) -> Image:
    return np.asarray(cv2.GaussianBlur(image_HWC, (0, 0), radius, borderType=cv2.BORDER_REPLICATE))


BLUR = OperationKind(name="blur", unit="standard deviation in pixels", kernel=_blur)
