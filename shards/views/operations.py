"""The operations of RandAugment and 3-Augment on uint8 RGB pixels, after Pillow's `ImageOps` and `ImageEnhance`.

An operation is a name and one number. Those that treat every pixel alike and look at nothing else (invert, posterize,
solarize, solarize_add, brightness) are tables of 256 values; where several meet they are composed before the image is
touched, which is exact. auto_contrast, equalize and contrast are tables made from the image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.views import warp

# H, W of a view; C = 3; L = 256 levels.

Image = NDArray[np.uint8]
Table = NDArray[np.uint8]
Fill = tuple[int, int, int]
_LEVEL_L = np.arange(256)
# Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow.
_GREY_C = np.array([0.299, 0.587, 0.114])


class Operation(NamedTuple):
    """What is done to the pixels: a name of `OPERATIONS`, and its one number.

    value: degrees (rotate), pixels (translate_*), slope (shear_*), factor with 1 = unchanged (color, contrast,
    brightness, sharpness), bits kept (posterize), threshold (solarize), levels added below 128 (solarize_add), standard
    deviation in pixels (blur); 0 for those without one.
    """

    name: str
    value: float = 0.0


def apply_operations(image_HWC: Image, operations: Sequence[Operation], fill: Fill) -> Image:
    """The image after the operations in order, uint8 (H, W, 3); `fill` is the colour where there is no source pixel."""
    pending_L: Table | None = None
    for operation in operations:
        if operation.name in _TABLES:
            table_L = _TABLES[operation.name](operation.value)
            pending_L = table_L if pending_L is None else table_L[pending_L]
            continue
        if pending_L is not None:
            image_HWC, pending_L = np.asarray(cv2.LUT(image_HWC, pending_L), np.uint8), None
        image_HWC = _KERNELS[operation.name](image_HWC, operation.value, fill)
    return image_HWC if pending_L is None else np.asarray(cv2.LUT(image_HWC, pending_L))


def _to_table(value_L: NDArray[np.floating] | NDArray[np.integer]) -> Table:
    """Clipped to 0 … 255 and truncated, as Pillow does."""
    return value_L.clip(0, 255).astype(np.uint8)


def _invert(_: float) -> Table:
    return _to_table(255 - _LEVEL_L)


def _posterize(bits: float) -> Table:
    """Keep the upper bits; none at all gives black, as Pillow did until it refused."""
    return _to_table(_LEVEL_L & (0xFF00 >> int(bits)) & 0xFF)


def _solarize(threshold: float) -> Table:
    return _to_table(np.where(threshold > _LEVEL_L, _LEVEL_L, 255 - _LEVEL_L))


def _solarize_add(added: float) -> Table:
    return _to_table(np.where(_LEVEL_L < 128, _LEVEL_L + int(added), _LEVEL_L))


def _brightness(factor: float) -> Table:
    return _blend_with(0, factor)


def _blend_with(level: int, factor: float) -> Table:
    """level + factor · (pixel − level): ImageEnhance with a uniform degenerate, in float32 like Pillow's blend."""
    delta_L = (_LEVEL_L - level).astype(np.float32) * np.float32(factor)
    return _to_table(delta_L + np.float32(level))


def _contrast(image_HWC: Image, factor: float, _: Fill) -> Image:
    """Blend with the mean grey of the image."""
    mean = float(_GREY_C @ cv2.mean(image_HWC)[:3])
    return np.asarray(cv2.LUT(image_HWC, _blend_with(int(mean + 0.5), factor)))


def _auto_contrast(image_HWC: Image, _: float, __: Fill) -> Image:
    """Stretch each channel to 0 … 255."""
    # Along rows of 3 · W bytes first: a reduction over contiguous bytes is many times as fast as one over channels.
    rows_HX = image_HWC.reshape(len(image_HWC), -1)
    low_C1 = rows_HX.min(axis=0).reshape(-1, 3).min(axis=0)[:, None].astype(np.float64)
    high_C1 = rows_HX.max(axis=0).reshape(-1, 3).max(axis=0)[:, None].astype(np.float64)
    flat_C1 = high_C1 <= low_C1
    scale_C1 = 255.0 / np.where(flat_C1, 1.0, high_C1 - low_C1)
    table_CL = np.where(flat_C1, _LEVEL_L, _LEVEL_L * scale_C1 - low_C1 * scale_C1)
    return _per_channel(image_HWC, _to_table(table_CL))


def _equalize(image_HWC: Image, _: float, __: Fill) -> Image:
    """Flatten the histogram of each channel; one with a single level, or too few pixels, stays."""
    counts = [cv2.calcHist([image_HWC], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    count_CL = np.array(counts).astype(np.int64)
    used_CL = count_CL > 0
    last_C1 = (255 - used_CL[:, ::-1].argmax(axis=1))[:, None]
    step_C1 = (count_CL.sum(axis=1, keepdims=True) - np.take_along_axis(count_CL, last_C1, axis=1)) // 255
    flat_C1 = (used_CL.sum(axis=1, keepdims=True) <= 1) | (step_C1 == 0)
    before_CL = count_CL.cumsum(axis=1) - count_CL
    table_CL = np.where(flat_C1, _LEVEL_L, (step_C1 // 2 + before_CL) // np.maximum(step_C1, 1))
    return _per_channel(image_HWC, _to_table(table_CL))


def _per_channel(image_HWC: Image, table_CL: Table) -> Image:
    return np.asarray(cv2.LUT(image_HWC, np.ascontiguousarray(table_CL.T)[None]))


def _color(image_HWC: Image, factor: float, _: Fill) -> Image:
    """Blend each pixel with its grey."""
    matrix_CC = factor * np.eye(3) + (1.0 - factor) * _GREY_C
    # Pillow truncates, OpenCV rounds: half a level less is the same on average.
    return np.asarray(cv2.transform(image_HWC, np.column_stack([matrix_CC, np.full(3, -0.5)])))


def _grey(image_HWC: Image, _: float, __: Fill) -> Image:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


def _sharpness(image_HWC: Image, factor: float, _: Fill) -> Image:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; the outermost pixels stay."""
    # Weights in 1/4096 make every sum exact in float32, so machines that fuse multiply and add agree with those that do
    # not; half a level less, but for half a step, makes the rounding a truncation.
    side = round((1.0 - factor) / 13.0 * 4096) / 4096
    kernel = np.full((3, 3), side, np.float32)
    kernel[1, 1] = 1.0 - 8.0 * side
    out_HWC = cv2.filter2D(image_HWC, -1, kernel, delta=-0.5 + 1 / 8192, borderType=cv2.BORDER_REPLICATE)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        out_HWC[edge] = image_HWC[edge]
    return np.asarray(out_HWC, np.uint8)


def _blur(image_HWC: Image, radius: float, _: Fill) -> Image:
    return np.asarray(cv2.GaussianBlur(image_HWC, (0, 0), radius, borderType=cv2.BORDER_REPLICATE))


_TABLES: dict[str, Callable[[float], Table]] = {
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "brightness": _brightness,
}
_KERNELS: dict[str, Callable[[Image, float, Fill], Image]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "contrast": _contrast,
    "color": _color,
    "grey": _grey,
    "sharpness": _sharpness,
    "blur": _blur,
    "rotate": warp.rotate,
    "shear_x": warp.shear_x,
    "shear_y": warp.shear_y,
    "translate_x": warp.translate_x,
    "translate_y": warp.translate_y,
}
OPERATIONS = (*sorted(_TABLES), *sorted(_KERNELS))
