"""The pool: results in order, bounded, and whatever happens to a worker or to its parent, nothing hangs or stays."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import ArtefactError, RunError, ShardError
from shards.pool import worker_process
from shards.pool import workers as pool
from shards.pool.workers import in_workers

ROOT = Path(__file__).parent.parent
OTHER = 2


def _all_children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


_BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def _those_of_other_tests() -> None:
    """Servers and trackers that earlier tests of this process have started are not workers."""
    _BEFORE.clear()
    _BEFORE.update(_all_children())


def _children() -> list[int]:
    return sorted(_all_children() - _BEFORE)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_are_those_of_the_work_in_the_order_of_the_tasks(workers: int) -> None:
    """The number of workers decides when, never what."""
    found = list(in_workers(lambda n: (n, np.full(n, n)), range(40), workers=workers))
    assert [n for n, _ in found] == list(range(40))
    assert all(array.shape == (n,) and (array == n).all() for n, array in found)


def test_out_of_order_every_result_comes_once() -> None:
    def work(n: int) -> int:
        time.sleep(0.5 if n == 0 else 0)
        return n

    found = list(in_workers(work, range(20), workers=2, ahead=1, in_order=False))
    assert sorted(found) == list(range(20)) and found[0] != 0


def test_arrays_arrive_writable_and_outlive_the_pool() -> None:
    """The consumer may keep a batch for ever and write into it."""
    arrays = list(in_workers(lambda n: np.full((50, 1000), n), range(5), workers=2))
    for n, array in enumerate(arrays):
        array += 1
        assert (array == n + 1).all() and array.ctypes.data % 64 == 0


@pytest.mark.parametrize("in_order", [True, False])
def test_tasks_are_drawn_lazily_and_results_are_bounded(in_order: bool) -> None:
    asked: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            asked.append(1)
            yield len(asked)

    stream = in_workers(lambda n: n, endless(), workers=2, ahead=3, in_order=in_order)
    for _ in range(5):
        next(stream)
    assert len(asked) <= 5 + 2 * 3
    stream.close()
    assert _children() == []


def test_no_more_workers_than_tasks_and_none_when_all_is_done() -> None:
    stream = in_workers(lambda _: os.getpid(), range(2), workers=50)
    pids = {next(stream)}
    assert len(_children()) <= 2
    pids |= set(stream)
    assert os.getpid() not in pids and _children() == []


def test_the_work_is_not_pickled() -> None:
    """An index of fourteen million rows reaches the workers by the fork, at no cost."""

    class Heavy:
        def __reduce__(self) -> tuple[object, ...]:
            raise AssertionError("pickled")

    heavy = Heavy()
    assert list(in_workers(lambda n: heavy is not None and n, range(3), workers=2)) == [0, 1, 2]


def test_an_error_comes_as_itself_when_its_turn_comes() -> None:
    def work(n: int) -> int:
        if n == 3:
            raise ShardError("shard 3 is damaged")
        return n

    stream = in_workers(work, range(9), workers=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ShardError, match=r"^shard 3 is damaged$"):
        next(stream)
    assert _children() == []


def test_an_error_that_does_not_pickle_and_too_little_memory_are_errors_too() -> None:
    def odd(_: int) -> int:
        error = RuntimeError("odd")
        error.held = lambda: 0  # type: ignore[attr-defined]
        raise error

    def greedy(_: int) -> int:
        raise MemoryError

    with pytest.raises(RuntimeError, match="odd"):
        list(in_workers(odd, range(3), workers=1))
    with pytest.raises(ArtefactError, match="memory; lower --workers"):
        list(in_workers(greedy, range(3), workers=1))


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_worker_that_dies_is_an_error_at_once(how: str) -> None:
    def work(n: int) -> int:
        if n == 2:
            os.kill(os.getpid(), signal.SIGKILL) if how == "kill" else os._exit(7)
        return n

    began = time.monotonic()
    with pytest.raises(RunError, match=r"died \((killed by SIGKILL|exit code 7)\).*lower --workers"):
        list(in_workers(work, range(9), workers=2, died=RunError))
    assert time.monotonic() - began < 10 and _children() == []


def test_a_worker_that_no_longer_moves_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer, a lock that a fork copied: an error, not a run that waits for ever."""
    monkeypatch.setattr(pool, "SILENT_S", 0.3)
    monkeypatch.setattr(pool, "BEAT_S", 0.1)
    monkeypatch.setattr(worker_process, "BEAT_S", 0.1)

    def work(n: int) -> int:
        if n == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return n

    with pytest.raises(RunError, match=r"did not move for 0\.3 s"):
        list(in_workers(work, range(3), workers=1, died=RunError))
    assert _children() == []


