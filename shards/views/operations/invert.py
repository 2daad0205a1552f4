"""Invert: 255 minus the level."""

import numpy as np

from shards.views.operations.operation import LEVEL_L, Fill, Image, OperationKind, Table, to_table


def _invert(_: float) -> Table:
    return to_table(255 - LEVEL_L)


def _inverted(image_HWC: Image, _: float, __: Fill) -> Image:
    return np.invert(image_HWC)


INVERT = OperationKind(name="invert", unit="", table=_invert, kernel=_inverted)
