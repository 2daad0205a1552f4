"""The records of an epoch: every view gets its own, one process of a machine reads them, and nobody has to clean up."""

import multiprocessing
import os
import signal
import stat
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shards.errors import CacheError, RunError
from student.feed.node_file import SEAL_BYTES, scratch_folder, shared_file
from student.feed.slab import RecordSlab, SlabLoader
from student.feed.slab_process import SlabOrder, filled_apart
from teacher_cache.store.cache import TeacherCache
from tests.student_tiny import SLAB_ROWS as ROWS
from tests.student_tiny import loaded_batch, make_cache, write_shards
from tests.student_tiny import views as recipe

VIEWS = 4
FIELDS = {"pixel_digest": (np.dtype(np.uint32), ()), "logit": (np.dtype(np.float32), (2,))}


class FakeCache(SimpleNamespace):
    """Units whose values say which (view, shard, row) they are; counts its reads."""

    url, rows_S, views_per_unit, row_fields = "fake", ROWS, VIEWS, FIELDS
    header = SimpleNamespace(identity="0")

    def read_unit(self, view_block, shard):
        self.reads.append((view_block, shard))
        view, row = np.mgrid[view_block * VIEWS : (view_block + 1) * VIEWS, : ROWS[shard]]
        code = (view * 100 + shard * 10 + row).astype(np.uint32)
        kept_beside = np.zeros((2, 2), np.uint32)  # not one entry per row
        logit = np.stack([code, -code.astype(int)], -1).astype(np.float32)
        return {"pixel_digest": code, "logit": logit, "fidelity_at": kept_beside}


@pytest.mark.parametrize("views", [range(4, 8), range(5, 7), range(7, 8)])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_view_gets_its_own_record(views, threads, tmp_path):
    """A gather that is off by one view, shard or row would train on another image's answer."""
    slab = RecordSlab.load(FakeCache(reads=[]), views, scratch=tmp_path, threads=threads)
    some = loaded_batch(views=views)
    record = slab.gather(some)
    assert np.array_equal(record["pixel_digest"], some.pixel_digest_B)
    assert np.array_equal(record["logit"][:, 1], -record["logit"][:, 0])
    assert slab.num_bytes == len(views) * ROWS.sum() * 12
    slab.close()
    assert np.array_equal(record["pixel_digest"], some.pixel_digest_B), "what was gathered outlives the slab"


def test_a_unit_is_read_once_for_all_views_that_the_run_wants_of_it(tmp_path):
    """Two super-epochs of two views share the units of four: the second reads nothing."""
    cache = FakeCache(reads=[])
    schedule = [range(0, 2)] * 2 + [range(2, 4)] * 2 + [range(4, 6)]
    with SlabLoader(cache, schedule, scratch=tmp_path) as slabs:
        first = slabs.epoch(0)
        assert slabs.epoch(1) is first and slabs.epoch(2) is first and first.views == range(0, 4)
        assert slabs.epoch(4).views == range(4, 6), "no more than the run wants"
    assert sorted(cache.reads) == [(block, shard) for block in range(2) for shard in range(3)]


