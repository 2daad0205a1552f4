"""The operations by name; none is imported before it is used, so that recipes can be checked without cv2."""

from shards.names import OpenSet
from shards.views.operations.operation import OperationKind

OPERATIONS: OpenSet[OperationKind] = OpenSet(
    "operations",
    "operation",
    OperationKind,
    places={
        "auto_contrast": "shards.views.operations.histogram:AUTO_CONTRAST",
        "equalize": "shards.views.operations.histogram:EQUALIZE",
        "invert": "shards.views.operations.invert:INVERT",
        "rotate": "shards.views.operations.rotate:ROTATE",
        "rotate2": "shards.views.operations.rotate:ROTATE2",
        "posterize": "shards.views.operations.posterize:POSTERIZE",
        "solarize": "shards.views.operations.solarize:SOLARIZE",
        "solarize_add": "shards.views.operations.solarize:SOLARIZE_ADD",
        "color": "shards.views.operations.enhance:COLOR",
        "contrast": "shards.views.operations.enhance:CONTRAST",
        "brightness": "shards.views.operations.enhance:BRIGHTNESS",
        "sharpness": "shards.views.operations.sharpness:SHARPNESS",
        "shear_x": "shards.views.operations.shear:SHEAR_X",
        "shear_y": "shards.views.operations.shear:SHEAR_Y",
        "translate_x": "shards.views.operations.translate:TRANSLATE_X",
        "translate_y": "shards.views.operations.translate:TRANSLATE_Y",
        "grey": "shards.views.operations.grey:GREY",
        "blur": "shards.views.operations.blur:BLUR",
    },
)
