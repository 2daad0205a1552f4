"""Worker processes that render the batches of a run, in the order of the plan.

A worker item is one micro-batch of one rank: a list of block-views that the worker reads, decodes (each image once per
run of consecutive views), augments and digests. The items of all remaining epochs are one stream, so the workers live
as long as the run and never wait at the end of an epoch. What a batch holds depends on its items alone; the number of
workers only decides when it is ready.

Legend: B views of a micro-batch; H, W, C of a view.
"""

from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.views.blocks import ViewBatch, concat, render_block
from shards.views.render_ahead import render_ahead
from shards.views.view_recipe import ViewRecipe
from student.feed.epoch_plan import Items


class LoadedBatch(NamedTuple):
    """A micro-batch in the main process: pixels as a tensor, everything else NumPy."""

    shard_B: NDArray[np.int32]
    row_B: NDArray[np.int32]
    view_B: NDArray[np.int32]
    label_B: NDArray[np.int64]
    pixel_digest_B: NDArray[np.uint32]
    partner_B: NDArray[np.int32]
    lam_B: NDArray[np.float32]
    box_B4: NDArray[np.int16]
    view_BHWC: Tensor


def batches(
    items: Iterable[Items],
    *,
    reader: ShardReader,
    recipe: ViewRecipe,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Generator[LoadedBatch, None, None]:
    """Render the items in order, `workers` processes ahead by `prefetch` batches each; 0 renders in this process.

    Errors:
        ShardError as the reader or decoder raised it; RunError when a worker process dies.
    """
    rendered = render_ahead(
        lambda some: _render(reader, recipe, some),
        items,
        workers=workers,
        ahead=prefetch,
        pin_memory=pin_memory,
        died=RunError,
    )
    return (_loaded(one.batch, one.view_BHWC) for one in rendered)


def _render(reader: ShardReader, recipe: ViewRecipe, items: Items) -> ViewBatch:
    groups = items.groups(recipe.block_views)
    return concat([render_block(reader, recipe, shard, block, views) for shard, block, views in groups])


def _loaded(batch: ViewBatch, view_BHWC: Tensor) -> LoadedBatch:
    fields = {name: value for name, value in batch._asdict().items() if name != "view_BHWC"}
    return LoadedBatch(**fields, view_BHWC=view_BHWC)
