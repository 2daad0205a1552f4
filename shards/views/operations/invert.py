"""Invert: 255 minus the level."""

from shards.views.operations.operation import LEVEL_L, OperationKind, Table, to_table


def _invert(_: float) -> Table:
    return to_table(255 - LEVEL_L)


INVERT = OperationKind(name="invert", unit="", table=_invert)
