"""Nothing that happens to a cache is read as data: damage is a named error, kills and races end whole or missing."""

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, WrapperStore

from shards.atomic import atomic_file, replace_file
from shards.errors import CacheError, UnreachableError, system_words
from teacher_cache.inspect.verify import verify_digests
from teacher_cache.store import unit_store
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId, array_digest
from teacher_cache.store.place import Place
from teacher_cache.store.unit import Arrays
from teacher_cache.store.unit_store import UnitStore
from teacher_cache.store.zarr_objects import Objects
from tests.cache_maker import assert_unit, fill, make_cache, make_index, make_spec, objects_of, random_unit


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut is tested here, so nothing need reach the disk itself."""
    monkeypatch.setattr(unit_store, "_PAUSE_S", 0.001)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def use(folder: Path) -> None:
    """What a training does: open, see the coverage, read every unit."""
    with TeacherCache.open(folder) as cache:
        assert cache.missing() == []
        for unit in itertools.product(range(cache.num_view_blocks), range(cache.num_shards)):
            assert_unit(cache, *unit)


def problems(folder: Path) -> list[str]:
    """What verify-cache says; an error of opening counts."""
    try:
        with TeacherCache.open(folder) as cache:
            return [finding.problem for finding in verify_digests(cache) if finding.problem]
    except CacheError as error:
        return [str(error)]


def _flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "flip": _flip,
    "truncate": lambda data: data[: len(data) * 2 // 3],
    "empty": lambda data: b"",
    "delete": lambda data: None,
    "lengthen": lambda data: data + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["dense8", "topk"])
@pytest.mark.slow
def test_damage_to_any_object_is_a_named_error(tmp_path: Path, damage: str, kind: str) -> None:
    """In training and in verify, for every object of the cache; undone, all is well again."""
    folder = tmp_path / "c"
    make_cache(folder, rows=(7, 5), num_views=3, kind=kind)
    names = objects_of(folder)
    for name in names if kind == "dense8" else [name for name in names if name.startswith("tail_basis")]:
        path = folder / name
        data = path.read_bytes()
        changed = DAMAGE[damage](data)
        path.unlink() if changed is None else path.write_bytes(changed)
        with pytest.raises(CacheError) as caught:
            use(folder)
        expected = name if "zarr.json" in name else name.split("/")[0]
        if (damage, expected) == ("delete", "unit_digest"):
            expected = "not in the ledger"
        assert expected in str(caught.value) and str(folder) in str(caught.value)
        found = problems(folder)
        assert found and all(str(folder) in problem for problem in found), name
        path.write_bytes(data)
    use(folder)
    assert problems(folder) == []


NO_FILE: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "expected at most": lambda path: (path.touch(), os.truncate(path, 1 << 40))[1],
}


@pytest.mark.parametrize("got", NO_FILE)
def test_an_object_that_blocks_or_never_ends_is_not_opened(tmp_path: Path, got: str) -> None:
    """What stands in place of an object is no regular file, or a hole larger than any memory."""
    folder = tmp_path / "c"
    make_cache(folder, rows=(7, 5), num_views=3)
    first = {name.split("/c/")[0]: name for name in objects_of(folder)}
    for name in first.values():
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        NO_FILE[got](path)
        with pytest.raises(CacheError, match=re.escape(name)) as caught:
            use(folder)
        assert got in str(caught.value)
        assert any(got in problem for problem in problems(folder)), name
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(data)
    use(folder)


def _forwarded() -> set[str]:
    """The methods by which the array library's own wrapper reaches the objects behind it, in its installed version."""
    words = ("get", "set", "delete", "clear", "exists", "empty")
    names = {name for name in vars(WrapperStore) if any(word in name for word in words)}
    # In versions from 3.3 on these, too.
    return names | {"get_sync", "set_sync", "delete_sync", "_supports_sync_io"}


def test_no_way_to_an_object_passes_the_guards_by(tmp_path: Path) -> None:
    """Reads end in time and in a named error, writes are whole and durable: also those without an event loop."""
    assert _forwarded() - {"exists", "is_empty", "supports_deletes"} <= set(vars(Objects))


