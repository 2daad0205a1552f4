"""The operations by name, and applying several in order."""

from collections.abc import Sequence

import cv2
import numpy as np

from shards.views.operation_names import RAND_AUGMENT_OPERATIONS
from shards.views.operations.blur import BLUR
from shards.views.operations.enhance import BRIGHTNESS, COLOR, CONTRAST
from shards.views.operations.grey import GREY
from shards.views.operations.histogram import AUTO_CONTRAST, EQUALIZE
from shards.views.operations.invert import INVERT
from shards.views.operations.operation import Fill, Image, Operation, OperationKind, Table
from shards.views.operations.posterize import POSTERIZE
from shards.views.operations.rotate import ROTATE, ROTATE2
from shards.views.operations.sharpness import SHARPNESS
from shards.views.operations.shear import SHEAR_X, SHEAR_Y
from shards.views.operations.solarize import SOLARIZE, SOLARIZE_ADD
from shards.views.operations.translate import TRANSLATE_X, TRANSLATE_Y

__all__ = ["OPERATIONS", "RAND_AUGMENT_OPERATIONS", "apply_operations", "operation_named"]

_KINDS = (
    AUTO_CONTRAST,
    EQUALIZE,
    INVERT,
    ROTATE,
    ROTATE2,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
    COLOR,
    CONTRAST,
    BRIGHTNESS,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
    GREY,
    BLUR,
)
OPERATIONS: dict[str, OperationKind] = {kind.name: kind for kind in _KINDS}


def operation_named(name: str) -> OperationKind:
    """The operation of that name; ValueError with what there is."""
    if name not in OPERATIONS:
        raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)}, got {name!r}")
    return OPERATIONS[name]


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
