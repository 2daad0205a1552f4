"""Render views ahead in worker processes: where both stages and the evaluation get their batches from.

A task is a list of blocks with their views; its result is one `ViewBatch`, the same however many workers there are.
Workers hold the reader, the recipe and the ring into which they render, and nothing else: they never see a cache, a
network or a device.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from shards.errors import ArtefactError, memory_remedy
from shards.index.reader import ShardReader
from shards.platforms import require_workers
from shards.pool.device_copy import page_lock
from shards.pool.ring import Ring
from shards.pool.workers import in_workers
from shards.text.figures import byte_size
from shards.views.blocks import BlockViews, ViewBatch, most_samples, render_blocks
from shards.views.resample import without_threads
from shards.views.view_recipe import ViewRecipe

Task = Sequence[BlockViews]
PositionT = TypeVar("PositionT")

HELD = 2
"""Batches that a consumer holds: the one in use, and one on its way to the device."""


def render_ahead(
    tasks: Iterable[Task],
    *,
    reader: ShardReader,
    recipe: ViewRecipe,
    workers: int,
    prefetch: int = 2,
    held: int = HELD,
    pin_memory: bool = False,
    died: type[ArtefactError],
) -> Generator[ViewBatch, None, None]:
    """Render the tasks, in their order.

    Workers render into a ring of prefetch · workers + held slots. A batch that is kept longer keeps its slot; when none
    is left, batches come in memory of their own, more slowly.

    Args:
        tasks: drawn lazily, in this process, as workers become free.
        workers: processes; 0 renders in this one. The result does not depend on it.
        prefetch: tasks that each worker may be ahead of the consumer.
        held: batches that the consumer holds at once.
        pin_memory: page-lock the ring, so that a GPU copies from it while the host goes on.
        died: the class of the error when a worker dies, or when there is no memory for the ring.

    Errors:
        ShardError of the first task that cannot be rendered, when its turn comes; `died`.
    """
    require_workers(workers)
    if not workers:
        return (render_blocks(reader, recipe, task) for task in tasks)
    ring = Ring(workers * prefetch + held)

    def render(slot_and_task: tuple[int | None, Task]) -> _Rendered:
        slot, task = slot_and_task
        if slot is None:
            return _Rendered(None, render_blocks(reader, recipe, task))
        out_BHWC = ring.room(slot).reshape(-1, recipe.size, recipe.size, 3)
        batch = render_blocks(reader, recipe, task, out_BHWC)
        return _Rendered(slot, batch._replace(view_BHWC=out_BHWC[:0]))

    slotted_tasks = _with_slots(tasks, ring, recipe, died)
    rendered = in_workers(render, slotted_tasks, workers=workers, ahead=prefetch, start=without_threads, died=died)
    return _lent(rendered, ring, recipe.size, pin_memory=pin_memory)


class _Rendered(NamedTuple):
    """A batch from a worker; its pixels are in the slot, or in the batch itself where there was no slot."""

    slot: int | None
    batch: ViewBatch


def _with_slots(
    tasks: Iterable[Task], ring: Ring, recipe: ViewRecipe, died: type[ArtefactError]
) -> Iterator[tuple[int | None, Task]]:
    for task in tasks:
        num_bytes = most_samples(recipe, task) * recipe.size**2 * 3
        try:
            slot = ring.take(num_bytes)
        except OSError as error:
            raise died(
                f"batches of {byte_size(num_bytes)} that workers render ahead find no memory: {error}; "
                + memory_remedy()
            ) from error
        yield slot, task


def _lent(
    rendered: Generator[_Rendered, None, None], ring: Ring, size: int, *, pin_memory: bool
) -> Generator[ViewBatch, None, None]:
    """The batches with their pixels; no name of this function keeps those while the consumer has them."""
    with contextlib.closing(rendered):
        for number, (slot, batch) in enumerate(rendered):
            if pin_memory and not number:  # only now: what the driver has locked is better not forked
                page_lock(ring.memory)
            if slot is None:
                yield batch
                del batch
            else:
                yield batch._replace(view_BHWC=ring.lend(slot, (len(batch.row_B), size, size, 3)))


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
