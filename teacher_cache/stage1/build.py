"""Stage 1: the teacher runs once over every view and its answers become the cache.

Worker processes render, this thread feeds the device, a second thread encodes, and a third one commits a unit while the
next one is computed. A process needs no others: it walks the missing units in its own order and skips those that others
have committed by then, or have begun: on a disk a process holds a lock for each unit that it has begun. A process that
is killed loses at most two units: the one that it was committing and the one that it was computing. The same command
finishes the job, whatever the number of processes.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from shards.errors import CacheError, UnreachableError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.locks import NumberedLocks
from shards.views.blocks import BlockViews, ViewBatch
from shards.views.mixing import num_blocks
from shards.views.rendering import render_ahead
from shards.views.view_recipe import require_whole_groups
from shards.world import World
from teacher_cache.network.device import own_threads
from teacher_cache.network.heap import keep_freed_memory
from teacher_cache.network.teacher import Teacher
from teacher_cache.stage1.agreement import ClassAgreement, disagrees, mean_agreement
from teacher_cache.stage1.block_group import BlockGroup
from teacher_cache.stage1.encoding import GroupAnswer, UnitWriter
from teacher_cache.stage1.stage1_events import (
    BatchDone,
    BuildEvent,
    BuildFinished,
    SnapshotDamaged,
    Started,
    UnitCommitted,
    UnitDamaged,
    UnitsElsewhere,
    UnitSkipped,
    UnitStarted,
)
from teacher_cache.stage1.walk import share, walk_order
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.header import require_index

_ON_GPU, _ON_CPU = 256, 64  # views of a forward where nobody chose
BEGUN_NAME = ".begun.lock"
"""In the folder of a cache that is not complete: the locks of the units that processes have begun."""
PATIENCE_S = 60.0
"""A unit that another process has begun is waited for at least so long, and for five times the longest unit here."""
_POLL_S = 0.2


def default_batch_size(device_type: str, most_rows: int, block_size: int) -> int:
    """Return the views of a forward when nobody chose them: a multiple of the block size.

    On a GPU up to 256, as few as fill the last batch of the largest shard; on other devices 64.

    Args:
        most_rows: samples of the largest shard, at least 1.
    """
    on_gpu = device_type == "cuda"
    most = max(1, (_ON_GPU if on_gpu else _ON_CPU) // block_size) * block_size
    if not on_gpu:
        return most
    even = -(-most_rows // -(-most_rows // most))
    return -(-even // block_size) * block_size


def build_cache(
    cache: TeacherCache,
    index: ShardIndex,
    teacher: Teacher,
    *,
    reader: ShardReader,
    world: World,
    workers: int,
    batch_size: int,
    should_stop: Callable[[], bool] = bool,
) -> Iterator[BuildEvent]:
    """Compute every missing unit of the cache; the last event is `BuildFinished`.

    First it reads this rank's share of the committed units; damaged ones are computed again. On the CPU this process
    keeps the memory that a forward frees from now on (`keep_freed_memory`).

    Args:
        cache: writable, of the same spec as index and teacher.
        reader: of the index.
        world: which part of the missing units this process begins with.
        workers: rendering processes; 0 renders in this one.
        batch_size: views in a teacher forward, a multiple of the recipe's block size. Within a unit and view, rows
            go to the teacher in block order; the last batch is padded, so that each forward has this one shape.
        should_stop: asked between forwards; True drops the unit that is being computed and ends the walk.

    Errors:
        ValueError for a wrong setting; CacheError naming the unit, or shard and key, that cannot be computed or
        written; ShardError naming the sample that cannot be read.
    """
    recipe = cache.spec.recipe
    require_whole_groups(batch_size, recipe)
    if workers < 0:
        raise ValueError(f"workers: expected at least 0, got {workers}")
    _require_same(cache, index, teacher)
    if teacher.device.type == "cpu":
        keep_freed_memory()
    yield from _release_damaged(cache, world, should_stop)
    missing = [UnitId(*unit) for unit in cache.missing()]
    rows = sum(int(cache.rows_S[unit.shard]) for unit in share(missing, world.rank, world.size))
    num_units = cache.num_view_blocks * cache.num_shards
    yield Started(num_units=num_units, missing_units=len(missing), share_views=rows * cache.views_per_unit)
    folder = cache.objects.place.folder
    lock_path = folder / BEGUN_NAME if folder is not None else None
    with (
        own_threads(teacher.device, workers, world),
        UnitWriter(cache, index) as writer,
        NumberedLocks(lock_path if missing else None) as locks,
        ThreadPoolExecutor(1, "unit-asker") as asker,
    ):
        run = _Run(cache, index, teacher, batch_size, should_stop, locks, asker if folder is None else None)
        units = walk_order(missing, world)
        while units and not should_stop():
            blocks = render_ahead(
                run.tasks(units),
                reader=reader,
                recipe=recipe,
                workers=workers,
                held=2 * batch_size // recipe.block_size + 1,  # two groups of blocks, and the first of the next unit
                pin_memory=teacher.device.type == "cuda",
                died=CacheError,
            )
            yield from run.walk(blocks, writer)
            units = yield from run.left_by_others()
    yield run.finished(lock_path)


class _Run:
    """The walk of one process: what it still has to compare with the ledger, and its counters."""

    def __init__(
        self,
        cache: TeacherCache,
        index: ShardIndex,
        teacher: Teacher,
        batch_size: int,
        should_stop: Callable[[], bool],
        locks: NumberedLocks,
        asker: ThreadPoolExecutor | None,
    ) -> None:
        """Begin; `asker` asks an object store, which takes a while, and is None for a disk."""
        self.locks, self.asker = locks, asker
        self.elsewhere: list[UnitId] = []
        self.longest_s = 0.0
        self.cache, self.index, self.teacher, self.batch_size = cache, index, teacher, batch_size
        self.should_stop = should_stop
        self.recipe = cache.spec.recipe
        self.skipped: list[UnitId] = []
        self.agreement: list[float] = []
        self.class_agreement = ClassAgreement(teacher.num_classes)
        self.views_done, self.forwards_before, self.began = 0, teacher.num_forwards, time.monotonic()

    def unit_of(self, block: ViewBatch) -> UnitId:
        """Return the unit that a rendered block is part of."""
        return UnitId(int(block.view_B[0]) // self.recipe.block_views, int(block.shard_B[0]))

    def tasks(self, order: Sequence[UnitId]) -> Iterator[list[BlockViews]]:
        """Yield the blocks of each unit that is still missing when its turn to be rendered comes, and hold its lock.

        A task is one block in all views of its unit, so that each image is decoded once.
        """
        following = list(map(self._asked_for, order[:1]))
        for number, unit in enumerate(order):
            if self.should_stop():
                return
            is_committed, following = following[0], list(map(self._asked_for, order[number + 1 : number + 2]))
            if not self.locks.take(self._number(unit)):
                self.elsewhere.append(unit)
                continue
            if is_committed():
                self.locks.release(self._number(unit))
                self.skipped.append(unit)
                continue
            first = unit.view_block * self.recipe.block_views
            views = range(first, first + self.recipe.block_views)
            for block in range(num_blocks(self.recipe, int(self.cache.rows_S[unit.shard]))):
                yield [BlockViews(unit.shard, block, views)]

    def walk(self, blocks: Iterator[ViewBatch], writer: UnitWriter) -> Iterator[BuildEvent]:
        """Compute and commit the units of rendered blocks, until told to stop."""
        for unit, unit_blocks in groupby(blocks, key=self.unit_of):
            yield from self.compute(unit, unit_blocks, writer)
            if self.should_stop():
                break
        yield from self.committed(writer, wait=True)
        yield from self.skips()

    def left_by_others(self) -> Generator[BuildEvent, None, list[UnitId]]:
        """Wait for the units that other processes have begun; returns those that one leaves, held by this one.

        The others stay elsewhere, to be waited for again. A process that holds a unit for too long may hang: then this
        one computes it as well, as any two may.
        """
        units, self.elsewhere = self.elsewhere, []
        until = time.monotonic() + max(PATIENCE_S, 5 * self.longest_s)
        if units:
            yield UnitsElsewhere(num_units=len(units))
        while units and not self.should_stop():
            committed = [unit for unit in units if self.cache.is_committed(*unit)]
            yield from (UnitSkipped(unit=unit) for unit in committed)
            units = [unit for unit in units if unit not in committed]
            if time.monotonic() > until:
                self.locks.close()
            left = [unit for unit in units if self.locks.take(self._number(unit))]
            if left or not units:
                self.elsewhere = [unit for unit in units if unit not in left]
                return left
            time.sleep(_POLL_S)
        return []

    def compute(self, unit: UnitId, blocks: Iterator[ViewBatch], writer: UnitWriter) -> Iterator[BuildEvent]:
        """Run the teacher over one unit and begin to commit it, unless another process has by now."""
        yield from self.skips()
        is_committed = self._asked_for(unit)
        if self.asker is None and is_committed():
            yield self._left_out(unit, blocks)
            return
        yield UnitStarted(unit=unit)
        writer.begin(unit)
        for number, together in enumerate(_groups(blocks, self.batch_size // self.recipe.block_size)):
            group = BlockGroup(together, self.recipe, self.teacher.device)
            for view in range(self.recipe.block_views):
                if self.should_stop():
                    return
                yield self._forward(unit, group, view, writer)
                yield from self.committed(writer, wait=False)
                if self.asker is not None and not number and not view and is_committed():
                    yield self._left_out(unit, blocks)
                    return
        yield from self.committed(writer, wait=True)
        writer.commit()

    def _asked_for(self, unit: UnitId) -> Callable[[], bool]:
        """Ask whether a unit is committed: of a disk when the answer is wanted, of an object store in a thread now."""
        if self.asker is None:
            return partial(self.cache.is_committed, *unit)
        return self.asker.submit(self.cache.is_committed, *unit).result

    def _left_out(self, unit: UnitId, blocks: Iterator[ViewBatch]) -> UnitSkipped:
        """Drop the blocks of a unit that another process has committed."""
        for _ in blocks:
            pass
        self.locks.release(self._number(unit))
        return UnitSkipped(unit=unit)

    def committed(self, writer: UnitWriter, *, wait: bool) -> Iterator[UnitCommitted]:
        """Yield the event of the unit before, as soon as it is committed."""
        done = writer.committed(wait=wait)
        if done is not None:
            self.locks.release(self._number(done.event.unit))
            self.longest_s = max(self.longest_s, done.event.seconds)
            self.agreement.append(done.event.label_agreement)
            self.class_agreement.add(done.label_N, done.first_N)
            yield replace(done.event, renumbered=self.class_agreement.renumbered())

    def _forward(self, unit: UnitId, group: BlockGroup, view: int, writer: UnitWriter) -> BatchDone:
        logit_BC = self.teacher.logits(group.prepared(view, self.batch_size))
        answer = GroupAnswer.of(group.view(view), view, logit_BC)
        writer.put(answer)
        self.views_done += len(answer.row_G)
        return BatchDone(unit=unit, num_views=len(answer.row_G), views_done=self.views_done)

    def _number(self, unit: UnitId) -> int:
        """The number of a unit's lock: that of its place in the cache, which stays when the cache grows."""
        return unit.view_block * self.cache.num_shards + unit.shard

    def finished(self, lock_path: Path | None) -> BuildFinished:
        """Return the last event, and remove the file of locks of a complete cache, also one that a killed run left."""
        agreement = mean_agreement(self.agreement)
        num_missing = len(self.cache.missing())
        if lock_path is not None and not num_missing and lock_path.exists():
            lock_path.unlink(missing_ok=True)  # another process may be faster
        return BuildFinished(
            stopped=self.should_stop(),
            num_forwards=self.teacher.num_forwards - self.forwards_before,
            views_done=self.views_done,
            seconds=time.monotonic() - self.began,
            missing_units=num_missing,
            label_agreement=agreement,
            labels_disagree=disagrees(agreement, self.teacher.num_classes),
            renumbered=self.class_agreement.renumbered(),
        )

    def skips(self) -> Iterator[UnitSkipped]:
        skipped, self.skipped = self.skipped, []
        for unit in skipped:
            yield UnitSkipped(unit=unit)