@pytest.mark.parametrize("way", ["async", "sync"])
def test_both_ways_to_an_object_give_the_same(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Objects.at(Place.parse(tmp_path, writable=True), writable=True)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    prototype = default_buffer_prototype()

    def get(key: str) -> Any:
        return objects.get_sync(key) if way == "sync" else sync(objects.get(key, prototype))

    def put(key: str, data: bytes) -> None:
        value = prototype.buffer.from_bytes(data)
        objects.set_sync(key, value) if way == "sync" else sync(objects.set(key, value))

    put("a/c/0", b"first")
    put("a/c/0", b"second")
    assert len(synced) == 4, "the file and its folder, each time"
    assert bytes(get("a/c/0").to_bytes()) == b"second" and get("a/zarr.json") is None
    with pytest.raises(CacheError, match=r"a/c/1 is gone; run verify-cache --repair"):
        get("a/c/1")
    (tmp_path / "b").write_bytes(b"")
    with pytest.raises(CacheError, match=re.escape(f"{tmp_path}/b/c/0: ")):
        put("b/c/0", b"")
    with pytest.raises((AssertionError, CacheError), match="deletes nothing"):
        objects.delete_sync("a/c/0") if way == "sync" else sync(objects.delete("a/c/0"))
    closed = Objects.at(Place.parse(tmp_path, writable=False), writable=False)
    with pytest.raises((ValueError, CacheError), match="read-only"):
        closed.set_sync("a/c/0", prototype.buffer.from_bytes(b""))


def killed_at_replace(work: Callable[[], object], count: int) -> int:
    """The exit code of a child that does `work` and is killed before the renaming number `count`."""
    child = os.fork()
    if child == 0:
        left, rename = itertools.count(count, -1), os.replace

        def kill(*places: Any) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*places)

        os.replace = kill  # type: ignore[assignment]
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_what_a_kill_leaves_goes_with_the_next_run(tmp_path: Path) -> None:
    """Killed before any renaming: of metadata, chunks, entries, snapshot, root; the next run removes what is left."""

    def work(folder: Path) -> None:
        with TeacherCache.create(folder, make_spec(), make_index(7), num_views=3) as cache:
            fill(cache)

    for count in itertools.count():
        folder = tmp_path / str(count)
        ended = killed_at_replace(partial(work, folder), count)
        assert ended == 0 or list(folder.rglob("*.partial"))
        work(folder)
        assert not list(folder.rglob("*.partial")), count
        use(folder)
        if ended == 0:
            break
    assert count > 15


def test_the_file_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    """Two machines may write the same unit."""
    (tmp_path / ".x.99-1.partial").write_bytes(b"dead")
    with open(tmp_path / ".x.99-2.partial", "wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        replace_file(tmp_path / "x", b"data")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.99-2.partial", "x"]


def test_every_writer_removes_what_a_killed_one_left_of_its_file(tmp_path: Path) -> None:
    """And nothing of other files, of living writers, or what would make it wait."""

    def write() -> None:
        with atomic_file(tmp_path / "x") as file:
            file.write(b"data")

    os.mkfifo(tmp_path / ".x.1-1.partial")
    (tmp_path / ".y.1-1.partial").write_bytes(b"of another file")
    with atomic_file(tmp_path / "x"):
        assert killed_at_replace(write, 0) == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 3
    write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".y.1-1.partial", "x"]


def test_processes_of_the_same_number_write_one_file_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every container begins to count at 1: their temporary files of one file on a shared disk have one name."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(threading, "get_native_id", lambda: 1)
    begun, begin = os.pipe()
    with atomic_file(tmp_path / "x") as file:
        file.write(b"the first")
        file.flush()
        child = os.fork()
        if child == 0:
            file.close()
            os.write(begin, b".")
            try:
                replace_file(tmp_path / "x", b"2nd")
                os._exit(0)
            finally:
                os._exit(1)
        os.read(begun, 1)
        time.sleep(0.1)  # it cannot do more than wait, whenever this ends
        assert (tmp_path / ".x.1-1.partial").read_bytes() == b"the first"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "x").read_bytes() == b"2nd" and len(list(tmp_path.iterdir())) == 1
    os.close(begun)
    os.close(begin)


