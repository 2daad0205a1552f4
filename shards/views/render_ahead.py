"""Views rendered ahead by worker processes: what both stages draw their batches from.

A task is rendered by a function of the stage into a `ViewBatch`; its pixels arrive as a tensor, page-locked where they
are to be copied to a GPU. Workers hold what that function holds (reader and recipe), and nothing else is asked of them:
they never see a cache, a network or a device.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from shards.errors import ArtefactError
from shards.pool.workers import in_workers
from shards.views.blocks import ViewBatch
from shards.views.resample import without_threads

TaskT = TypeVar("TaskT")

# B views of a task; H, W of a view, C channels.


class RenderedTask(NamedTuple, Generic[TaskT]):
    """A task, its batch, and the pixels of the batch as a tensor (the same memory unless they are page-locked)."""

    task: TaskT
    batch: ViewBatch
    view_BHWC: Tensor


def render_ahead(
    render: Callable[[TaskT], ViewBatch],
    tasks: Iterable[TaskT],
    *,
    workers: int,
    ahead: int,
    pin_memory: bool,
    died: type[ArtefactError],
) -> Generator[RenderedTask[TaskT], None, None]:
    """Render the tasks, in their order.

    Args:
        render: a pure function of the task; it runs in the workers, in one thread.
        tasks: drawn lazily, in this process, as workers become free.
        workers: processes; 0 renders here. What comes out does not depend on it.
        ahead: tasks that each worker may be ahead of the consumer.
        pin_memory: hand out page-locked pixels; a thread locks the next while one is used.
        died: the class of the error when a worker dies.

    Errors:
        What `render` raised for a task, when its turn comes; `died`.
    """

    def work(task: TaskT) -> tuple[TaskT, ViewBatch]:
        return task, render(task)

    done = in_workers(work, tasks, workers=workers, ahead=ahead, start=without_threads, died=died)
    return _page_locked(done) if pin_memory else _tensors(done)


_Done = Generator[tuple[TaskT, ViewBatch], None, None]


def _tensors(done: "_Done[TaskT]") -> Generator[RenderedTask[TaskT], None, None]:
    try:
        for task, batch in done:
            yield RenderedTask(task, batch, torch.from_numpy(batch.view_BHWC))
    finally:
        done.close()


def _page_locked(done: "_Done[TaskT]") -> Generator[RenderedTask[TaskT], None, None]:
    def lock(task: TaskT, batch: ViewBatch) -> RenderedTask[TaskT]:
        return RenderedTask(task, batch, torch.from_numpy(batch.view_BHWC).pin_memory())

    before: Future[RenderedTask[TaskT]] | None = None
    with ThreadPoolExecutor(1, "page-lock") as thread:
        try:
            for task, batch in done:
                locked = thread.submit(lock, task, batch)
                if before is not None:
                    yield before.result()
                before = locked
            if before is not None:
                yield before.result()
        finally:
            done.close()
