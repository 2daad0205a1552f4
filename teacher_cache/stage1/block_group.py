"""Blocks of one unit that the teacher answers together, one view at a time.

Legend: V views of a unit, N rows of a block, G rows of a group of blocks, B teacher batch (G padded), H, W view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.pool.device_copy import on_device
from shards.views.blocks import ViewBatch
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe


class BlockGroup:
    """Rendered blocks, each in all V views of the unit, with their pixels on the teacher's device."""

    def __init__(self, blocks: Sequence[ViewBatch], recipe: ViewRecipe, device: torch.device) -> None:
        """Start copying the pixels of the blocks to the device, each block whole."""
        self._blocks, self._recipe = blocks, recipe
        self._pixels = [on_device(block.view_BHWC, device) for block in blocks]

    def view(self, position: int) -> list[ViewBatch]:
        """Return one view of each block, in order."""
        return [block.one_view(position, self._recipe.block_views) for block in self._blocks]

    def prepared(self, position: int, batch_size: int) -> Tensor:
        """Return one view of the group as the teacher sees it, padded with zeros to the full batch.

        Args:
            position: of the view in the unit.
            batch_size: B, at least the rows of the group.

        Returns:
            (B, 3, H, W) float32 on the device; its first G rows are those of the group, in order.
        """
        blocks = self.view(position)
        sizes = [len(block.row_B) for block in blocks]
        starts = np.cumsum([0, *sizes[:-1]])
        pixels = [
            block_BHWC[position * size : (position + 1) * size]
            for block_BHWC, size in zip(self._pixels, sizes, strict=True)
        ]
        image_GCHW = prepare(
            torch.cat(pixels),
            _tensor([block.partner_B + start for block, start in zip(blocks, starts, strict=True)]),
            _tensor([block.lam_B for block in blocks]),
            _tensor([block.box_B4 for block in blocks]),
            mean=self._recipe.mean,
            std=self._recipe.std,
        )
        missing = batch_size - len(image_GCHW)
        if not missing:
            return image_GCHW
        # The teacher only ever sees one shape: no second compilation, and no kernel that rounds otherwise.
        image_BCHW = image_GCHW.new_zeros((batch_size, *image_GCHW.shape[1:])).to(memory_format=torch.channels_last)
        image_BCHW[: len(image_GCHW)] = image_GCHW
        return image_BCHW


def _tensor(parts: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
