"""From units to teacher batches: worker processes render blocks ahead, the main process assembles full batches.

A task is one block in all views of its unit, so that each image is decoded once.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import CacheError
from shards.index.reader import ShardReader
from shards.views.blocks import ViewBatch, render_block
from shards.views.mixing import prepare
from shards.views.render_ahead import RenderedTask, render_ahead
from shards.views.view_recipe import ViewRecipe
from teacher_cache.store.digest import UnitId

# V views of a unit, N rows of a block, G rows of a group of blocks, B teacher batch (G padded), H, W view.

_PREFETCH = 2


class Task(NamedTuple):
    """One block of a unit."""

    unit: UnitId
    block: int


class RenderedBlock(NamedTuple):
    """A block in all views of its unit, and how it is mixed."""

    task: Task
    row_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    view_VNHWC: Tensor
    pixel_digest_VN: NDArray[np.uint32]
    partner_VN: NDArray[np.int64]  # position in the block
    lam_VN: NDArray[np.float32]
    box_VN4: NDArray[np.int16]


def render_task(reader: ShardReader, recipe: ViewRecipe, task: Task) -> ViewBatch:
    """Render one block in every view of its unit; ShardError from reader and decoder."""
    first = task.unit.view_block * recipe.block_views
    return render_block(reader, recipe, task.unit.shard, task.block, range(first, first + recipe.block_views))


def rendered_blocks(
    tasks: Iterable[Task], reader: ShardReader, recipe: ViewRecipe, *, workers: int, pin_memory: bool = False
) -> Generator[RenderedBlock, None, None]:
    """The rendered tasks, in order; workers stay ahead of the consumer by a bounded number of tasks.

    Args:
        tasks: drawn lazily, in this process, as the workers become free.
        workers: processes; 0 renders here. The bytes do not depend on it.
        pin_memory: hand out page-locked views, for asynchronous copies to a GPU.

    Errors:
        ShardError of the first task that cannot be rendered, when its turn comes; CacheError when a worker dies.
    """
    rendered = render_ahead(
        lambda task: render_task(reader, recipe, task),
        tasks,
        workers=workers,
        ahead=_PREFETCH,
        pin_memory=pin_memory,
        died=CacheError,
    )
    return (_block(one, recipe.block_views) for one in rendered)


def _block(rendered: RenderedTask[Task], num_views: int) -> RenderedBlock:
    """The batch of a task, view-major, with its two axes apart."""
    batch = rendered.batch
    num_rows = len(batch.row_B) // num_views
    partner_VN = batch.partner_B.reshape(num_views, num_rows).astype(np.int64)
    return RenderedBlock(
        task=rendered.task,
        row_N=batch.row_B[:num_rows].astype(np.int64),
        label_N=batch.label_B[:num_rows],
        view_VNHWC=rendered.view_BHWC.view(num_views, num_rows, *rendered.view_BHWC.shape[1:]),
        pixel_digest_VN=batch.pixel_digest_B.reshape(num_views, num_rows),
        partner_VN=partner_VN - num_rows * np.arange(num_views)[:, None],
        lam_VN=batch.lam_B.reshape(num_views, num_rows),
        box_VN4=batch.box_B4.reshape(num_views, num_rows, 4),
    )


def prepared_batch(
    group: Sequence[RenderedBlock], view: int, recipe: ViewRecipe, batch_size: int, device: torch.device
) -> Tensor:
    """One view of a group of blocks as the teacher sees it, padded with zeros to the full batch.

    Args:
        group: blocks of one unit, together at most `batch_size` rows.
        view: position in the unit.

    Returns:
        (B, 3, H, W) float32 on the device; its first G rows are the group's, in order.
    """
    starts = np.cumsum([0, *(len(block.row_N) for block in group)])
    pieces = [block.view_VNHWC[view].to(device, non_blocking=True) for block in group]
    image_GCHW = prepare(
        torch.cat(pieces),
        _tensor([block.partner_VN[view] + start for block, start in zip(group, starts[:-1], strict=True)]),
        _tensor([block.lam_VN[view] for block in group]),
        _tensor([block.box_VN4[view] for block in group]),
        mean=recipe.mean,
        std=recipe.std,
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