def test_a_missing_entry_is_an_error_when_its_unit_is_read(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    (tmp_path / "c/unit_digest/c/1/0").unlink()
    with TeacherCache.open(tmp_path / "c") as cache:
        with pytest.raises(CacheError, match="not in the ledger"):
            cache.read_unit(1, 0)
        assert ["its ledger entry is gone" in f.problem for f in verify_digests(cache) if f.problem] == [True]


@pytest.mark.slow
def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Seeded flips all over the cache: an error, or not one value differs."""
    folder = tmp_path / "c"
    make_cache(folder, rows=(4,), num_views=3, kind="topk")
    draws = np.random.default_rng(11)
    names = objects_of(folder)
    for _ in range(40):
        path = folder / names[draws.integers(len(names))]
        data = path.read_bytes()
        at = int(draws.integers(len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << int(draws.integers(8)))]) + data[at + 1 :])
        try:
            use(folder)  # which compares every value
            assert path.name == "zarr.json" and path.parent != folder  # Zarr has defaults for some names
        except CacheError as error:
            assert str(folder) in str(error)
        path.write_bytes(data)


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "codecs": lambda meta: meta["codecs"].pop(),
    "fill_value": lambda meta: meta.update(fill_value=3),
    "dimension_names": lambda meta: meta["dimension_names"].reverse(),
    "data_type": lambda meta: meta.update(data_type="uint16"),
    "shape": lambda meta: meta["shape"].__setitem__(1, 9),
    "attributes": lambda meta: meta.update(attributes={"scale": 2}),
}


@pytest.mark.parametrize("field", FORGED)
def test_metadata_that_is_valid_but_another_is_refused_naming_the_field(tmp_path: Path, field: str) -> None:
    """Zarr would follow it; the layout is a function of the spec, so it can only be damage."""
    folder = tmp_path / "c"
    make_cache(folder, rows=(7,), num_views=3)
    path = folder / "logit/zarr.json"
    meta = json.loads(path.read_text())
    FORGED[field](meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(CacheError, match=rf"{path}: {field}: expected"):
        use(folder)


def test_swapped_chunks_are_noticed(tmp_path: Path) -> None:
    """Both chunks are intact and of the right kind, but of other units."""
    folder = tmp_path / "c"
    make_cache(folder, rows=(7, 7), num_views=6)
    for first, second in (("0/0", "1/0"), ("0/0", "0/1")):
        one, two = (folder / "logit/c" / name / "0/0" for name in (first, second))
        a, b = one.read_bytes(), two.read_bytes()
        one.write_bytes(b)
        two.write_bytes(a)
        with pytest.raises(CacheError, match="expected digest"):
            use(folder)
        assert len(problems(folder)) == 2
        one.write_bytes(a)
        two.write_bytes(b)


def test_repair_and_a_second_run_heal_every_unit(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    make_cache(folder, rows=(7, 5), num_views=9)
    (folder / "logit/c/0/1/0/0").write_bytes(b"")
    (folder / "pixel_digest/c/1/0/0").unlink()
    (folder / "unit_digest/c/2/0").write_bytes(b"x" * 12)
    (folder / "unit_digest/c/2/1").unlink()
    (folder / "ledger/c/0/0").write_bytes(b"")
    with TeacherCache.open(folder, writable=True) as cache:
        repaired = {finding.unit for finding in verify_digests(cache, repair=True) if finding.repaired}
    # Without the snapshot nobody knows that the entry of (2, 1) was ever there: it is simply missing.
    assert repaired == {None, (0, 1), (1, 0), (2, 0)}
    with TeacherCache.open(folder, writable=True) as cache:
        assert cache.missing() == [(0, 1), (1, 0), (2, 0), (2, 1)]
        fill(cache)
    use(folder)
    assert problems(folder) == []


_REFUSALS = [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT, errno.EIO]


def _refused(monkeypatch: pytest.MonkeyPatch, way: str, path: Path, number: int) -> None:
    """Let the system refuse to open one object, at the guard before the array library or in the library."""

    def refuse() -> OSError:
        return OSError(number, os.strerror(number), str(path))

    if way == "guard":
        real_open = os.open

        def guarded(name: Any, *flags: Any, **more: Any) -> int:
            if str(name) == str(path):
                raise refuse()
            return real_open(name, *flags, **more)

        monkeypatch.setattr(os, "open", guarded)
        return

    for name in ("get", "get_sync"):  # the second since zarr 3.3
        if (real_get := getattr(LocalStore, name, None)) is None:
            continue

        def get(self: LocalStore, key: str, *rest: Any, real: Any = real_get, **more: Any) -> Any:
            if str(path).endswith(key):
                raise refuse()
            return real(self, key, *rest, **more)

        monkeypatch.setattr(LocalStore, name, get)


@pytest.mark.parametrize("way", ["guard", "library"])
@pytest.mark.parametrize("number", _REFUSALS, ids=errno.errorcode.get)
def test_what_cannot_be_read_now_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, number: int
) -> None:
    """Every word says the remedy, and only what the disk itself cannot read leaves the ledger."""
    make_cache(tmp_path / "c")
    path = tmp_path / "c/logit/c/0/1/0/0"
    said = re.escape(system_words(OSError(number, os.strerror(number), str(path))))
    with monkeypatch.context() as broken, TeacherCache.open(tmp_path / "c", writable=True) as cache:
        _refused(broken, way, path, number)
        damaged = number == errno.EIO
        with pytest.raises(CacheError if damaged else UnreachableError, match=said):
            cache.read_unit(0, 1)
        with nullcontext() if damaged else pytest.raises(UnreachableError, match=said):
            list(verify_digests(cache, repair=True))
    with TeacherCache.open(tmp_path / "c") as cache:
        assert cache.missing() == [(0, 1)] * damaged


def test_repair_needs_a_writable_cache(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    with TeacherCache.open(tmp_path / "c") as cache, pytest.raises(ValueError, match="opened for writing"):
        next(verify_digests(cache, repair=True))


# Kills


class _Killed(BaseException):
    """Stands for kill -9: nothing of this project catches it."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("damaged", [False, True], ids=["new unit", "over a damaged unit"])
@pytest.mark.slow
def test_a_kill_at_any_write_leaves_a_whole_or_a_missing_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, damaged: bool
) -> None:
    """Every write of a commit, in turn; then the same command again finishes the job."""
    original = Objects.set_sync
    for step in itertools.count():
        folder = tmp_path / str(step)
        with TeacherCache.create(folder, make_spec(), make_index(7, 5), num_views=3) as cache:
            fill(cache) if damaged else cache.commit_unit(0, 0, random_unit(cache, 0, 0))
        if damaged:
            (folder / "logit/c/0/1/0/0").write_bytes(b"")
        writes = itertools.count()

        def kill(self: Objects, key: str, value: Any, stop: int = step, count: Iterator[int] = writes) -> None:
            now = next(count) == stop
            if now and moment == "before":
                raise _Killed
            original(self, key, value)
            if now:
                raise _Killed

        cache = TeacherCache.open(folder, writable=True)
        monkeypatch.setattr(Objects, "set_sync", kill)
        try:
            cache.commit_unit(0, 1, random_unit(cache, 0, 1))
            finished = True
        except BaseException as error:
            assert "_Killed" in repr(error), error
            finished = False
        monkeypatch.setattr(Objects, "set_sync", original)
        with TeacherCache.open(folder, writable=True) as cache:
            assert_unit(cache, 0, 0)
            entry = cache.units.read_entry(UnitId(0, 1))
            if entry and not (damaged and step == 0 and moment == "before"):
                assert_unit(cache, 0, 1)
            elif entry:
                assert [f.unit for f in verify_digests(cache, repair=True) if f.problem] == [(0, 1)]
            fill(cache)
        use(folder)
        if finished:
            break
    assert step >= 7 + damaged  # six chunks and the entry, and the entry that is cleared first


