"""Posterize: keep the upper bits."""

import numpy as np

from shards.views.operations.operation import LEVEL_L, Draw, Fill, Image, OperationKind, Table, to_table


def _mask(bits: float) -> int:
    return (0xFF00 >> int(bits)) & 0xFF


def _posterize(bits: float) -> Table:
    """Keep the upper bits; none at all gives black, as Pillow did until it refused."""
    return to_table(LEVEL_L & _mask(bits))


def _posterized(image_HWC: Image, bits: float, _: Fill) -> Image:
    return np.bitwise_and(image_HWC, np.uint8(_mask(bits)))


def _drawn(draw: Draw) -> float:
    bits = int(draw.level * 4)
    return float(max(0, 4 - bits) if draw.increasing else bits)


POSTERIZE = OperationKind(name="posterize", unit="bits kept", drawn=_drawn, table=_posterize, kernel=_posterized)
