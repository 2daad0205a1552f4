"""The lock: free when its holder is gone, however it went, and whoever it had forked."""

import os
import signal
import time
from pathlib import Path

import pytest

from shards.errors import ArtefactError
from shards.locks import NumberedLocks, locked
from shards.pool.workers import in_workers


def is_free(path: Path) -> bool:
    """Whether another process could take the lock now."""
    pid = os.fork()
    if pid == 0:
        with locked(path) as got:
            os._exit(0 if got else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_one_process_holds_it_and_the_next_gets_it(tmp_path: Path) -> None:
    with locked(tmp_path / "x.lock") as got:
        assert got and not is_free(tmp_path / "x.lock")
    assert is_free(tmp_path / "x.lock")


def test_the_same_process_does_not_hold_it_twice(tmp_path: Path) -> None:
    with locked(tmp_path / "x.lock"), locked(tmp_path / "x.lock") as again:
        assert not again


@pytest.mark.parametrize("remove", [True, False])
def test_a_killed_holder_frees_it(tmp_path: Path, remove: bool) -> None:
    """The file stays, and says nothing: the kernel holds the lock."""
    path = tmp_path / "x.lock"
    pid = os.fork()
    if pid == 0:
        with locked(path, remove=remove):
            (tmp_path / "held").touch()
            time.sleep(60)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    assert not is_free(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert is_free(path)


def test_a_forked_child_that_outlives_the_holder_does_not_keep_it(tmp_path: Path) -> None:
    """A plain flock is shared with every child of its holder."""
    path = tmp_path / "x.lock"
    holder = os.fork()
    if holder == 0:
        with locked(path):
            if os.fork() == 0:
                (tmp_path / "child").write_text(str(os.getpid()))
                time.sleep(60)
                os._exit(0)
            while not (tmp_path / "child").exists():
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        assert is_free(path)
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_workers_of_the_pool_do_not_free_their_parents_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "x.lock"):
        assert list(in_workers(lambda n: n, range(3), workers=2)) == [0, 1, 2]
        assert not is_free(tmp_path / "x.lock")


def test_whoever_waits_gets_it_when_it_is_removed_with_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    pid = os.fork()
    if pid == 0:
        with locked(path, remove=True):
            (tmp_path / "held").touch()
            time.sleep(0.3)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    with locked(path, wait_s=20.0) as got:
        assert got and path.exists()
    os.waitpid(pid, 0)


def test_a_place_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtefactError, match=r"x\.lock: cannot be locked"), locked(tmp_path / "file/x.lock"):
        pass


def test_numbered_locks_keep_other_processes_out_until_their_holder_ends(tmp_path: Path) -> None:
    """Each number is a lock of its own; a killed holder has none any more."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = NumberedLocks(tmp_path / "locks")
        assert held.take(3) and held.take(10**9) and held.take(5)
        held.release(5)
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    with NumberedLocks(tmp_path / "locks") as locks:
        assert [locks.take(number) for number in (3, 4, 5, 10**9)] == [False, True, True, False]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert locks.take(3) and locks.take(10**9)
    assert NumberedLocks(None).take(3), "where nobody can hold one"


def test_a_worker_that_outlives_its_parent_holds_no_numbered_lock(tmp_path: Path) -> None:
    with NumberedLocks(tmp_path / "locks") as locks:
        assert locks.take(1)
        results = in_workers(lambda _: NumberedLocks(tmp_path / "locks").take(1), [0], workers=1)
        assert list(results) == [False], "it is another process"
