"""Solarize: invert above a threshold; and its sibling that adds below the middle."""

import math

import cv2
import numpy as np

from shards.views.operations.operation import LEVEL_L, Draw, Fill, Image, OperationKind, Table, to_table


def _solarize(threshold: float) -> Table:
    return to_table(np.where(threshold > LEVEL_L, LEVEL_L, 255 - LEVEL_L))


def _solarized(image_HWC: Image, threshold: float, _: Fill) -> Image:
    return np.bitwise_xor(image_HWC, cv2.threshold(image_HWC, math.ceil(threshold) - 1, 255, cv2.THRESH_BINARY)[1])


def _solarize_add(added: float) -> Table:
    return to_table(np.where(LEVEL_L < 128, LEVEL_L + int(added), LEVEL_L))


def _added(image_HWC: Image, added: float, _: Fill) -> Image:
    added_HWC = cv2.threshold(image_HWC, 127, int(added), cv2.THRESH_BINARY_INV)[1]
    return np.asarray(cv2.add(image_HWC, added_HWC), np.uint8)


def _drawn(draw: Draw) -> float:
    threshold = min(256, int(draw.level * 256))
    return float(256 - threshold if draw.increasing else threshold)


def _drawn_add(draw: Draw) -> float:
    return float(min(128, int(draw.level * 110)))


SOLARIZE = OperationKind(name="solarize", unit="threshold", drawn=_drawn, table=_solarize, kernel=_solarized)
SOLARIZE_ADD = OperationKind(
    name="solarize_add", unit="levels added below 128", drawn=_drawn_add, table=_solarize_add, kernel=_added
)