def _kill_after(folder: Path, writes_left: int) -> None:
    original = Objects.set_sync

    def count(self: Objects, key: str, value: Any) -> None:
        nonlocal writes_left
        original(self, key, value)
        writes_left -= 1
        if writes_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Objects.set_sync = count  # type: ignore[method-assign]
    with TeacherCache.open(folder, writable=True) as cache:
        fill(cache)


def test_sigkill_loses_at_most_the_unit_in_flight(tmp_path: Path) -> None:
    """Real processes, really killed, again and again, until one survives."""
    folder = tmp_path / "c"
    TeacherCache.create(folder, make_spec(), make_index(7, 5, 3), num_views=9)
    fork = multiprocessing.get_context("fork")
    done = 0
    for writes in itertools.count(9, 5):
        child = fork.Process(target=_kill_after, args=(folder, writes))
        child.start()
        child.join()
        with TeacherCache.open(folder) as cache:
            committed = set(itertools.product(range(3), range(3))) - set(cache.missing())
            for unit in committed:
                assert_unit(cache, *unit)
            assert len(committed) >= done
            done = len(committed)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert done == 9 and writes > 9
    use(folder)


# Races


class _Memory:
    """The objects of one unit in memory, with a hook before every operation."""

    def __init__(self, entry_first: bool = True) -> None:
        self.arrays: Arrays = {}
        self.entry = 0
        self.entry_first = entry_first

    def writer(self, hook: Callable[[], None]) -> "_Writer":
        return _Writer(self, hook)


