"""A block in some views: what the workers of both stages make, from one function.

Stage 1 and stage 2 call `render_block` with the same (recipe, shard, block, views), so the student's pixels are the
teacher's by construction; the digests prove it for every sample.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray

from shards.index.reader import ShardReader
from shards.pool.device_copy import on_device
from shards.views.mixing import block_mix, block_rows, prepare
from shards.views.view import render_views
from shards.views.view_recipe import ViewRecipe

# B samples of a batch (views × rows, view-major); H, W, C of a view; 4 = y0, y1, x0, x1.


class ViewBatch(NamedTuple):
    """Rendered views with where they come from and how they are to be mixed (numpy)."""

    shard_B: NDArray[np.int32]
    row_B: NDArray[np.int32]
    view_B: NDArray[np.int32]
    label_B: NDArray[np.int64]
    view_BHWC: NDArray[np.uint8]
    pixel_digest_B: NDArray[np.uint32]
    partner_B: NDArray[np.int32]  # position in this batch
    lam_B: NDArray[np.float32]
    box_B4: NDArray[np.int16]

    def one_view(self, position: int, num_views: int) -> "ViewBatch":
        """Return one view of a block in `num_views` views: slices of its arrays, partners counted within them."""
        num_rows = len(self.row_B) // num_views
        cut = slice(position * num_rows, (position + 1) * num_rows)
        part: dict[str, Any] = {name: values[cut] for name, values in self._asdict().items()}
        return ViewBatch(**part | {"partner_B": self.partner_B[cut] - np.int32(cut.start)})


def model_input(batch: ViewBatch, recipe: ViewRecipe, device: torch.device) -> torch.Tensor:
    """Return a batch as teacher and student see it: normalised and mixed, float32 (B, C, H, W), on a device."""
    mixing = (torch.from_numpy(values) for values in (batch.partner_B, batch.lam_B, batch.box_B4))
    return prepare(on_device(batch.view_BHWC, device), *mixing, mean=recipe.mean, std=recipe.std)


class BlockViews(NamedTuple):
    """One block of a shard and the views of it that one decode serves: consecutive, in one view block."""

    shard: int
    block: int
    views: Sequence[int]


def pixel_digest(view_HWC: NDArray[np.uint8], partner_key: str, lam: np.float32, box: NDArray[np.int16]) -> int:
    """crc32c over the view's bytes, then the partner's key, λ-mix and box: everything the sample adds to its mixture.

    The partner's pixels are covered by the partner's own digest: a block is closed under mixing.
    """
    mixing = struct.pack("<f4h", lam, *(int(b) for b in box)) + partner_key.encode()
    checksum: int = google_crc32c.extend(google_crc32c.value(view_HWC.tobytes()), mixing)
    return checksum


def render_block(
    reader: ShardReader,
    recipe: ViewRecipe,
    shard: int,
    block: int,
    views: Sequence[int],
    *,
    out_BHWC: NDArray[np.uint8] | None = None,
) -> ViewBatch:
    """Read, decode once and render one block in several views of one view block.

    Args:
        out_BHWC: where the pixels are put, uint8 and contiguous; None: into new memory.

    Returns:
        A view-major batch: all rows of views[0] in block order, then those of views[1] …

    Errors:
        ShardError from the reader or decoder, naming shard and key.
    """
    assert len({view // recipe.block_views for view in views}) == 1, "views must lie in one view block"
    index = reader.index
    name = index.names[shard]
    all_rows_R = block_rows(recipe, name, index.num_rows(shard), views[0])
    rows = all_rows_R[block * recipe.block_size : (block + 1) * recipe.block_size]
    num_rows, num_views = len(rows), len(views)
    keys = [index.key(shard, int(row)) for row in rows]
    if out_BHWC is None:
        out_BHWC = _new_pixels(recipe, num_views * num_rows)
    view_VNHWC = out_BHWC.reshape(num_views, num_rows, *out_BHWC.shape[1:])
    for n, (row, key) in enumerate(zip(rows, keys, strict=True)):
        data = reader.image_bytes(shard, int(row))
        render_views(data, recipe, key, views, where=f"{name}: {key}", out_VHWC=view_VNHWC[:, n])
    mixes = [block_mix(recipe, name, block, num_rows, view) for view in views]
    digest_VN = np.array(
        [
            [
                pixel_digest(view_VNHWC[v, n], keys[mix.partner_N[n]], mix.lam_N[n], mix.box_N4[n])
                for n in range(num_rows)
            ]
            for v, mix in enumerate(mixes)
        ],
        np.uint32,
    )
    first = int(index.first_S[shard])
    return ViewBatch(
        shard_B=np.full(num_views * num_rows, shard, np.int32),
        row_B=np.tile(rows.astype(np.int32), num_views),
        view_B=np.repeat(np.asarray(views, np.int32), num_rows),
        label_B=np.tile(index.label_N[first + rows].astype(np.int64), num_views),
        view_BHWC=out_BHWC,
        pixel_digest_B=digest_VN.reshape(-1),
        partner_B=np.concatenate([mix.partner_N + v * num_rows for v, mix in enumerate(mixes)]).astype(np.int32),
        lam_B=np.concatenate([mix.lam_N for mix in mixes]),
        box_B4=np.concatenate([mix.box_N4 for mix in mixes]),
    )


def render_blocks(
    reader: ShardReader,
    recipe: ViewRecipe,
    parts: Sequence[BlockViews],
    out_BHWC: NDArray[np.uint8] | None = None,
) -> ViewBatch:
    """Render several blocks as one batch, in order; a pure function of (shards, recipe, parts).

    Args:
        out_BHWC: as of `render_block`; the batch takes its first samples.
    """
    starts = np.cumsum([0, *(_num_samples(reader, recipe, part) for part in parts)]).tolist()
    if out_BHWC is None:
        out_BHWC = _new_pixels(recipe, starts[-1])
    cuts = [slice(start, end) for start, end in pairwise(starts)]
    batches = [
        render_block(reader, recipe, *part, out_BHWC=out_BHWC[cut]) for part, cut in zip(parts, cuts, strict=True)
    ]
    return _joined(batches, out_BHWC[: starts[-1]])


def most_samples(recipe: ViewRecipe, parts: Iterable[BlockViews]) -> int:
    """Return the most samples that the batch of some blocks can have: blocks at the end of a shard have fewer."""
    return sum(recipe.block_size * len(part.views) for part in parts)


def _num_samples(reader: ShardReader, recipe: ViewRecipe, part: BlockViews) -> int:
    left = reader.index.num_rows(part.shard) - part.block * recipe.block_size
    return len(part.views) * min(recipe.block_size, left)


def _new_pixels(recipe: ViewRecipe, num_samples: int) -> NDArray[np.uint8]:
    return np.empty((num_samples, recipe.size, recipe.size, 3), np.uint8)


def render_sample(reader: ShardReader, recipe: ViewRecipe, key: str, views: Sequence[int]) -> NDArray[np.uint8]:
    """Some views of one sample, uint8 (V, size, size, 3), as they are before mixing and normalisation.

    Errors:
        ShardError when no sample has that key, or its bytes are damaged.
    """
    shard, row = reader.index.find(key)
    data = reader.image_bytes(shard, row)
    return render_views(data, recipe, key, views, where=f"{reader.index.names[shard]}: {key}")


def _joined(batches: Sequence[ViewBatch], view_BHWC: NDArray[np.uint8]) -> ViewBatch:
    """Several batches, whose pixels lie one behind the other in `view_BHWC`, as one; partners stay the same samples."""
    starts = np.cumsum([0] + [len(b.row_B) for b in batches[:-1]])
    others = [name for name in ViewBatch._fields if name not in ("view_BHWC", "partner_B")]
    joined: dict[str, Any] = {name: np.concatenate([getattr(b, name) for b in batches]) for name in others}
    partner_B = np.concatenate([b.partner_B + np.int32(start) for b, start in zip(batches, starts, strict=True)])
    return ViewBatch(**joined, view_BHWC=view_BHWC, partner_B=partner_B)
