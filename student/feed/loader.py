"""Worker processes that render the batches of a run, in the order of the plan.

A worker item is one micro-batch of one rank: a list of block-views that the worker reads, decodes (each image once per
run of consecutive views), augments and digests. The items of all remaining epochs are one stream, so the workers live
as long as the run and never wait at the end of an epoch. Workers hold the shard reader and the recipe and nothing else:
they never see the cache, and a forked worker never touches a remote store. What a batch holds depends on its items
alone; the number of workers only decides when it is ready.

Legend: B views of a micro-batch; H, W, C of a view.
"""

import atexit
import contextlib
import signal
import threading
import warnings
import weakref
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shards.errors import ArtefactError, RunError
from shards.index.reader import ShardReader
from shards.views.blocks import concat, render_block
from shards.views.view_recipe import ViewRecipe
from student.feed.epoch_plan import Items


class LoadedBatch(NamedTuple):
    """A micro-batch in the main process: pixels as a tensor in shared memory, everything else NumPy."""

    shard_B: NDArray[np.int32]
    row_B: NDArray[np.int32]
    view_B: NDArray[np.int32]
    label_B: NDArray[np.int64]
    pixel_digest_B: NDArray[np.uint32]
    partner_B: NDArray[np.int32]
    lam_B: NDArray[np.float32]
    box_B4: NDArray[np.int16]
    view_BHWC: Tensor


class _Failure(NamedTuple):
    """An error a worker met, carried as a value: raised in the worker it would reach the user as a traceback."""

    error: ArtefactError


class _Rendered(Dataset[LoadedBatch | _Failure]):
    """Maps a plan's items to their batch; the only code that runs in the workers."""

    def __init__(self, reader: ShardReader, recipe: ViewRecipe) -> None:
        self.reader = reader
        self.recipe = recipe

    def __getitem__(self, items: Items) -> LoadedBatch | _Failure:
        try:
            return render_items(self.reader, self.recipe, items)
        except ArtefactError as error:
            return _Failure(error)


def render_items(reader: ShardReader, recipe: ViewRecipe, items: Items) -> LoadedBatch:
    """The batch of some block-views, in their order; a pure function of (shards, recipe, items)."""
    groups = items.groups(recipe.block_views)
    batch = concat([render_block(reader, recipe, shard, block, views) for shard, block, views in groups])
    return LoadedBatch(
        shard_B=batch.shard_B,
        row_B=batch.row_B,
        view_B=batch.view_B,
        label_B=batch.label_B,
        pixel_digest_B=batch.pixel_digest_B,
        partner_B=batch.partner_B,
        lam_B=batch.lam_B,
        box_B4=batch.box_B4,
        view_BHWC=torch.from_numpy(batch.view_BHWC),
    )


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
    dataset = _Rendered(reader, recipe)
    stream = _stream(items, dataset, workers=workers, prefetch=prefetch, pin_memory=pin_memory)
    # At exit multiprocessing asks workers to end by a SIGTERM, which ours do not hear, and waits: end them before. A
    # child of multiprocessing runs its finalizers and no atexit; a main process has to be ahead of torch's atexit.
    Finalize(stream, _close, args=(weakref.ref(stream),), exitpriority=10)
    _OPEN.add(stream)
    return stream


def _stream(
    items: Iterable[Items], dataset: _Rendered, *, workers: int, prefetch: int, pin_memory: bool
) -> Generator[LoadedBatch, None, None]:
    with warnings.catch_warnings():
        # How many workers is the user's choice; torch compares it with the cores this process may use now.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        # Forked workers touch neither the threads of the main process nor what those may hold locked.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        loader: DataLoader[LoadedBatch | _Failure] = DataLoader(
            dataset,
            batch_size=None,
            sampler=items,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            # Fork, by name: the default depends on the Python version, and spawned workers each import torch again.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_outlive_signals,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(0),
        )
        with _keeping_child_handler():
            iterator = iter(loader)
    try:
        while True:
            try:
                batch = next(iterator, None)
            except (RuntimeError, OSError, EOFError) as error:  # whatever a dead worker's pipe happens to give
                if not workers:
                    raise
                raise _death(error) from error
            if batch is None:
                return
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    finally:
        # Workers end when the iterator goes; a traceback that somebody keeps would keep this frame.
        del iterator, loader


@contextlib.contextmanager
def _keeping_child_handler() -> Iterator[None]:
    """Take torch's SIGCHLD handler out again.

    It raises wherever the main process happens to be when a worker dies, in the middle of a step or a checkpoint.
    Without it the death is seen where the next batch is asked for, within five seconds.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _death(error: Exception) -> RunError:
    return RunError(
        f"a loader worker died: {error}. Usual causes: out of memory, or /dev/shm too small for the batches that are "
        "prepared ahead; lower --workers or the batch size, or enlarge /dev/shm"
    )


_OPEN: "weakref.WeakSet[Generator[LoadedBatch, None, None]]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for stream in list(_OPEN):
        stream.close()


def _close(stream: "weakref.ref[Generator[LoadedBatch, None, None]]") -> None:
    alive = stream()
    if alive is not None:
        alive.close()


def _as_it_is(batch: Any) -> Any:
    return batch


def _outlive_signals(worker: int) -> None:
    """A scheduler signals the whole process group: the main process finishes its step, so it still needs its workers.

    Workers end with the main process in any case: they watch their parent.
    """
    for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