class _Writer(UnitStore):
    """The commit of a store whose objects are those in memory."""

    def __init__(self, memory: _Memory, hook: Callable[[], None]) -> None:
        self.memory, self.hook = memory, hook

    def read_entry(self, unit: UnitId) -> int:
        self.hook()
        return self.memory.entry

    def write_entry(self, unit: UnitId, digest: int) -> None:
        self.hook()
        self.memory.entry = digest

    def read_arrays(self, unit: UnitId) -> Arrays:
        self.hook()
        return dict(self.memory.arrays)

    def read_with_entry(self, unit: UnitId) -> tuple[int, Arrays]:
        """Asked for at the same time, either may be answered first."""
        if self.memory.entry_first:
            return self.read_entry(unit), self.read_arrays(unit)
        arrays = self.read_arrays(unit)
        return self.read_entry(unit), arrays

    def write_arrays(self, unit: UnitId, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.hook()
            self.memory.arrays[name] = array

    def digest(self, unit: UnitId, arrays: Arrays) -> int:
        return _digest_of(arrays)


def _digest_of(arrays: Arrays) -> int:
    return int.from_bytes(array_digest(arrays), "little") or 1


ONE: Arrays = {"a": np.array([1]), "b": np.array([1]), "c": np.array([1])}
TWO: Arrays = {"a": np.array([2]), "b": np.array([2]), "c": np.array([2])}


def test_a_writer_that_meets_another_at_any_moment_leaves_one_valid_unit() -> None:
    """Every interleaving of a whole commit, or of a commit killed at any step, into another commit at any step."""
    unit = UnitId(0, 0)
    for first, pause, death in itertools.product([True, False], range(12), [None, *range(12)]):
        memory = _Memory(first)
        steps, inner_steps = itertools.count(), itertools.count()

        def die(count: Iterator[int] = inner_steps, death: int | None = death) -> None:
            if next(count) == death:
                raise _Killed

        def meet(
            count: Iterator[int] = steps, pause: int = pause, memory: _Memory = memory, die: Callable[[], None] = die
        ) -> None:
            if next(count) == pause:
                with suppress(_Killed):
                    memory.writer(die).commit(unit, TWO)

        memory.writer(meet).commit(unit, ONE)
        assert _digest_of(memory.arrays) == memory.entry in (_digest_of(ONE), _digest_of(TWO)), (pause, death)


def test_a_writer_that_never_reads_what_it_wrote_says_so() -> None:
    memory = _Memory()

    def spoil() -> None:
        memory.arrays["b"] = np.array([9])

    with pytest.raises(CacheError, match=r"^what is read back is not what was written"):
        memory.writer(spoil).commit(UnitId(0, 0), ONE)
    assert memory.entry in (0, _digest_of(ONE))


class _Lossy(_Writer):
    """A disk that answers every write with success and drops some; it notes what entries were given to it."""

    def __init__(self, memory: _Memory, dropped: int) -> None:
        super().__init__(memory, lambda: None)
        self.writes, self.dropped = itertools.count(), dropped

    def write_arrays(self, unit: UnitId, arrays: Arrays) -> None:
        for name, array in arrays.items():
            if next(self.writes) != self.dropped:
                self.memory.arrays[name] = array

    def write_entry(self, unit: UnitId, digest: int) -> None:
        assert digest in (0, _digest_of(self.memory.arrays)), "an entry for chunks that are not there"
        super().write_entry(unit, digest)


@pytest.mark.parametrize("dropped", [0, 1, 2, None])
def test_an_entry_is_written_only_over_chunks_that_were_read_back(dropped: int | None) -> None:
    """Killed right after the entry, nothing else would ever look."""
    memory = _Memory()
    assert _Lossy(memory, -1 if dropped is None else dropped).commit(UnitId(0, 0), ONE)
    assert memory.entry == _digest_of(memory.arrays) == _digest_of(ONE)


def _race(folder: Path, seed: int, barrier: Any) -> None:
    with TeacherCache.open(folder, writable=True) as cache:
        for unit in itertools.product(range(cache.num_view_blocks), range(cache.num_shards)):
            arrays = random_unit(cache, *unit, seed)
            barrier.wait(600)
            cache.commit_unit(*unit, arrays)


@pytest.mark.slow
def test_two_writers_on_one_unit_200_times_leave_one_valid_unit(tmp_path: Path) -> None:
    """Two processes with different records for the same unit at the same moment."""
    folder = tmp_path / "c"
    TeacherCache.create(folder, make_spec("hard", views_per_unit=1), make_index(*[3] * 20), num_views=10)
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    children = [fork.Process(target=_race, args=(folder, seed, barrier)) for seed in (1, 2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    won = {1: 0, 2: 0}
    with TeacherCache.open(folder) as cache:
        assert cache.missing() == []
        for unit in itertools.product(range(10), range(20)):
            digest = cache.read_unit(*unit)["pixel_digest"]
            winner = [s for s in won if np.array_equal(digest, random_unit(cache, *unit, s)["pixel_digest"])]
            assert len(winner) == 1
            assert_unit(cache, *unit, seed=winner[0])
            won[winner[0]] += 1
    assert sum(won.values()) == 200
    assert problems(folder) == []


# Disk full


def _fill_with_limit(folder: Path, limit: int, answer: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with TeacherCache.open(folder, writable=True) as cache:
        try:
            fill(cache)
        except CacheError as error:
            answer.put(str(error))
            answer.close()
            answer.join_thread()
            os._exit(3)


def test_a_quota_is_an_error_that_names_the_unit_and_resume_completes(tmp_path: Path) -> None:
    """A file that may not grow, wherever a small disk cannot be mounted."""
    folder = tmp_path / "c"
    TeacherCache.create(folder, make_spec(num_classes=60), make_index(9, 9), num_views=3)
    fork = multiprocessing.get_context("fork")
    answer = fork.Queue()
    child = fork.Process(target=_fill_with_limit, args=(folder, 300, answer))
    child.start()
    message = answer.get(timeout=60)
    child.join()
    assert child.exitcode == 3
    assert "unit (view block 0: views 0 to 2, shard 0: shard-000000.tar)" in message and "file too large" in message
    assert not list(folder.rglob("*.partial"))
    with TeacherCache.open(folder, writable=True) as cache:
        assert cache.missing() == [(0, 0), (0, 1)]
        fill(cache)
    use(folder)


_MOUNT = """
import sys
from pathlib import Path
from shards.errors import CacheError, UnreachableError, system_words
from teacher_cache.store.cache import TeacherCache
from tests.cache_maker import fill, make_index, make_spec
folder = Path(sys.argv[1])
cache = TeacherCache.create(folder, make_spec(num_classes=60), make_index(*[40] * 9), num_views=3)
try:
    fill(cache)
except CacheError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.slow
def test_a_full_disk_is_an_error_that_names_the_unit_and_resume_completes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        folder = disk / "c"
        run = subprocess.run(
            [sys.executable, "-c", _MOUNT, str(folder)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert run.returncode == 3, run.stderr
        assert "unit (view block 0" in run.stdout and "no space left on device; make room" in run.stdout
        with TeacherCache.open(folder) as cache:
            left = cache.missing()
            assert 0 < len(left) < 9
            for unit in set(itertools.product(range(1), range(9))) - set(left):
                assert_unit(cache, *unit)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        with TeacherCache.open(folder, writable=True) as cache:
            assert cache.missing() == left
            fill(cache)
        use(folder)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
