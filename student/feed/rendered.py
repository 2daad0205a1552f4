"""Rendered batches by their place in the order, from one set of workers as long as places follow each other."""

import time
from collections.abc import Generator

from shards.index.reader import ShardReader
from student.feed.loader import LoadedBatch, batches
from student.feed.order import Order


class RenderedStream:
    """The batches of an order; `close` it, which ends the workers.

    Attributes:
        waited_s: seconds spent so far waiting for a batch.
    """

    def __init__(self, order: Order, reader: ShardReader, *, workers: int, prefetch: int, pin: bool) -> None:
        """Start nothing before the first batch is asked for."""
        self._order, self._reader = order, reader
        self._workers, self._prefetch, self._pin = workers, prefetch, pin
        self._stream: Generator[LoadedBatch, None, None] | None = None
        self._next_place = (0, 0, 0)
        self.waited_s = 0.0

    def batch(self, epoch: int, step: int, micro: int) -> LoadedBatch:
        """The batch of that place; workers that stand elsewhere are ended and others begin at the step.

        Errors: as `loader.batches`, after which the workers are gone.
        """
        began = time.perf_counter()
        try:
            if self._stream is None or self._next_place != (epoch, step, micro):
                assert micro == 0, "a step is entered at its first micro-batch"
                self.close()
                self._stream = batches(
                    self._order.items(epoch, step),
                    reader=self._reader,
                    recipe=self._order.recipe,
                    workers=self._workers,
                    prefetch=self._prefetch,
                    pin_memory=self._pin,
                )
            loaded = next(self._stream)
        except BaseException:
            self.close()
            raise
        finally:
            self.waited_s += time.perf_counter() - began
        self._next_place = self._after(epoch, step, micro)
        return loaded

    def close(self) -> None:
        """End the workers; a later batch begins others."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _after(self, epoch: int, step: int, micro: int) -> tuple[int, int, int]:
        if micro + 1 < self._order.accumulate:
            return epoch, step, micro + 1
        return (epoch, step + 1, 0) if step + 1 < self._order.steps else (epoch + 1, 0, 0)
