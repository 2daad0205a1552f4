"""Sharpness: a blend with the smoothed image."""

import cv2
import numpy as np

from shards.views.operations.operation import Fill, Image, OperationKind, drawn_factor


def _sharpness(image_HWC: Image, factor: float, _: Fill) -> Image:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay."""
    # Weights in 1/4096 make every sum exact in float32, so machines that fuse multiply and add agree with those that do
    # not; half a level less, but for half a step, makes the rounding a truncation.
    side = round((1.0 - factor) / 13.0 * 4096) / 4096
    kernel = np.full((3, 3), side, np.float32)
    kernel[1, 1] = 1.0 - 8.0 * side
    out_HWC = cv2.filter2D(image_HWC, -1, kernel, delta=-0.5 + 1 / 8192, borderType=cv2.BORDER_REPLICATE)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        out_HWC[edge] = image_HWC[edge]
    return np.asarray(out_HWC, np.uint8)


SHARPNESS = OperationKind(name="sharpness", unit="factor, 1 = unchanged", drawn=drawn_factor, kernel=_sharpness)
