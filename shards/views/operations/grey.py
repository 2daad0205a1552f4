"""Grey, of 3-Augment."""

import cv2
import numpy as np

from shards.views.operations.operation import Fill, Image, OperationKind


def _grey(image_HWC: Image, _: float, __: Fill) -> Image:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


GREY = OperationKind(name="grey", unit="", kernel=_grey)
