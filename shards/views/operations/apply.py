"""Apply operations to an image, in order."""

from collections.abc import Sequence

import cv2
import numpy as np

from shards.views.operations.operation import Fill, Image, Operation, Table
from shards.views.operations.table import OPERATIONS


def apply_operations(image_HWC: Image, operations: Sequence[Operation], fill: Fill) -> Image:
    """The image after the operations in order, uint8 (H, W, 3); `fill` is the colour where there is no source pixel."""
    pending_L: Table | None = None
    for operation in operations:
        kind = OPERATIONS[operation.name]
        if kind.table is not None:
            table_L = kind.table(operation.value)
            pending_L = table_L if pending_L is None else table_L[pending_L]
            continue
        if pending_L is not None:
            image_HWC, pending_L = np.asarray(cv2.LUT(image_HWC, pending_L), np.uint8), None
        assert kind.kernel is not None
        image_HWC = kind.kernel(image_HWC, operation.value, fill)
    return image_HWC if pending_L is None else np.asarray(cv2.LUT(image_HWC, pending_L))