def test_without_room_for_a_view_block_an_epoch_takes_its_own_views(tmp_path, monkeypatch):
    """A unit of many views must not ask for more disk than there is: it is read again instead."""
    monkeypatch.setattr("student.feed.slab.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    cache = FakeCache(reads=[])
    with SlabLoader(cache, [range(0, 2), range(2, 4)], scratch=tmp_path) as slabs:
        assert slabs.epoch(0).views == range(0, 2)
        assert slabs.epoch(1).views == range(2, 4)
    assert len(cache.reads) == 6


@pytest.mark.parametrize(
    ("free", "views"), [((10**9, 1000), range(0, 4)), ((1000, 10**9), range(0, 2))], ids=["room at first", "room later"]
)
def test_one_process_decides_how_much_is_read_and_the_others_take_it(free, views, tmp_path, monkeypatch):
    """The first takes the room away that the second would find; both must map one file."""
    rooms = iter(free)
    monkeypatch.setattr("student.feed.slab.shutil.disk_usage", lambda _: SimpleNamespace(free=next(rooms)))
    caches = [FakeCache(reads=[]), FakeCache(reads=[])]
    slabs = []
    for cache in caches:
        slabs.append(RecordSlab.load_most(cache, range(0, 4), range(0, 2), scratch=tmp_path))
    assert [slab.views for slab in slabs] == [views, views]
    assert len(caches[1].reads) == 0
    for slab in slabs:
        slab.close()


def test_a_slab_that_was_prepared_for_another_epoch_is_let_go(tmp_path):
    """A jump needs other views than were loaded ahead; nothing of those stays."""
    cache = FakeCache(reads=[])
    schedule = [range(0, 4), range(4, 8), range(8, 12)]
    before = set(os.listdir("/proc/self/fd"))
    with SlabLoader(cache, schedule, scratch=tmp_path) as slabs:
        assert slabs.epoch(0).views == schedule[0]
        assert slabs.epoch(2).views == schedule[2]
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_names_the_folder_and_the_flag(tmp_path, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("student.feed.slab.os.posix_fallocate", full)
    with pytest.raises(RunError, match=r"records of an epoch do not fit.*No space left.*--scratch"):
        RecordSlab.load(FakeCache(reads=[]), range(4), scratch=tmp_path)


def test_an_error_of_the_store_reaches_the_epoch_that_needs_it(tmp_path):
    """A damaged unit that is loaded ahead must not be lost in the thread."""
    cache = FakeCache(reads=[])
    good = cache.read_unit

    def damaged(view_block, shard):
        if view_block == 1:
            raise CacheError("unit is damaged")
        return good(view_block, shard)

    cache.read_unit = damaged
    with SlabLoader(cache, [range(0, 4), range(4, 8)], scratch=tmp_path) as slabs:
        slabs.epoch(0)
        with pytest.raises(CacheError, match="unit is damaged"):
            slabs.epoch(1)


def hold(scratch, conn):
    """A rank: maps the slab, says how many units it read and what it sees, and waits to be told to go."""
    cache = FakeCache(reads=[])
    slab = RecordSlab.load(cache, range(4, 8), scratch=Path(scratch))
    conn.send((len(cache.reads), slab.gather(loaded_batch())["pixel_digest"].tolist()))
    conn.recv()
    slab.close()


class Rank:
    """A process that holds the slab."""

    def __init__(self, scratch):
        spawn = multiprocessing.get_context("spawn")
        self.conn, theirs = spawn.Pipe()
        self.process = spawn.Process(target=hold, args=(str(scratch), theirs))
        self.process.start()
        theirs.close()
        self.reads, self.seen = None, None

    def ready(self):
        self.reads, self.seen = self.conn.recv()
        return self

    def end(self, kill=False):
        if kill:
            self.process.kill()
        else:
            self.conn.send("go")
        self.process.join(30)


def held_bytes(scratch):
    """Bytes of nameless files that living processes keep in a folder."""
    found = {}
    for link in scratch_folder(scratch).iterdir():
        if link.is_symlink() and link.exists():
            found[os.stat(link).st_ino] = os.stat(link).st_size
    return found


def test_one_process_reads_the_others_map_late_ones_find_it_and_kills_leave_nothing(tmp_path):
    expected = loaded_batch().pixel_digest_B.tolist()
    ranks = [Rank(tmp_path) for _ in range(3)]
    for rank in ranks:
        assert rank.ready().seen == expected
    assert sorted(rank.reads for rank in ranks) == [0, 0, 3], "every unit is read by one of them"
    assert len(held_bytes(tmp_path)) == 1, "one file, however many ranks"
    reader = next(rank for rank in ranks if rank.reads)
    reader.end(kill=True)
    late = Rank(tmp_path).ready()
    assert late.reads == 0 and late.seen == expected, "found through one that lives, its maker being dead"
    for rank in [late, *(rank for rank in ranks if rank is not reader)]:
        rank.end(kill=True)
    assert not held_bytes(tmp_path), "the kernel has freed it"
    left = list(scratch_folder(tmp_path).iterdir())
    assert all(entry.is_symlink() for entry in left), "no bytes are left"
    again = Rank(tmp_path).ready()
    assert again.reads == 3
    assert len(list(scratch_folder(tmp_path).iterdir())) == 1, "dead links are swept"
    again.end()
    assert not list(scratch_folder(tmp_path).iterdir())


def test_a_maker_that_is_killed_is_replaced(tmp_path):
    """The lock goes with the process; the file it had begun had no name."""
    folder = scratch_folder(tmp_path)
    pid = os.fork()
    if pid == 0:
        shared_file(folder, "key", lambda descriptor: time.sleep(60))
    until = time.monotonic() + 20
    while not list(folder.glob("*.lock")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with shared_file(folder, "key", lambda descriptor: os.pwrite(descriptor, b"x", SEAL_BYTES) and None) as file:
        assert os.pread(file.descriptor, 1, SEAL_BYTES) == b"x"


def test_a_link_to_something_else_is_not_taken(tmp_path):
    """Numbers of processes and descriptors are given out again: what is behind a link must say whose it is."""
    folder = scratch_folder(tmp_path)
    with shared_file(folder, "key", lambda descriptor: None) as file:
        name = next(link.name for link in folder.iterdir() if link.is_symlink()).partition(".")[0]
    other = tmp_path / "other"
    other.write_bytes(bytes(200))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for number, target in enumerate((other, fifo, tmp_path, "/dev/zero", "/nowhere")):
        (folder / f"{name}.1.{number}").symlink_to(target)
    made = []
    with shared_file(folder, "key", made.append) as file:
        assert made and os.fstat(file.descriptor).st_nlink == 0
        assert len(list(folder.iterdir())) == 1


def test_files_of_other_keys_are_other_files(tmp_path):
    folder = scratch_folder(tmp_path)
    with (
        shared_file(folder, "a", lambda descriptor: None) as a,
        shared_file(folder, "b", lambda descriptor: None) as b,
        shared_file(folder, "a", lambda descriptor: None) as again,
    ):
        inodes = [os.fstat(file.descriptor).st_ino for file in (a, b, again)]
        assert inodes[0] == inodes[2] != inodes[1]


def test_the_folder_is_this_users_alone(tmp_path):
    folder = scratch_folder(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="another's"):
        scratch_folder(tmp_path)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    index = write_shards(folder / "shards", rows=(16, 12))
    with make_cache(folder / "cache.zarr", index, recipe(), num_views=2 * recipe().block_views) as cache:
        yield cache


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def per_block():
    size = recipe().block_views
    return [range(0, size), range(size, 2 * size)]


def values_of(slab):
    return {name: np.array(values) for name, values in slab._fields.items()}


def test_a_slab_that_is_prepared_is_read_by_another_process(real_cache, tmp_path, monkeypatch):
    """Threads that read beside a training loop make every short call of it wait."""
    before = children()
    expected = RecordSlab.load(real_cache, per_block()[1], scratch=tmp_path)
    values = values_of(expected)
    expected.close()
    monkeypatch.setattr("student.feed.slab.APART_BYTES", 0)
    read, here = TeacherCache.read_unit, []
    monkeypatch.setattr(TeacherCache, "read_unit", lambda self, *unit: here.append(unit[0]) or read(self, *unit))
    with SlabLoader(real_cache, per_block(), scratch=tmp_path) as slabs:
        slabs.epoch(0)
        found = values_of(slabs.epoch(1))
    assert set(here) == {0}, "units of the first slab alone: everybody waits for that one"
    assert all(np.array_equal(found[name], values[name]) for name in values)
    assert not [link for link in scratch_folder(tmp_path).iterdir() if link.is_symlink()]
    assert children() == before, "the other process has ended"


def test_a_process_that_cannot_fill_a_slab_is_said_and_replaced(real_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("student.feed.slab.APART_BYTES", 0)
    monkeypatch.setattr("student.feed.slab_process.sys.executable", "/bin/false")
    with SlabLoader(real_cache, per_block(), scratch=tmp_path) as slabs:
        slabs.epoch(0)
        with pytest.warns(RuntimeWarning, match="ended with 1") as said:
            assert slabs.epoch(1).views == per_block()[1]
    assert len(said) == 1


def test_a_unit_that_is_damaged_is_the_error_of_the_epoch_that_needs_it(real_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("student.feed.slab.APART_BYTES", 0)

    def damaged(*_):
        raise CacheError("unit is damaged")

    monkeypatch.setattr("student.feed.slab_process.sys.executable", "/bin/false")
    with SlabLoader(real_cache, per_block(), scratch=tmp_path) as slabs:
        slabs.epoch(0)
        monkeypatch.setattr(TeacherCache, "read_unit", damaged)
        with pytest.raises(CacheError, match="unit is damaged"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slabs.epoch(1)


def test_a_process_that_fills_a_slab_ends_with_the_one_that_asked(real_cache, tmp_path):
    """Killed at any moment: nobody is left to hold the room on the disk."""
    read, write = os.pipe()
    asker = os.fork()
    if asker == 0:
        with filled_apart(SlabOrder.of(real_cache.url, per_block()[0], tmp_path)):
            os.write(write, " ".join(children()).encode())
            time.sleep(60)
        os._exit(1)
    filler = int(os.read(read, 99))
    os.kill(asker, signal.SIGKILL)
    os.waitpid(asker, 0)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{filler}").exists() and Path(f"/proc/{filler}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.05)
    os.close(read), os.close(write)
