"""Posterize: keep the upper bits."""

from shards.views.operations.operation import LEVEL_L, Draw, OperationKind, Table, to_table


def _posterize(bits: float) -> Table:
    """Keep the upper bits; none at all gives black, as Pillow did until it refused."""
    return to_table(LEVEL_L & (0xFF00 >> int(bits)) & 0xFF)


def _drawn(draw: Draw) -> float:
    bits = int(draw.level * 4)
    return float(max(0, 4 - bits) if draw.increasing else bits)


POSTERIZE = OperationKind(name="posterize", unit="bits kept", drawn=_drawn, table=_posterize)
