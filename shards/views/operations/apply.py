"""Apply operations to an image, in order."""

from collections.abc import Sequence
from functools import reduce
from itertools import groupby

import cv2
import numpy as np

from shards.views.operations.operation import Fill, Image, Operation, Table
from shards.views.operations.table import OPERATIONS


def apply_operations(image_HWC: Image, operations: Sequence[Operation], fill: Fill) -> Image:
    """The image after the operations in order, uint8 (H, W, 3); `fill` is the colour where there is no source pixel."""
    for by_table, group in groupby(operations, lambda operation: OPERATIONS[operation.name].table is not None):
        neighbours = list(group)
        if by_table and len(neighbours) > 1:
            tables = [_table(operation) for operation in neighbours]
            image_HWC = _looked_up(image_HWC, reduce(lambda before_L, table_L: table_L[before_L], tables))
            continue
        for operation in neighbours:
            kernel = OPERATIONS[operation.name].kernel
            if kernel is None:
                image_HWC = _looked_up(image_HWC, _table(operation))
            else:
                image_HWC = kernel(image_HWC, operation.value, fill)
    return image_HWC


def _table(operation: Operation) -> Table:
    table = OPERATIONS[operation.name].table
    assert table is not None
    return table(operation.value)


def _looked_up(image_HWC: Image, table_L: Table) -> Image:
    return np.asarray(cv2.LUT(image_HWC, table_L), np.uint8)
