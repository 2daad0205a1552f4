"""Crop to view: Pillow's antialiased bicubic resize, by the fastest kernel that has its pixels.

PyTorch's uint8 resize of channels-last memory is a port of Pillow's fixed-point arithmetic (within two levels, on
average a tenth of one) and several times as fast. It has no box argument, so when the view is a small window of a much
larger resized image (of a 10,000 × 8 strip), Pillow computes just the window, with the same kernel.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

_MOST_WASTE = 8  # times the pixels of the view


def without_threads() -> None:
    """Render in this thread alone, from now on: in a forked worker, where the threads of its parent's pools are not.

    PyTorch would wait for them for ever; OpenCV would start others (and with 1 instead of 0 wait for ever, too).
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


class Box(NamedTuple):
    """A rectangle of pixels."""

    y: int
    x: int
    height: int
    width: int


def resize_window(
    crop_HWC: NDArray[np.uint8], resized: tuple[int, int], window: tuple[int, int], size: int
) -> NDArray[np.uint8]:
    """The size × size window, at `window` = (y, x), of the crop resized to `resized` = (height, width).

    Pixels up to the window's overlap beyond the edge are reflected (the edge itself not repeated). The result is
    contiguous and owns its memory.
    """
    (y0, x0), (y1, x1) = window, (window[0] + size, window[1] + size)
    inner = (max(y0, 0), max(x0, 0), min(y1, resized[0]), min(x1, resized[1]))
    if resized[0] * resized[1] <= _MOST_WASTE * size * size:
        out_HWC = _resize(crop_HWC, resized)[inner[0] : inner[2], inner[1] : inner[3]]
    else:
        out_HWC = _resize_inner(crop_HWC, resized, inner)
    over = (inner[0] - y0, y1 - inner[2], inner[1] - x0, x1 - inner[3])
    if any(over):
        return np.asarray(cv2.copyMakeBorder(out_HWC, *over, cv2.BORDER_REFLECT_101))
    return np.ascontiguousarray(out_HWC)


def _resize(crop_HWC: NDArray[np.uint8], resized: tuple[int, int]) -> NDArray[np.uint8]:
    if crop_HWC.shape[:2] == resized:
        return crop_HWC.copy()
    # Four channels are resized faster than three, and the change makes the copy that is needed anyhow: from a dense
    # batch alone, batch stride included, does PyTorch make a channels-last result; a planar one takes nearly as long to
    # turn around as the resize itself.
    crop_HWC = np.asarray(cv2.cvtColor(crop_HWC, cv2.COLOR_RGB2RGBA), np.uint8)
    crop_BCHW = torch.from_numpy(crop_HWC.reshape(1, *crop_HWC.shape)).permute(0, 3, 1, 2)
    out_BCHW = torch.nn.functional.interpolate(crop_BCHW, resized, mode="bicubic", antialias=True)
    return np.asarray(cv2.cvtColor(out_BCHW[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGBA2RGB), np.uint8)


def _resize_inner(
    crop_HWC: NDArray[np.uint8], resized: tuple[int, int], inner: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    y0, x0, y1, x1 = inner
    scale_y, scale_x = crop_HWC.shape[0] / resized[0], crop_HWC.shape[1] / resized[1]
    box = (x0 * scale_x, y0 * scale_y, min(x1 * scale_x, crop_HWC.shape[1]), min(y1 * scale_y, crop_HWC.shape[0]))
    return np.array(Image.fromarray(crop_HWC).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box))


def flip_columns(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mirror image."""
    return np.asarray(cv2.flip(image_HWC, 1))
