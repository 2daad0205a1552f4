"""The one pool of worker processes: both stages render in it, and make-shards and check-shards write and scan in it.

A worker is forked, so it starts in milliseconds and sees what its work needs (an index of millions of rows, a reader,
a recipe) in the memory it shares with this process; nothing of it is pickled. What a fork copies badly is never used
there: a worker has one thread, hears no signals, and touches neither CUDA nor the store of a cache.

Tasks and results travel as parcels. A worker ends with its parent, however that ends: its socket closes, and once a
second it looks who its parent is. A worker that dies is noticed at once; one that no longer moves is given up after
`SILENT_S` seconds.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, NoReturn, TypeVar

from shards.errors import ArtefactError, ShardError, advisable, memory_remedy, system_words
from shards.platforms import require_workers
from shards.pool import parcels
from shards.pool.worker_process import BEAT_S, NO_TASK, Beats, Done, start_worker

T = TypeVar("T")
R = TypeVar("R")

SILENT_S = 300.0
"""How long a worker may show no sign of life; slow work shows one every second."""
_END_S = 10.0


def in_workers(
    work: Callable[[T], R],
    tasks: Iterable[T],
    *,
    workers: int,
    ahead: int = 2,
    in_order: bool = True,
    start: Callable[[], None] | None = None,
    died: type[ArtefactError] = ArtefactError,
) -> Generator[R, None, None]:
    """Do `work` on every task in worker processes.

    Args:
        work: a function or closure; it is not pickled, tasks and results are.
        tasks: drawn lazily, in this process, as workers become free.
        workers: processes, at most one a task; 0 works here.
        ahead: how many tasks a worker may be ahead of the consumer.
        in_order: results in the order of the tasks; otherwise as they come.
        start: called once in each worker before its first task.
        died: the class of the error when a worker dies, falls silent or cannot be started.

    Errors:
        ValueError where this machine has no workers; what `work` raised for a task, when its turn comes; `died`.
    """
    require_workers(workers)
    if not workers:
        return (work(task) for task in tasks)
    pool = _Pool(work, start, workers, died)
    return _results(pool, iter(tasks), limit=workers * ahead, in_order=in_order)


def over_shards(work: Callable[[int], R], num_shards: int, workers: int) -> Generator[R, None, None]:
    """Do `work` on the number of each shard, in the order in which they are done; alone, this process does it."""
    workers = min(workers, num_shards)
    workers = workers if workers > 1 else 0
    return in_workers(work, range(num_shards), workers=workers, ahead=1, in_order=False, died=ShardError)


def _results(pool: "_Pool[T, R]", tasks: Iterator[T], *, limit: int, in_order: bool) -> Generator[R, None, None]:
    handed_out = taken = 0
    ready: dict[int, Done] = {}
    try:
        while True:
            # What is given and not yet taken is bounded, so that one slow task does not fill the memory with others.
            while handed_out - taken < limit and (task := next(tasks, _NO_MORE)) is not _NO_MORE:
                pool.give(handed_out, task)  # type: ignore[arg-type]  # the mark of the end has been seen to
                handed_out += 1
            if handed_out == taken:
                return
            while not (taken in ready if in_order else ready):
                ready |= {done.number: done for done in pool.wait()}
            done = ready.pop(taken if in_order else next(iter(ready)))
            taken += 1
            if done.failed:
                raise done.value
            yield done.value
    finally:
        pool.close()


_NO_MORE = object()


class _Worker:
    """A worker process as its parent sees it."""

    def __init__(self, pid: int, channel: socket.socket, place: int) -> None:
        self.pid, self.channel, self.place = pid, channel, place
        self.waiting = 0
        self.last_beat, self.silent_s = -1, 0.0


class _Pool(Generic[T, R]):
    """Worker processes, started as tasks come."""

    def __init__(
        self, work: Callable[[T], R], start: Callable[[], None] | None, most: int, died: type[ArtefactError]
    ) -> None:
        self._work, self._start, self._most, self._died = work, start, most, died
        self._workers: list[_Worker] = []
        self._beats = Beats(most)
        self._owner = os.getpid()

    def give(self, number: int, task: T) -> None:
        """Hand a task to the worker with least to do; to a new one while there are fewer than allowed."""
        self._require_own()
        idle = min(self._workers, key=lambda worker: worker.waiting, default=None)
        if idle is None or (idle.waiting and len(self._workers) < self._most):
            idle = self._begin()
        try:
            parcels.send(idle.channel, (number, task))
        except (BrokenPipeError, ConnectionResetError):
            self._raise_death(idle)
        idle.waiting += 1

    def wait(self) -> list[Done]:
        """The results that are there; waits for one when there is none."""
        self._require_own()
        busy = {worker.channel.fileno(): worker for worker in self._workers if worker.waiting}
        poll = select.poll()
        for descriptor in busy:
            poll.register(descriptor, select.POLLIN)
        while not (events := poll.poll(BEAT_S * 1000)):
            for worker in busy.values():
                self._require_alive(worker)
        return [self._receive(busy[descriptor]) for descriptor, _ in events]

    def close(self) -> None:
        """End the workers: after the task they are in, or by force when that takes long."""
        workers, self._workers = self._workers, []
        own = self._owner == os.getpid()  # a child that was forked meanwhile has a copy of the pool, not the pool
        for worker in workers:
            if own:
                with contextlib.suppress(OSError):  # it has closed its side
                    worker.channel.shutdown(socket.SHUT_RDWR)
            worker.channel.close()
        with contextlib.ExitStack() as ends:  # each is waited for, whatever interrupts the wait for another
            for worker in workers if own else ():
                ends.callback(_reap, worker.pid, _END_S)

    def _require_own(self) -> None:
        """Refuse a child that was forked with the pool: it would take the answers that the parent waits for."""
        if self._owner != os.getpid():
            raise self._died(
                f"process {os.getpid()} was forked from process {self._owner}, whose workers these are; iterate in "
                "that process, or begin anew in this one"
            )

    def _begin(self) -> _Worker:
        place = len(self._workers)
        ours, theirs = socket.socketpair()
        try:
            pid = start_worker(self._work, self._start, ours, theirs, self._beats, place)
        except OSError as error:
            ours.close()
            raise self._died(f"a worker process cannot be started: {system_words(error)}") from error
        finally:
            theirs.close()
        worker = _Worker(pid, ours, place)
        self._workers.append(worker)
        return worker

    def _receive(self, worker: _Worker) -> Done:
        try:
            number, value, failed = parcels.receive(worker.channel)
        except (EOFError, ConnectionResetError):
            self._raise_death(worker)
        if number == NO_TASK:
            raise value
        worker.waiting -= 1
        worker.silent_s = 0.0
        return Done(number, value, failed)

    def _require_alive(self, worker: _Worker) -> None:
        """Count the seconds in which this process waited and the worker did not move; those of a pause do not count."""
        beat = self._beats.count(worker.place)
        worker.silent_s = worker.silent_s + BEAT_S if beat == worker.last_beat else 0.0
        worker.last_beat = beat
        if worker.silent_s > SILENT_S:
            os.kill(worker.pid, signal.SIGKILL)
            raise self._died(
                f"a worker process (pid {worker.pid}) did not move for {SILENT_S:g} s and was ended; is a disk or file "
                "system not answering? Run the command again"
                + ("; with --workers 0 there are no workers" if advisable("--workers") else "")
            )

    def _raise_death(self, worker: _Worker) -> NoReturn:
        raise self._died(
            f"a worker process died ({_ending(worker.pid)}). The usual cause is that there was not enough memory: "
            f"{memory_remedy()}; then run the command again"
        )


def _ending(pid: int) -> str:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return "how is not known"
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _reap(pid: int, patience_s: float) -> None:
    """Wait for the end of a child, and bring it about when it takes too long, or when the wait is interrupted."""
    timer = select.poll()
    waited = 0.0
    try:
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if waited >= patience_s:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            pause = 0.001 if waited < 0.02 else 0.02
            timer.poll(pause * 1000)
            waited += pause
    except ChildProcessError:
        return  # somebody else has waited for it
    except BaseException:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
