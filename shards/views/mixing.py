"""Mixup and CutMix by blocks: who is mixed with whom, and how; and the one function from uint8 views to model input.

For a shard and a view block (block_views consecutive views) a keyed permutation cuts the shard into blocks of
block_size samples. Inside a block, for each view, a keyed perfect matching makes pairs; a pair shares its λ-mix and its
CutMix box, and each of the two is the other's partner. So a block is closed under mixing, and a batch of whole blocks
can be mixed wherever it is, whatever else is in it. A lone last sample stays unmixed.

Mixup: Zhang et al., arXiv:1710.09412. CutMix: Yun et al., arXiv:1905.04899 (box and area-corrected λ as in section 3).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.rng import Stream, stream
from shards.views.view_recipe import ViewRecipe

# R rows of a shard; N rows of a block; B batch; H, W view; C channels; X the values of one row of pixels, W · C.


class BlockMix(NamedTuple):
    """The mixing of one block in one view.

    partner_N: int32, position in the block of the row's partner; its own position when unmixed.
    lam_N: float32, weight of the row's own image and label; 1 when unmixed.
    box_N4: int16, (y0, y1, x0, x1) of the pasted CutMix box; all 0 for Mixup and unmixed rows.
    """

    partner_N: NDArray[np.int32]
    lam_N: NDArray[np.float32]
    box_N4: NDArray[np.int16]


def num_blocks(recipe: ViewRecipe, num_rows: int, *, full_only: bool = False) -> int:
    """Count the blocks of a shard of `num_rows` samples; with `full_only`, those of exactly block_size samples."""
    return num_rows // recipe.block_size if full_only else -(-num_rows // recipe.block_size)


def block_rows(recipe: ViewRecipe, shard_name: str, num_rows: int, view: int) -> NDArray[np.int64]:
    """The rows of a shard in block order, int64 (num_rows,); block b is [b·block_size, (b+1)·block_size)."""
    return _block_rows(recipe.seed, shard_name, num_rows, view // recipe.block_views)


@lru_cache(maxsize=4096)
def _block_rows(seed: int, shard_name: str, num_rows: int, view_block: int) -> NDArray[np.int64]:
    rows_R = stream(seed, "blocks", shard_name, view_block).permutation(num_rows)
    rows_R.setflags(write=False)
    return rows_R


def block_mix(recipe: ViewRecipe, shard_name: str, block: int, num_rows: int, view: int) -> BlockMix:
    """Partners, λ-mix and boxes of one block in one view.

    Args:
        block: number of the block in its shard; num_rows: samples in this block (the last may be short).
    """
    partner_N = np.arange(num_rows, dtype=np.int32)
    lam_N = np.ones(num_rows, np.float32)
    box_N4 = np.zeros((num_rows, 4), np.int16)
    if recipe.mixes:
        rng = stream(recipe.seed, "mix", shard_name, block, view)
        order_N = rng.permutation(num_rows)
        for first, second in zip(order_N[0::2], order_N[1::2], strict=False):
            if rng.uniform() >= recipe.mix_prob:
                continue
            lam, box = _draw_pair(recipe, rng)
            partner_N[first], partner_N[second] = second, first
            lam_N[[first, second]] = lam
            box_N4[[first, second]] = box
    return BlockMix(partner_N, lam_N, box_N4)


def _draw_pair(recipe: ViewRecipe, rng: Stream) -> tuple[float, tuple[int, int, int, int]]:
    cutmix = recipe.cutmix_alpha > 0 and (recipe.mixup_alpha == 0 or rng.uniform() < recipe.switch_prob)
    alpha = recipe.cutmix_alpha if cutmix else recipe.mixup_alpha
    lam = rng.beta(alpha, alpha)
    if not cutmix:
        return lam, (0, 0, 0, 0)
    size = recipe.size
    half = int(size * math.sqrt(1.0 - lam)) // 2
    y, x = rng.below(size), rng.below(size)
    y0, y1 = max(y - half, 0), min(y + half, size)
    x0, x1 = max(x - half, 0), min(x + half, size)
    return 1.0 - (y1 - y0) * (x1 - x0) / (size * size), (y0, y1, x0, x1)


def prepare(
    view_BHWC: Tensor,
    partner_B: Tensor,
    lam_B: Tensor,
    box_B4: Tensor,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """Normalise and mix: the one way from uint8 views to what teacher and student see, in both stages.

    Args:
        view_BHWC: uint8 views, on the device where the result is wanted.
        partner_B: integer positions of the partners in this batch.
        lam_B: float32 weight of the own image.
        box_B4: integer boxes (y0, y1, x0, x1); an empty box means Mixup with lam_B.
        mean, std: normalisation in [0, 1] units.

    Returns:
        float32 (B, C, H, W), channels last in memory.
    """
    device = view_BHWC.device
    partner_B, lam_B, box_B4 = (values.to(device, non_blocking=True) for values in (partner_B, lam_B, box_B4))
    shift_X, scale_X = _normalisation(mean, std, view_BHWC.shape[2], device)
    image_BHX = view_BHWC.flatten(2).to(torch.float32).sub_(shift_X).mul_(scale_X)
    mixed_BHX = image_BHX.index_select(0, partner_B.long())
    mixed_BHX.lerp_(image_BHX, _own_weight(lam_B, box_B4, view_BHWC.shape))
    return mixed_BHX.reshape(view_BHWC.shape).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what is subtracted from each value of a row of pixels, and its factor; float32 (X,), on the device.

    The three values of a pixel are taken as one long row: on a CPU, broadcasting over three alone is twice as slow.
    Made once per device: a list that is copied to a GPU makes the host wait for all that the GPU has to do.
    """
    with torch.inference_mode(False):
        parts = ([255.0 * m for m in mean], [1.0 / (255.0 * s) for s in std])
        shift_X, scale_X = (torch.tensor(part, dtype=torch.float32, device=device).repeat(width) for part in parts)
        return shift_X, scale_X


def _own_weight(lam_B: Tensor, box_B4: Tensor, shape: torch.Size) -> Tensor:
    """Weight of the own image at every value, float32 (B, H, X): λ for Mixup, 0 inside and 1 outside a box."""
    _, height, width, channels = shape
    y0_B1, y1_B1, x0_B1, x1_B1 = box_B4.long()[:, :, None].unbind(1)
    y_H = torch.arange(height, device=lam_B.device)
    x_X = torch.arange(width, device=lam_B.device).repeat_interleave(channels)
    in_y_BH1 = ((y_H >= y0_B1) & (y_H < y1_B1)).to(torch.float32)[:, :, None]
    in_x_B1X = ((x_X >= x0_B1) & (x_X < x1_B1)).to(torch.float32)[:, None, :]
    has_box_B1 = (y1_B1 > y0_B1) & (x1_B1 > x0_B1)
    outer_B11 = torch.where(has_box_B1, 1.0, lam_B.float()[:, None])[:, :, None]
    return torch.addcmul(outer_B11, outer_B11 * in_y_BH1, in_x_B1X, value=-1.0)