def _groups(blocks: Iterator[ViewBatch], size: int) -> Iterator[list[ViewBatch]]:
    group: list[ViewBatch] = []
    for block in blocks:
        group.append(block)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _require_same(cache: TeacherCache, index: ShardIndex, teacher: Teacher) -> None:
    require_index(cache.header, index, cache.url)
    expected, got = cache.spec.teacher, teacher.spec
    if expected != got:
        raise CacheError(f"{cache.url}: teacher: expected {expected}, got {got}; use that the cache was made with")


def _release_damaged(cache: TeacherCache, world: World, should_stop: Callable[[], bool]) -> Iterator[BuildEvent]:
    """Take units of this rank's share that do not verify out of the ledger; look at what a reader starts from."""
    missing = set(cache.missing())
    problem = cache.units.ledger.snapshot_problem()
    if problem:
        yield SnapshotDamaged(reason=problem)
    units = [UnitId(b, s) for b in range(cache.num_view_blocks) for s in range(cache.num_shards)]
    for unit in units[world.rank :: world.size]:
        if tuple(unit) in missing or should_stop():
            continue
        try:
            cache.read_unit(*unit)
        except UnreachableError:
            raise
        except CacheError as error:
            cache.invalidate(*unit)
            yield UnitDamaged(unit=unit, reason=str(error))
