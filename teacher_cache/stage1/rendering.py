"""From units to teacher batches: worker processes render blocks ahead, the main process assembles full batches.

A task is one block in all views of its unit, so that each image is decoded once. Workers start from a clean server
process where the platform has one: a plain fork would copy the threads' locks of zarr, fsspec and CUDA.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shards.errors import ArtefactError
from shards.index.reader import ShardReader
from shards.views.blocks import render_block
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe
from teacher_cache.store.digest import UnitId

# V views of a unit, N rows of a block, G rows of a group of blocks, B teacher batch (G padded), H, W view.

_PREFETCH = 2


class Task(NamedTuple):
    """One block of a unit."""

    unit: UnitId
    block: int


class RenderedBlock(NamedTuple):
    """A block in all views of its unit, and how it is mixed; `view_VNHWC` is a tensor, which processes share."""

    task: Task
    row_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    view_VNHWC: Tensor
    pixel_digest_VN: NDArray[np.uint32]
    partner_VN: NDArray[np.int64]  # position in the block
    lam_VN: NDArray[np.float32]
    box_VN4: NDArray[np.int16]


def render_task(reader: ShardReader, recipe: ViewRecipe, task: Task) -> RenderedBlock:
    """Render one block in every view of its unit; ShardError from reader and decoder."""
    num_views = recipe.block_views
    first = task.unit.view_block * num_views
    batch = render_block(reader, recipe, task.unit.shard, task.block, range(first, first + num_views))
    num_rows = len(batch.row_B) // num_views
    partner_VN = batch.partner_B.reshape(num_views, num_rows).astype(np.int64)
    return RenderedBlock(
        task=task,
        row_N=batch.row_B[:num_rows].astype(np.int64),
        label_N=batch.label_B[:num_rows],
        view_VNHWC=torch.from_numpy(batch.view_BHWC.reshape(num_views, num_rows, *batch.view_BHWC.shape[1:])),
        pixel_digest_VN=batch.pixel_digest_B.reshape(num_views, num_rows),
        partner_VN=partner_VN - num_rows * np.arange(num_views)[:, None],
        lam_VN=batch.lam_B.reshape(num_views, num_rows),
        box_VN4=batch.box_B4.reshape(num_views, num_rows, 4),
    )


class _Tasks(Dataset[RenderedBlock | Exception]):
    """Renders the task that it is indexed with; a map data set, so that a worker holds no state."""

    def __init__(self, reader: ShardReader, recipe: ViewRecipe) -> None:
        self._reader, self._recipe = reader, recipe

    def __getitem__(self, task: Task) -> RenderedBlock | Exception:
        try:
            return render_task(self._reader, self._recipe, task)
        except (ArtefactError, OSError) as error:
            return error  # as a value: the loader would wrap it in a traceback as text


def rendered_blocks(
    tasks: Iterable[Task], reader: ShardReader, recipe: ViewRecipe, *, workers: int, pin_memory: bool = False
) -> Iterator[RenderedBlock]:
    """The rendered tasks, in order; workers stay ahead of the consumer by a bounded number of tasks.

    Args:
        tasks: drawn lazily, in this process, as the workers become free.
        workers: processes; 0 renders here. The bytes do not depend on it.
        pin_memory: hand out page-locked views, for asynchronous copies to a GPU.

    Errors:
        ShardError of the first task that cannot be rendered, when its turn comes.
    """
    several: dict[str, Any] = {}
    if workers:
        several = {
            "prefetch_factor": _PREFETCH,
            "multiprocessing_context": _context(),
            "worker_init_fn": _start_worker,
        }
    loader: DataLoader[RenderedBlock | Exception] = DataLoader(
        _Tasks(reader, recipe),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        **several,
    )
    for rendered in loader:
        if isinstance(rendered, Exception):
            raise rendered
        yield rendered


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["teacher_cache.stage1.rendering"])
    return context


def _start_worker(_: int) -> None:
    # Schedulers and terminals signal the whole group; when to stop is for the main process to decide.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, name="leave-with-parent", daemon=True).start()


def _leave_with_parent() -> None:
    """End this worker when the main process is gone, however it went.

    The loader's own watchdog watches the parent process id, which here is that of the server; and the server lives as
    long as its workers do.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are started by multiprocessing"
    wait([parent.sentinel])
    os._exit(1)


def _unchanged(value: Any) -> Any:
    return value


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
