"""Encode answers in one thread and commit units in another, so that the device waits for neither codec nor store."""

import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import CacheError
from shards.index.index_checks import UNLABELLED
from shards.index.shard_index import ShardIndex
from shards.views.blocks import ViewBatch
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.largest_logits import FINITE_ADVICE
from teacher_cache.stage1.stage1_events import UnitCommitted
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.unit import MAX_KEPT_LOGIT

# V views of a unit, R rows of its shard, B teacher batch, G rows of it that count, C classes, F fidelity positions.

_AHEAD = 4


class GroupAnswer(NamedTuple):
    """The teacher's answer to one view of a group of blocks; the first G rows of `logit_BC` count.

    `logit_BC` may be on a device that has not computed it yet: the thread waits for it, not the caller.
    """

    view: int  # position in the unit
    row_G: NDArray[np.int32]
    label_G: NDArray[np.int64]
    lam_G: NDArray[np.float32]
    pixel_digest_G: NDArray[np.uint32]
    logit_BC: Tensor

    @classmethod
    def of(cls, blocks: Sequence[ViewBatch], view: int, logit_BC: Tensor) -> "GroupAnswer":
        """Return the answer to one view of a group of blocks."""
        return cls(
            view=view,
            row_G=np.concatenate([block.row_B for block in blocks]),
            label_G=np.concatenate([block.label_B for block in blocks]),
            lam_G=np.concatenate([block.lam_B for block in blocks]),
            pixel_digest_G=np.concatenate([block.pixel_digest_B for block in blocks]),
            logit_BC=logit_BC,
        )


class CommittedUnit(NamedTuple):
    """A unit in the ledger.

    Attributes:
        event: what is told of it, without the renumbered classes.
        label_N, first_N: label and first class of the labelled views that show their own image for the larger part.
    """

    event: UnitCommitted
    label_N: NDArray[np.int64]
    first_N: NDArray[np.int64]


class UnitWriter:
    """Encode and commit one unit at a time: `begin`, `put` …, `commit`; an error of a thread surfaces in a later call.

    A unit is committed while the next one is computed, and before the next one is committed: so at no time are more
    than two units uncommitted. Leaving the `with` lets a commit that has begun end and drops what has not begun;
    nothing is half done.
    """

    def __init__(self, cache: TeacherCache, index: ShardIndex) -> None:
        """Encode for this cache; the index has the keys for messages."""
        self._cache, self._index = cache, index
        self._codec = RecordCodec(cache.spec.record, cache.basis)
        self._encoder, self._committer = (ThreadPoolExecutor(1, name) for name in ("unit-encoder", "unit-committer"))
        self._pending: deque[Future[None]] = deque()
        self._unit: _OpenUnit | None = None
        self._committing: Future[CommittedUnit] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._encoder.shutdown(wait=True, cancel_futures=True)
        self._committer.shutdown(wait=True)

    def begin(self, unit: UnitId) -> None:
        """Start a unit; what was put of one before it that was not handed to `commit` is dropped."""
        self._settle(0)
        self._unit = _OpenUnit(self._cache, unit)

    def put(self, answer: GroupAnswer) -> None:
        """Encode an answer; returns at once unless several answers are waiting already.

        Errors:
            CacheError naming shard, key and view of a row with NaN or infinity (from this or an earlier answer).
        """
        self._settle(_AHEAD - 1)
        self._pending.append(self._encoder.submit(self._encode, self._open(), answer))

    def commit(self) -> None:
        """Begin to commit the unit; the one before must have been `committed`."""
        assert self._committing is None, "at most two units are uncommitted"
        unit = self._open()
        self._settle(0)
        self._unit = None
        self._committing = self._committer.submit(self._commit, unit)

    def committed(self, *, wait: bool) -> CommittedUnit | None:
        """Return the unit whose commit has ended since this was last asked; None when there is none.

        Args:
            wait: for the end of a commit that has begun.

        Errors:
            CacheError naming the unit when the store cannot hold it.
        """
        if self._committing is None or not (wait or self._committing.done()):
            return None
        done, self._committing = self._committing, None
        return done.result()

    def _open(self) -> "_OpenUnit":
        assert self._unit is not None, "begin a unit first"
        return self._unit

    def _settle(self, allowed: int) -> None:
        """Wait until at most `allowed` answers are waiting; raise what went wrong with the others."""
        while len(self._pending) > allowed:
            self._pending.popleft().result()

    def _encode(self, unit: "_OpenUnit", answer: GroupAnswer) -> None:
        num_rows = len(answer.row_G)
        logit_GC = answer.logit_BC.to("cpu", torch.float32)[:num_rows].numpy()
        self._require_storable(unit, answer, logit_GC)
        unit.place("pixel_digest", answer.view, answer.row_G, answer.pixel_digest_G)
        for name, value in self._codec.encode(logit_GC).items():
            unit.place(name, answer.view, answer.row_G, value)
        unit.keep_fidelity(answer.view, answer.row_G, logit_GC)
        own_G = (answer.lam_G >= 0.5) & (answer.label_G != UNLABELLED)
        unit.labels.append(answer.label_G[own_G].astype(np.int64))
        unit.firsts.append(logit_GC.argmax(axis=1)[own_G].astype(np.int64))

    def _require_storable(self, unit: "_OpenUnit", answer: GroupAnswer, logit_GC: NDArray[np.float32]) -> None:
        finite_G: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(logit_GC), axis=1)
        if not finite_G.all():
            raise CacheError(
                f"{self._sample(unit, answer, ~finite_G)}: the teacher's logits are not finite "
                f"({int((~finite_G).sum())} of {len(finite_G)} rows of its batch); nothing of this unit was written; "
                f"{FINITE_ADVICE}"
            )
        wide_G = unit.is_kept(answer.view, answer.row_G) & (np.abs(logit_GC).max(axis=1) > MAX_KEPT_LOGIT)
        if wide_G.any():
            largest = np.abs(logit_GC[wide_G]).max()
            raise CacheError(
                f"{self._sample(unit, answer, wide_G)}: a logit of the teacher is {largest:,.0f} in size; the full "
                f"logits by which a cache measures its records hold up to {MAX_KEPT_LOGIT:,.0f} (float16). Nothing of "
                "this unit was written. Check the teacher's weights; if its logits are meant to be so large, make the "
                "cache with --record dense, which keeps them all in float32 and needs no measurement"
            )

    def _sample(self, unit: "_OpenUnit", answer: GroupAnswer, which_G: NDArray[np.bool_]) -> str:
        """Shard, key and view of the first of some rows, for messages."""
        shard = unit.unit.shard
        key = self._index.key(shard, int(answer.row_G[np.flatnonzero(which_G)[0]]))
        view = unit.unit.view_block * self._cache.views_per_unit + answer.view
        return f"shard {self._index.names[shard]}: key {key!r}, view {view}"

    def _commit(self, unit: "_OpenUnit") -> CommittedUnit:
        try:
            written = self._cache.commit_unit(*unit.unit, unit.complete())
        except OSError as error:
            raise CacheError(
                f"{self._cache.describe(unit.unit)}: cannot be written: {error}; "
                "make room or restore access, then run cache-teacher again: it goes on where it stopped"
            ) from error
        return unit.committed(written)


