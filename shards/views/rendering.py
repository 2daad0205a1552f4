"""Render views ahead in worker processes: where both stages and the evaluation get their batches from.

A task is a list of blocks with their views; its result is one `ViewBatch`, the same however many workers there are.
Workers hold the reader and the recipe and nothing else: they never see a cache, a network or a device.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from shards.errors import ArtefactError
from shards.index.reader import ShardReader
from shards.pool.workers import in_workers
from shards.views.blocks import BlockViews, ViewBatch, render_blocks
from shards.views.resample import without_threads
from shards.views.view_recipe import ViewRecipe

Task = Sequence[BlockViews]
PositionT = TypeVar("PositionT")


def render_ahead(
    tasks: Iterable[Task],
    *,
    reader: ShardReader,
    recipe: ViewRecipe,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    died: type[ArtefactError],
) -> Generator[ViewBatch, None, None]:
    """Render the tasks, in their order.

    Args:
        tasks: drawn lazily, in this process, as workers become free.
        workers: processes; 0 renders in this one. The result does not depend on it.
        prefetch: tasks that each worker may be ahead of the consumer.
        pin_memory: return page-locked pixels; a thread locks the next batch while one is used.
        died: the class of the error when a worker dies.

    Errors:
        ShardError of the first task that cannot be rendered, when its turn comes; `died`.
    """

    def render(task: Task) -> ViewBatch:
        return render_blocks(reader, recipe, task)

    batches = in_workers(render, tasks, workers=workers, ahead=prefetch, start=without_threads, died=died)
    return _page_locked(batches) if pin_memory else batches


def _page_locked(batches: Generator[ViewBatch, None, None]) -> Generator[ViewBatch, None, None]:
    def lock(batch: ViewBatch) -> ViewBatch:
        # torch knows its page-locked memory by where it begins: copy these pixels to the device whole, not in slices.
        return batch._replace(view_BHWC=torch.from_numpy(batch.view_BHWC).pin_memory().numpy())

    before: Future[ViewBatch] | None = None
    with ThreadPoolExecutor(1, "page-lock") as thread:
        try:
            for batch in batches:
                locked = thread.submit(lock, batch)
                if before is not None:
                    yield before.result()
                before = locked
            if before is not None:
                yield before.result()
        finally:
            batches.close()


class RenderedStream(Generic[PositionT]):
    """Batches by their position in an order, from one set of workers as long as positions are asked for in order.

    Attributes:
        waited_s: seconds spent so far waiting for a batch.
    """

    def __init__(
        self,
        tasks_from: Callable[[PositionT], Iterator[tuple[PositionT, Task]]],
        start: Callable[[Iterable[Task]], Generator[ViewBatch, None, None]],
    ) -> None:
        """Start nothing before the first batch is asked for.

        Args:
            tasks_from: the positions and tasks of the order from a position on.
            start: begins to render tasks (`render_ahead` with its settings).
        """
        self._tasks_from, self._start = tasks_from, start
        self._batches: Generator[ViewBatch, None, None] | None = None
        self._tasks: Iterator[tuple[PositionT, Task]] = iter(())
        self._following: tuple[PositionT, Task] | None = None  # what the workers take next
        self._positions: deque[PositionT] = deque()  # of the batches that they have taken
        self.waited_s = 0.0

    def batch(self, position: PositionT) -> ViewBatch:
        """Return the batch of a position; where another one is next, end the workers and start new ones here.

        Errors: as `render_ahead`, after which the workers are gone.
        """
        began = time.perf_counter()
        try:
            batch = self._next(position)
            if batch is None:
                self.close()
                self._tasks = self._tasks_from(position)
                self._following = next(self._tasks, None)
                self._batches = self._start(self._drawn())
                batch = self._next(position)
        except BaseException:
            self.close()
            raise
        finally:
            self.waited_s += time.perf_counter() - began
        assert batch is not None, "an order that is entered at a position begins with it"
        return batch

    def close(self) -> None:
        """End the workers; a later batch starts new ones."""
        batches, self._batches = self._batches, None
        self._positions.clear()
        self._following = None
        if batches is not None:
            batches.close()

    def _next(self, position: PositionT) -> ViewBatch | None:
        """Return the next batch of the workers if it is that of the position; nothing is rendered to find out."""
        if self._batches is None or self._upcoming != position:
            return None
        batch = next(self._batches)
        self._positions.popleft()
        return batch

    @property
    def _upcoming(self) -> PositionT | None:
        """The position of the next batch; None after the last."""
        if self._positions:
            return self._positions[0]
        return self._following[0] if self._following is not None else None

    def _drawn(self) -> Iterator[Task]:
        while self._following is not None:
            position, task = self._following
            self._positions.append(position)
            self._following = next(self._tasks, None)
            yield task
