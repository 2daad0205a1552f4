"""The reader: right bytes or an error, in every process, thread and fork."""

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.index import reader as reader_module
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.tars.writer import write_samples


def image(n: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"%d" % n * (n + 1)


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    """Twelve shards of two samples."""
    return write_samples(((f"k{n}", 0, "png", image(n)) for n in range(24)), tmp_path, samples_per_shard=2)


def read_all(reader: ShardReader) -> bool:
    index = reader.index
    return all(reader.image_bytes(s, r) == image(2 * s + r) for s in range(index.num_shards) for r in range(2))


def num_open(path: Path) -> int:
    """Tars below `path` that this process has open."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.exists(link)]
    return sum(target.startswith(str(path)) and target.endswith(".tar") for target in targets)


def test_it_returns_the_bytes_that_were_written(index: ShardIndex) -> None:
    with ShardReader(index) as reader:
        assert read_all(reader)
        assert reader.name(3, 1) == "k7.png"


def test_few_files_stay_open_and_close_leaves_none(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_OPEN_SHARDS", 3)
    reader = ShardReader(index)
    assert num_open(tmp_path) == 0, "nothing is opened before the first read"
    assert read_all(reader)
    assert num_open(tmp_path) == 3
    reader.close()
    assert num_open(tmp_path) == 0
    assert read_all(reader), "a closed reader opens again"
    reader.close()
    reader.close()


def test_a_pickled_reader_reads(index: ShardIndex) -> None:
    with ShardReader(index) as reader:
        reader.image_bytes(0, 0)
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert read_all(copy)


def test_threads_share_a_reader(index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evicting a file that another thread reads from must not close it under that thread."""
    monkeypatch.setattr(reader_module, "_OPEN_SHARDS", 2)
    with ShardReader(index) as reader, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: read_all(reader), range(64)))
    assert num_open(tmp_path) == 0


def _child(reader: ShardReader, queue: "multiprocessing.Queue[bool]") -> None:
    queue.put(read_all(reader))
    reader.close()


@pytest.mark.parametrize("lock_is_held", [False, True], ids=["idle", "while_a_thread_holds_the_lock"])
def test_a_fork_shares_offsets_with_nobody(index: ShardIndex, lock_is_held: bool) -> None:
    """DataLoader workers are forked, and the parent may be in the middle of a read."""
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bool] = context.Queue()
    with ShardReader(index) as reader:
        assert read_all(reader)
        if lock_is_held:
            assert reader._lock.acquire(timeout=5)
        children = [context.Process(target=_child, args=(reader, queue)) for _ in range(3)]
        for child in children:
            child.start()
        if lock_is_held:
            reader._lock.release()
        assert all(read_all(reader) for _ in range(20))
        assert [queue.get(timeout=20) for _ in children] == [True] * 3
        for child in children:
            child.join(20)
        assert read_all(reader), "a child that closes its files must not close the parent's"


def test_a_spawned_process_reads(index: ShardIndex) -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[bool] = context.Queue()
    with ShardReader(index) as reader:
        child = context.Process(target=_child, args=(reader, queue))
        child.start()
        assert queue.get(timeout=60)
        child.join(20)


def test_a_missing_shard_is_named(index: ShardIndex) -> None:
    Path(index.urls[4]).unlink()
    with ShardReader(index) as reader, pytest.raises(ShardError, match=r"shard-000004\.tar: cannot be opened"):
        reader.image_bytes(4, 0)


def test_a_shard_of_another_size_is_refused_before_anything_is_read(index: ShardIndex, tmp_path: Path) -> None:
    with open(index.urls[4], "ab") as file:
        file.write(bytes(512))
    with ShardReader(index) as reader:
        for _ in range(3):
            with pytest.raises(ShardError, match=r"shard-000004\.tar: expected 10240 bytes as in the index, got 10752"):
                reader.image_bytes(4, 0)
        assert num_open(tmp_path) == 0


def test_a_shard_that_is_cut_while_it_is_open_is_refused(index: ShardIndex) -> None:
    with ShardReader(index) as reader:
        reader.image_bytes(4, 0)
        os.truncate(index.urls[4], 1000)
        with pytest.raises(ShardError, match=r"shard-000004\.tar: offset \d+: image of 'k9': expected .* got 0 with"):
            reader.image_bytes(4, 1)


def test_rows_outside_are_errors(index: ShardIndex) -> None:
    with ShardReader(index) as reader:
        for shard, row in ((0, 2), (0, -1), (12, 0), (-1, 0)):
            with pytest.raises(IndexError):
                reader.image_bytes(shard, row)


def test_a_failed_read_lets_go_of_the_file(index: ShardIndex, tmp_path: Path) -> None:
    with ShardReader(index) as reader:
        reader.image_bytes(4, 0)
        os.truncate(index.urls[4], 1000)
        with pytest.raises(ShardError):
            reader.image_bytes(4, 1)
    assert num_open(tmp_path) == 0
