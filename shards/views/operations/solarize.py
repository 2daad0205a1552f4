"""Solarize: invert above a threshold; and its sibling that adds below the middle."""

import numpy as np

from shards.views.operations.operation import LEVEL_L, Draw, OperationKind, Table, to_table


def _solarize(threshold: float) -> Table:
    return to_table(np.where(threshold > LEVEL_L, LEVEL_L, 255 - LEVEL_L))


def _solarize_add(added: float) -> Table:
    return to_table(np.where(LEVEL_L < 128, LEVEL_L + int(added), LEVEL_L))


def _drawn(draw: Draw) -> float:
    threshold = min(256, int(draw.level * 256))
    return float(256 - threshold if draw.increasing else threshold)


def _drawn_add(draw: Draw) -> float:
    return float(min(128, int(draw.level * 110)))


SOLARIZE = OperationKind(name="solarize", unit="threshold", drawn=_drawn, table=_solarize)
SOLARIZE_ADD = OperationKind(name="solarize_add", unit="levels added below 128", drawn=_drawn_add, table=_solarize_add)