class _OpenUnit:
    """The arrays of a unit while they fill up."""

    def __init__(self, cache: TeacherCache, unit: UnitId) -> None:
        self.unit, self._began = unit, time.monotonic()
        self.labels: list[NDArray[np.int64]] = []
        self.firsts: list[NDArray[np.int64]] = []
        self._shape = (cache.views_per_unit, int(cache.rows_S[unit.shard]))
        self._arrays: dict[str, NDArray[Any]] = {}
        self._filled_VR = np.zeros(self._shape, np.bool_)
        positions_F2 = cache.fidelity_positions(*unit)
        self._fidelity_VR = np.full(self._shape, -1, np.int64)
        self._fidelity_VR[positions_F2[:, 0], positions_F2[:, 1]] = np.arange(len(positions_F2))
        self._num_positions = len(positions_F2)

    def place(self, name: str, view: int, row_G: NDArray[np.int32], value: NDArray[Any]) -> None:
        """Put the values of some rows of a view into an array."""
        if name not in self._arrays:
            self._arrays[name] = np.zeros((*self._shape, *value.shape[1:]), value.dtype)
        self._arrays[name][view, row_G] = value
        self._filled_VR[view, row_G] = True

    def keep_fidelity(self, view: int, row_G: NDArray[np.int32], logit_GC: NDArray[np.float32]) -> None:
        """Keep the full logits of the rows that the cache wants to be measured by."""
        if not self._num_positions:
            return
        kept_FC = self._arrays.setdefault(
            "fidelity_logit", np.full((self._num_positions, logit_GC.shape[1]), np.nan, np.float32)
        )
        kept_G = self.is_kept(view, row_G)
        kept_FC[self._fidelity_VR[view, row_G[kept_G]]] = logit_GC[kept_G]

    def is_kept(self, view: int, row_G: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return which rows of a view keep their full logits."""
        return np.asarray(self._fidelity_VR[view, row_G] >= 0)

    def complete(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, all rows of all views in place."""
        assert self._filled_VR.all(), "a unit is committed only when every row of every view is there"
        return self._arrays

    def committed(self, written: bool) -> CommittedUnit:
        """Describe the unit once it is in the ledger."""
        label_N, first_N = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (self.labels, self.firsts))
        agreement = float((label_N == first_N).mean()) if len(label_N) else math.nan
        event = UnitCommitted(
            unit=self.unit,
            written=written,
            num_views=self._filled_VR.size,
            seconds=time.monotonic() - self._began,
            label_agreement=agreement,
        )
        return CommittedUnit(event, label_N, first_N)
