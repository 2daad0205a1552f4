"""Copying a cache unit by unit: each is read with its digest, written, read back, and only then in the ledger.

A unit is what can be lost: after a kill the same command goes on with the units that the destination lacks. Several
processes may copy different parts into one place at once.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from shards.errors import CacheError, UnreachableError
from teacher_cache.publish.recoding import Recoder
from teacher_cache.publish.selection import Selection
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyEvent:
    """Progress of a copy: one event at the start, one for each unit, one at the end.

    Attributes:
        num_units: selected. num_kept: of these, in the destination before. num_absent: not in the source's ledger.
        num_copied, num_views: units written so far, and their views.
        num_damaged: units of the source that could not be read. problem: why the last one could not, else "".
        finished, stopped: of the last event: whether it is the last, and whether it was told to stop.
        seconds: since the start.
    """

    num_units: int
    num_kept: int
    num_absent: int
    num_copied: int = 0
    num_views: int = 0
    num_damaged: int = 0
    problem: str = ""
    finished: bool = False
    stopped: bool = False
    seconds: float = 0.0


def copy_units(
    source: TeacherCache,
    destination: TeacherCache,
    selection: Selection,
    *,
    workers: int = 4,
    should_stop: Callable[[], bool] = bool,
) -> Iterator[CopyEvent]:
    """Copy the selected units that the destination lacks.

    Args:
        source, destination: as `open_destination` pairs them; the destination's record may be a smaller one.
        workers: units in flight at once, in threads: a far place answers slowly.
        should_stop: asked between units.

    Errors:
        CacheError when the destination cannot be written, or the source cannot be read now. A damaged unit of the
        source raises nothing: it is reported, and stays out of the destination's ledger.
    """
    began = time.monotonic()
    wanted = [UnitId(block, shard) for block in selection.view_blocks for shard in selection.shards]
    in_source, in_copy = source.ledger() != 0, destination.ledger() != 0
    todo = deque(unit for unit in wanted if in_source[unit] and not in_copy[unit])
    event = CopyEvent(
        num_units=len(wanted),
        num_kept=int(sum(bool(in_copy[unit]) for unit in wanted)),
        num_absent=int(sum(not in_source[unit] and not in_copy[unit] for unit in wanted)),
    )
    yield event
    copy = _Copy(source, destination)
    in_flight: deque[Future[str]] = deque()
    units: deque[UnitId] = deque()
    stopped = False
    with ThreadPoolExecutor(workers, "copy") as pool:
        while todo or in_flight:
            stopped = stopped or should_stop()
            while todo and len(in_flight) < workers and not stopped:
                units.append(todo.popleft())
                in_flight.append(pool.submit(copy, units[-1]))
            if not in_flight:
                break
            problem, unit = in_flight.popleft().result(), units.popleft()
            num_views = 0 if problem else source.views_per_unit * int(source.rows_S[unit.shard])
            event = replace(
                event,
                num_copied=event.num_copied + (not problem),
                num_damaged=event.num_damaged + bool(problem),
                num_views=event.num_views + num_views,
                problem=problem,
                seconds=time.monotonic() - began,
            )
            yield event
    yield replace(event, problem="", finished=True, stopped=stopped and bool(todo), seconds=time.monotonic() - began)


class _Copy:
    """Copies one unit; what is wrong with it in the source, or ""."""

    def __init__(self, source: TeacherCache, destination: TeacherCache) -> None:
        self._source, self._destination = source, destination
        self._recoder = None
        if source.spec.record != destination.spec.record:
            self._recoder = Recoder(source, destination.spec.record, destination.basis)

    def __call__(self, unit: UnitId) -> str:
        try:
            stored = self._source.read_unit(*unit)
        except UnreachableError:
            raise
        except CacheError as error:
            return str(error)
        if self._recoder is not None:
            stored = self._recoder(stored, self._destination.fidelity_positions(*unit))
        else:
            stored.pop("fidelity_at", None)  # the destination places it anew, and compares
        if "fidelity_logit" in stored:
            stored["fidelity_logit"] = stored["fidelity_logit"].astype(np.float32)
        self._destination.commit_unit(*unit, stored)
        return ""