def test_slow_work_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SILENT_S", 0.3)
    monkeypatch.setattr(pool, "BEAT_S", 0.1)
    monkeypatch.setattr(worker_process, "BEAT_S", 0.1)

    def work(n: int) -> int:
        time.sleep(0.8)
        return n

    assert list(in_workers(work, range(1), workers=1)) == [0]


def test_too_many_open_files_are_an_error_that_says_so() -> None:
    def work(_: int) -> Any:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return np.zeros(9)

    with pytest.raises(OSError, match="open files"):
        list(in_workers(work, range(3), workers=1))
    assert _children() == []


FEW = """
import os, resource, sys
import numpy as np
from shards.errors import system_words
from shards.pool.workers import in_workers
held = []
def hold():
    try:
        while True:
            held.append(open(os.devnull))
    except OSError:
        pass
def work(n):
    if ending != "keeps":
        hold()
    if ending == "refuses":
        raise ValueError("x" * 100_000)
    return np.zeros(100_000)
ending = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
results = in_workers(work, range(2), workers=1, ahead=1)
try:
    next(results)
    hold()
    next(results)
except OSError as error:
    print(system_words(error))
"""


@pytest.mark.parametrize("ending", ["answers", "refuses", "keeps"])
def test_too_many_open_files_are_no_death_of_a_worker(ending: str) -> None:
    """In the worker, with a result or an error that needs one, and in the process that takes the result."""
    done = subprocess.run([sys.executable, "-c", FEW, ending], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "too many open files; raise the limit (`ulimit -n`), or use fewer --workers\n"


def test_results_that_are_kept_hold_no_open_file() -> None:
    """A scan of a thousand shards keeps a result of each."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    kept = [(array, open_files()) for array in in_workers(lambda n: np.full(20_000, n), range(40), workers=1)]
    assert open_files() == before and max(count for _, count in kept) <= before + 2
    assert all((array == n).all() for n, (array, _) in enumerate(kept))


def test_the_pool_answers_the_process_that_began_it_alone() -> None:
    """A forked child would take what the parent waits for."""
    stream = in_workers(lambda n: n, range(50), workers=2, died=RunError)
    assert next(stream) == 0
    child = os.fork()
    if child == 0:
        try:
            next(stream)
        except RunError as error:
            os._exit(7 if "was forked from process" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert list(stream) == list(range(1, 50))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ShardError])
def test_an_interrupt_while_the_pool_ends_leaves_no_process(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker is waited for, whatever interrupts the wait for another."""
    calls: list[int] = []
    wait = os.waitpid

    def interrupted(pid: int, options: int) -> tuple[int, int]:
        calls.append(pid)
        if len(calls) == 1:
            raise error("now")
        return wait(pid, options)

    stream = in_workers(lambda n: n, range(50), workers=3)
    next(stream)
    monkeypatch.setattr(os, "waitpid", interrupted)
    with pytest.raises(error, match="now"):
        stream.close()
    monkeypatch.undo()
    assert _children() == [] and len(set(calls)) == 3


class _TwoWordsError(ShardError):
    """Its pickle does not open: it is made of two arguments and keeps one."""

    def __init__(self, shard: str, what: str) -> None:
        super().__init__(f"{shard}: {what}")


class _OddOSError(OSError):
    """The same, of the operating system's kind."""

    def __init__(self, path: str, *, code: int) -> None:
        super().__init__(code, f"no room at {path}")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ShardError("a.tar: cut"), ShardError, "a.tar: cut"),
        (FileNotFoundError(2, "No such file", "x"), FileNotFoundError, "[Errno 2] No such file: 'x'"),
        (_TwoWordsError("a.tar", "cut"), ShardError, "a.tar: cut"),
        (_OddOSError("x", code=28), OSError, "[Errno 28] no room at x"),
        (LookupError(lambda: 0), RuntimeError, "LookupError: <function"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_arrives_as_its_nearest_kind(error: Exception, kind: type[Exception], said: str) -> None:
    """One whose pickle does not open would end the parent instead."""

    def fail(_: int) -> int:
        raise error

    with pytest.raises(Exception, match=re.escape(said)) as caught:
        list(in_workers(fail, range(3), workers=1))
    assert type(caught.value) is kind
    assert _children() == []


def test_what_is_not_for_workers_is_closed_in_each(tmp_path: Path) -> None:
    """A large file that its owner lets go would otherwise stay on the disk for as long as a worker lives."""

    class Held:
        def __init__(self) -> None:
            self.descriptor = os.open(tmp_path / "big", os.O_CREAT | os.O_RDWR)

        def close(self) -> None:
            os.close(self.descriptor)

    held = Held()
    worker_process.close_in_workers(held)
    assert list(in_workers(lambda fd: os.path.exists(f"/proc/self/fd/{fd}"), [held.descriptor], workers=1)) == [False]
    assert os.fstat(held.descriptor)
    held.close()


def test_a_copy_of_the_pool_in_a_forked_child_does_not_end_the_workers() -> None:
    """Others fork, too, and their copies of the stream are thrown away with them."""
    stream = in_workers(lambda n: n, range(50), workers=2)
    assert next(stream) == 0
    child = os.fork()
    if child == 0:
        stream.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert list(stream) == list(range(1, 50))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_do_not_hear_the_signals_of_the_group(number: signal.Signals) -> None:
    def work(n: int) -> int:
        os.kill(os.getpid(), number)
        return n

    assert list(in_workers(work, range(5), workers=2)) == list(range(5))


PARENT = """
import os, sys, time
from shards.pool.workers import in_workers

def work(n):
    if n >= {busy_from}:
        while True:
            sum(range(1000))
    return n

stream = in_workers(work, iter(range(1000)), workers=3)
next(stream)
assert "/dev/shm" not in open("/proc/self/maps").read()
print("workers", *open(f"/proc/self/task/{{os.getpid()}}/children").read().split(), flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("busy_from", "then", "killed"),
    [
        pytest.param(1000, "time.sleep(60)", True, id="idle workers, parent killed"),
        pytest.param(1, "time.sleep(60)", True, id="busy workers, parent killed"),
        pytest.param(1000, "", False, id="stream forgotten"),
        pytest.param(1000, "if os.fork(): os._exit(0)\ntime.sleep(3)", False, id="another child holds the sockets"),
    ],
)
def test_workers_end_with_their_parent(busy_from: int, then: str, killed: bool, tmp_path: Path) -> None:
    """However it ends; and nothing that has a name was made, in /dev/shm or in the temporary folder."""
    out = tmp_path / "out"
    with out.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(busy_from=busy_from, then=then)],
            stdout=file,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        )
        until = time.monotonic() + 30
        while "\n" not in out.read_text() and time.monotonic() < until:
            time.sleep(0.01)
        if killed:
            process.kill()
        process.wait(timeout=30)
    pids = {int(word) for word in out.read_text().split() if word.isdigit()}
    until = time.monotonic() + 10
    while any(map(_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert len(pids) == 3 and not any(map(_alive, pids))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
