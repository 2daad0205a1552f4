"""Feed any training loop with views, labels and the teacher's answers.

    with Feed("shards/train", cache="teacher.zarr", batch_size=256, workers=8) as feed:
        for epoch in range(300):
            for batch in feed.epoch(epoch):
                loss = my_loss(net(batch.images), batch.targets, batch.teacher.log_prob(tau))

Every view is rendered, mixed and compared with the digest of what the teacher saw, for every sample. The feed draws
from no global random generator: a batch depends on shards, cache, seed, epoch and step alone.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor

from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex, open_index
from shards.pool.cpus import default_workers
from shards.views.blocks import ViewBatch
from shards.views.rendering import RenderedStream, render_ahead
from shards.views.view_recipe import ViewRecipe, recipe_named
from student.feed.answers import NO_PROBABILITIES, TeacherSource, require_finite_answers, source_of
from student.feed.batch import Batch, ready
from student.feed.cache_check import Views, require_units, views_of_caches, views_without_cache
from student.feed.feed_options import FeedOptions, check_share, check_whole, chosen_repeats, feed_device, whole_number
from student.feed.order import EpochPlan, Order, Position
from student.feed.teaching import CachePlace, Teaching
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.record_format import require_temperature


class Feed:
    """Batches for a training loop: open it in a `with`, iterate over one epoch after the other.

    Attributes:
        index: of the shards, with the classes of who teaches where it has none.
        views: the view recipe, and how many views are cycled through (None: endless).
        order: which samples come when; `steps` of it are the optimiser steps of every epoch.
        device: where the batches are.
        teaching: the open caches that it reads, or the teachers that it runs in the loop, and their weights.
    """

    def __init__(
        self,
        shards: str | Path | ShardIndex,
        *,
        cache: Teaching | CachePlace | Sequence[CachePlace] | None = None,
        teacher: Teacher | Sequence[Teacher] | None = None,
        views: ViewRecipe | None = None,
        views_used: int | None = None,
        batch_size: int = 1024,
        repeats: int | None = None,
        seed: int = 0,
        smoothing: float = 0.1,
        epochs: int | None = None,
        device: str | torch.device | None = None,
        workers: int | None = None,
        options: FeedOptions | None = None,
    ) -> None:
        """Open shards and cache, and check that everything fits, before anything is rendered.

        Args:
            shards: a folder, a tar, a brace range (local, s3://, gs://, https://), or an open index.
            cache: the teacher cache, by place or open; its recipe decides the views. Several: caches of the same views,
                whose teachers teach together. A `Teaching` has weights as well.
            teacher: a loaded teacher, or several, answering in the loop instead. Without both, batches have no teacher.
            views: the view recipe where there is no cache; None is DeiT's at 224 pixels.
            views_used: cycle through the first views; None: all of the cache, or without end.
            batch_size: over all ranks; a multiple of the recipe's block size (16).
            repeats: consecutive views of an image per visit: repeated augmentation; 1 shows each image once an epoch.
                None: 3 as in DeiT, or the largest number below that divides the views (`order.repeats` says which).
            seed: of the order of the epochs. (The views have their own, in the recipe.)
            smoothing: ε of label smoothing in `batch.targets`.
            epochs: how many the loop will ask for; None: any number, and then the cache must be complete.
            device: None takes a GPU where there is one ("cuda" is that of the local rank).
            workers: rendering processes of this rank; 0 renders in this one. None: the CPUs of the rank less one.
            options: of ranks, memory and folders.

        Raises:
            ValueError: naming the argument that does not fit. ShardError: no index, or a damaged one. CacheError: no
                cache, a damaged or incomplete one, one of other shards, or of a machine that renders other pixels.
        """
        options = FeedOptions() if options is None else options
        if not isinstance(options, FeedOptions):
            raise ValueError(f"options: expected a FeedOptions, got {options!r:.60}")
        teaching = Teaching.of(cache, teacher)
        if teaching.caches and views is not None:
            raise ValueError("cache: give a cache or views of your own, not both")
        check_share(smoothing=smoothing)
        check_whole(
            batch_size=batch_size,
            repeats=repeats,
            seed=seed,
            views_used=views_used,
            epochs=epochs,
            workers=workers,
        )
        world = options.world
        self.device = feed_device(device, world)
        if workers is None:
            workers = default_workers(world, beside_network=self.device.type == "cpu")
        self._smoothing, self._scratch = smoothing, options.scratch
        self._turn: object = None
        self._source_turn: object = None
        self._busy = threading.RLock()
        with ExitStack() as stack:
            self.index = shards if isinstance(shards, ShardIndex) else open_index(str(shards), options.shard_cache)
            self.teaching = teaching.open(stack)
            self.index = self.teaching.with_classes(self.index)
            self._labelled = 1.0 - self.index.num_unlabelled / self.index.num_samples
            self.views = self._checked_views(views, views_used)
            repeats = chosen_repeats(self.views) if repeats is None else repeats
            self.order = Order(
                rows_S=self.index.rows_S,
                recipe=self.views.recipe,
                num_views=self.views.num_views,
                seed=seed,
                batch_size=batch_size,
                repeats=repeats,
                world=world,
                accumulate=options.accumulate,
                epochs=epochs,
            )
            for opened in self.teaching.open_caches:
                require_units(opened, self.order)
            self._source = stack.enter_context(self._make_source())
            reader = stack.enter_context(ShardReader(self.index, options.shard_cache).with_room())
            pinned = self.device.type == "cuda" if options.pin is None else options.pin
            start = partial(
                render_ahead,
                reader=reader,
                recipe=self.views.recipe,
                workers=workers,
                prefetch=options.prefetch,
                pin_memory=pinned,
                died=RunError,
            )
            self._stream = RenderedStream(self.order.tasks, start)
            stack.callback(self._stream.close)
            self._stack = stack.pop_all()
        self._closed, self._pid = False, os.getpid()

    def __enter__(self) -> Self:
        """Return the feed; workers start with the first epoch."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers and close what the feed has opened."""
        self.close()

    def close(self) -> None:
        """End the workers and close what the feed has opened; a forked child leaves its parent's feed alone.

        A batch that another thread waits for is finished first; that thread's next one is an error.
        """
        self._closed, self._turn = True, None
        if os.getpid() == self._pid:
            with self._busy:
                self._stack.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: workers, maps and locks belong to this process."""
        raise TypeError("feed: it cannot be pickled or copied; open a Feed in that process (its arguments can)")

    def __len__(self) -> int:
        """Return the batches of every epoch on this rank: optimiser steps × accumulate."""
        return self.order.steps * self.order.accumulate

    @property
    def num_classes(self) -> int:
        """C, the number of classes of the shards."""
        return self.index.num_classes

    @property
    def pixels_checked(self) -> int:
        """Samples whose digest was compared with a cache's so far; a mismatch is an error."""
        return self._source.pixels_checked

    @property
    def teacher_forwards(self) -> int:
        """Images that a teacher in the loop has answered so far."""
        return self._source.teacher_forwards

    @property
    def num_not_finite(self) -> Tensor | None:
        """Those of them with a logit that is not finite, a scalar on the device; None without a teacher in the loop."""
        return self._source.num_not_finite

    @property
    def waited_s(self) -> float:
        """Seconds spent so far waiting for rendered views."""
        return self._stream.waited_s

    def plan(self, epoch: int) -> EpochPlan:
        """Return the whole order of an epoch as arrays, over all ranks; a pure function of index, seed and epoch."""
        return self.order.plan(whole_number("epoch", epoch))

    def epoch(self, epoch: int, *, first_step: int = 0) -> "Epoch":
        """Return the batches of an epoch from optimiser step `first_step` on; skipping steps costs no time.

        Epochs in order share one set of workers, which renders ahead over the end of an epoch. One epoch is open at a
        time: when another is begun, the one before is over.

        Raises:
            ValueError: no such epoch or step. While iterating: CacheError when pixels are not those that the
                teacher saw, or a unit is damaged; ShardError when an image is; RunError when a worker dies, and, at the
                first batch and at the end of an epoch, when a teacher in the loop gave NaN or infinity.
        """
        epoch, first_step = whole_number("epoch", epoch), whole_number("first_step", first_step)
        if self.order.epochs is not None and epoch >= self.order.epochs:
            raise ValueError(f"epoch: expected a number in [0, {self.order.epochs}), got {epoch}")
        if first_step > self.order.steps:
            raise ValueError(f"first_step: expected 0 … {self.order.steps} (steps of an epoch), got {first_step}")
        return Epoch(self, epoch, first_step)

    def loader(self, temperature: float | None = None, *, first_epoch: int = 0) -> "Loader":
        """The epochs one after the other, as trainers of others iterate a loader: every `iter` is the next epoch.

        Args:
            temperature: τ of "teacher_log_prob" in the batches, which are those of `Batch.as_dict`.
            first_epoch: where a resumed run goes on.

        Raises:
            ValueError: a wrong argument, or a τ where no teacher's probabilities are known.
        """
        if temperature is not None:
            require_temperature(temperature)
            if not len(self.teaching):
                raise ValueError("temperature: this feed has no teacher; give Feed(…, cache=…) or leave it out")
            if not all(cache.spec.record.entry.soft for cache in self.teaching.open_caches):
                raise ValueError(NO_PROBABILITIES)
        return Loader(self, temperature, whole_number("first_epoch", first_epoch))

    def batches_from(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; iterating an `Epoch` calls it."""
        if self._closed:
            raise ValueError("feed: it is closed; iterate inside its `with`")
        self._turn = turn = object()
        for step in range(first_step, self.order.steps):
            for micro in range(self.order.accumulate):
                self._require_own_process()
                with self._busy:  # another thread may close the feed
                    yielded = [self._batch(Position(epoch, step, micro), turn)]
                    if (step, micro) == (first_step, 0):
                        require_finite_answers(self.num_not_finite)
                yield yielded.pop()
        require_finite_answers(self.num_not_finite)

    def _batch(self, position: Position, turn: object) -> Batch:
        """Wait for a rendered batch and return it; ValueError where its epoch is over."""
        if self._turn is not turn:
            raise ValueError(f"feed: epoch {position.epoch} is over: another one was begun, or the feed was closed")
        rendered = self._stream.batch(position)
        if self._source_turn is not turn:  # only now: workers are forked before the records are mapped
            cycle = self.order.cycle
            self._source.begin_epoch(position.epoch % cycle if cycle else position.epoch)
            self._source_turn = turn
        return self._ready(rendered, position)

    def _ready(self, rendered: ViewBatch, position: Position) -> Batch:
        """Return a rendered batch as the training loop receives it."""
        images, labels, answer = ready(rendered, self.views.recipe, self._source, self.device, self._labelled)
        return Batch(
            images=images,
            labels=labels,
            answer=answer,
            shard=rendered.shard_B,
            row=rendered.row_B,
            view=rendered.view_B,
            epoch=position.epoch,
            step=position.step,
            micro=position.micro,
            index=self.index,
            smoothing=self._smoothing,
        )

    def _require_own_process(self) -> None:
        """Raise ValueError in a forked child, which has the feed's memory and none of its workers and threads."""
        if os.getpid() != self._pid:
            raise ValueError(
                f"feed: process {os.getpid()} was forked from process {self._pid}, which opened it; iterate there, or "
                "open a Feed of its own in this process"
            )

    def _checked_views(self, views: ViewRecipe | None, views_used: int | None) -> Views:
        """Return the views of the caches, or those of a run without a cache."""
        teaching = self.teaching
        if teaching.caches:
            return views_of_caches(teaching.open_caches, self.index, views_used=views_used)
        return views_without_cache(views or recipe_named("deit"), self.index, teaching.teachers, views_used=views_used)

    def _make_source(self) -> TeacherSource:
        schedule: list[range] = []
        if self.teaching.caches:
            cycle = self.order.cycle
            assert cycle is not None, "the views of a cache end"
            # Two rounds of an endless run: the loader that looks ahead from the last epoch of a round needs the next.
            epochs = cycle if self.order.epochs is not None else 2 * cycle
            schedule = [self.order.views(epoch) for epoch in range(epochs)]
        return source_of(self.teaching, schedule, name_of=partial(_name_of, self.index), scratch=self._scratch)


def _name_of(index: ShardIndex, shard: int, row: int) -> tuple[str, str]:
    """Return the names of a sample's shard and key, for messages."""
    return index.names[shard], index.key(shard, row)


class Epoch:
    """The batches of one epoch, from a step on: an iterable with a length, such as a progress bar wants."""

    def __init__(self, feed: Feed, epoch: int, first_step: int) -> None:
        self._feed, self._epoch, self._first_step = feed, epoch, first_step

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the first step again, every time."""
        return self._feed.batches_from(self._epoch, self._first_step)

    def __len__(self) -> int:
        """Return the number of batches on this rank from the first step to the end of the epoch."""
        return len(self._feed) - self._first_step * self._feed.order.accumulate


class Loader:
    """Batches as plain dicts, an epoch for every `iter`: what other trainers take for a DataLoader.

    Attributes:
        epoch: the next one. One that is left before its first batch is not counted.
    """

    def __init__(self, feed: Feed, temperature: float | None, first_epoch: int) -> None:
        self._feed, self._temperature, self.epoch = feed, temperature, first_epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch = self.epoch
        for batch in self._feed.epoch(epoch):
            self.epoch = epoch + 1
            yield batch.as_dict(self._temperature)

    def __len__(self) -> int:
        return len(self._feed)
