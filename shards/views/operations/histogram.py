"""Tables made from the image: auto-contrast stretches each channel, equalize flattens its histogram."""

import cv2
import numpy as np

from shards.views.operations.operation import LEVEL_L, Fill, Image, OperationKind, Table, to_table


def _auto_contrast(image_HWC: Image, _: float, __: Fill) -> Image:
    """Stretch each channel to 0 … 255."""
    # Along rows of 3 · W bytes first: a reduction over contiguous bytes is many times as fast as one over channels.
    rows_HX = image_HWC.reshape(len(image_HWC), -1)
    low_C1 = rows_HX.min(axis=0).reshape(-1, 3).min(axis=0)[:, None].astype(np.float64)
    high_C1 = rows_HX.max(axis=0).reshape(-1, 3).max(axis=0)[:, None].astype(np.float64)
    flat_C1 = high_C1 <= low_C1
    scale_C1 = 255.0 / np.where(flat_C1, 1.0, high_C1 - low_C1)
    table_CL = np.where(flat_C1, LEVEL_L, LEVEL_L * scale_C1 - low_C1 * scale_C1)
    return _per_channel(image_HWC, to_table(table_CL))


def _equalize(image_HWC: Image, _: float, __: Fill) -> Image:
    """Flatten the histogram of each channel; one with a single level, or too few pixels, stays."""
    counts = [cv2.calcHist([image_HWC], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    count_CL = np.array(counts).astype(np.int64)
    used_CL = count_CL > 0
    last_C1 = (255 - used_CL[:, ::-1].argmax(axis=1))[:, None]
    step_C1 = (count_CL.sum(axis=1, keepdims=True) - np.take_along_axis(count_CL, last_C1, axis=1)) // 255
    flat_C1 = (used_CL.sum(axis=1, keepdims=True) <= 1) | (step_C1 == 0)
    before_CL = count_CL.cumsum(axis=1) - count_CL
    table_CL = np.where(flat_C1, LEVEL_L, (step_C1 // 2 + before_CL) // np.maximum(step_C1, 1))
    return _per_channel(image_HWC, to_table(table_CL))


def _per_channel(image_HWC: Image, table_CL: Table) -> Image:
    return np.asarray(cv2.LUT(image_HWC, np.ascontiguousarray(table_CL.T)[None]))


AUTO_CONTRAST = OperationKind(name="auto_contrast", unit="", kernel=_auto_contrast)
EQUALIZE = OperationKind(name="equalize", unit="", kernel=_equalize)
