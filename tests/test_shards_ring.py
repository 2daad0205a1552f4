"""A slot is written to again when nobody holds what was in it, and not before."""

import gc
import os
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.pool import device_copy
from shards.pool.ring import Ring
from shards.views import rendering
from shards.views.blocks import most_samples, render_blocks
from shards.views.rendering import render_ahead
from tests.student_tiny import in_child, views, write_shards
from tests.test_shards_rendering import plan_items, same

SHAPE = (4, 3, 3)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


KEEPING = {
    "the array": lambda array: array,
    "a slice": lambda array: array[1:2],
    "a reshaped view": lambda array: array.reshape(-1)[::2],
    "a tensor": torch.from_numpy,
    "a view of a tensor": lambda array: torch.from_numpy(array).flatten()[3:],
    "a memoryview": lambda array: array.data,
    "another array type": lambda array: np.frombuffer(array, np.uint16),
    "a DLPack tensor": torch.from_dlpack,
}


@pytest.mark.parametrize("keep", KEEPING.values(), ids=KEEPING.keys())
def test_a_slot_is_free_when_what_was_made_of_it_is_gone_and_not_before(keep):
    ring = Ring(1)
    ring.room(ring.take(36))[:] = 7
    kept = keep(ring.lend(0, SHAPE))
    gc.collect()
    assert ring.take(36) is None
    assert np.unique(np.asarray(kept).view(np.uint8)).tolist() == [7]
    del kept
    assert ring.take(36) == 0


def test_what_somebody_holds_is_never_written_to():
    """Results are lent, kept and dropped in any order; each shows what was put into it for as long as it is there."""
    dice, ring, kept = random.Random(0), Ring(5), []
    for number in range(2000):
        slot = ring.take(36)
        if slot is None:
            assert len(kept) == 5
        else:
            ring.room(slot)[:] = number % 251
            array = ring.lend(slot, SHAPE)
            kept.append((number % 251, dice.choice([array, torch.from_numpy(array)[2:], array[:1]])))
            del array
        assert all((np.asarray(values) == expected).all() for expected, values in kept)
        while kept and dice.random() < 0.5:
            kept.pop(dice.randrange(len(kept)))


def test_the_slot_that_was_used_last_is_used_next():
    """Memory that a cache still knows, and no page that was never needed."""
    ring = Ring(4)
    used = set()
    for _ in range(10):
        slot = ring.take(36)
        used.add(slot)
        ring.lend(slot, SHAPE)
    assert len(used) == 1


def test_the_memory_lives_as_long_as_an_array_and_no_longer():
    ring = Ring(2)
    slot = ring.take(36)
    gone = weakref.ref(ring.memory)
    array = ring.lend(slot, SHAPE)
    del ring
    assert gone() is not None and array.sum() == 0
    del array
    assert gone() is None


def test_a_result_larger_than_a_slot_has_no_slot():
    ring = Ring(2)
    assert ring.take(36) is not None and ring.take(37) is None and ring.take(12) is not None


def test_a_forked_child_that_drops_its_arrays_frees_no_slot_of_its_parent():
    ring = Ring(1)
    array = ring.lend(ring.take(36), SHAPE)

    def drop():
        nonlocal array
        array = None
        return ring.take(36)

    assert in_child(drop) == 0 and ring.take(36) is None and array is not None


@pytest.mark.parametrize("kept", [0, 1, 3, 50])
def test_batches_are_the_same_however_many_the_consumer_keeps(index, kept):
    """With all slots held the others come in memory of their own."""
    tasks = plan_items(index) * 4
    with ShardReader(index) as reader:
        expected = [render_blocks(reader, views(), task) for task in tasks]
        held = []
        for number, batch in enumerate(
            render_ahead(tasks, reader=reader, recipe=views(), workers=2, prefetch=1, held=1, died=RunError)
        ):
            held = [*held, (number, batch)][-kept:] if kept else []
            assert same(batch, expected[number])
            assert all(same(old, expected[before]) for before, old in held)


def test_a_consumer_that_lets_go_of_its_batches_sees_one_ring_and_nothing_else(index):
    """No batch is pickled, and no more memory is used than there are slots."""
    tasks = plan_items(index) * 6
    with ShardReader(index) as reader:
        stream = render_ahead(tasks, reader=reader, recipe=views(), workers=2, died=RunError)
        places = [batch.view_BHWC.ctypes.data for batch in stream]
    size = most_samples(views(), tasks[0]) * views().size ** 2 * 3
    slots = 2 * 2 + rendering.HELD
    assert len(places) == len(tasks) > slots
    assert max(places) - min(places) < slots * size and len(set(places)) <= slots


def test_a_larger_task_after_a_smaller_one_is_rendered_all_the_same(index):
    one, *others = plan_items(index)
    tasks = [one[:1], *others, one]
    with ShardReader(index) as reader:
        expected = [render_blocks(reader, views(), task) for task in tasks]
        found = list(render_ahead(tasks, reader=reader, recipe=views(), workers=2, died=RunError))
    assert all(map(same, found, expected))


def test_no_memory_for_the_ring_is_one_message_with_a_way_out(index, monkeypatch):
    def refuse(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("shards.pool.ring.mmap", SimpleNamespace(mmap=refuse))
    with ShardReader(index) as reader, pytest.raises(RunError, match="lower --workers"):
        list(render_ahead(plan_items(index), reader=reader, recipe=views(), workers=1, died=RunError))


class FakeEvent:
    """Happens when the test says so."""

    def __init__(self):
        self.happened = False

    def query(self):
        return self.happened


class FakeGpu:
    """What `device_copy` asks of torch.cuda: copies stay on the CPU, events and locks are written down."""

    def __init__(self, monkeypatch, code=0):
        self.events, self.locked, self.said, self.code = [], {}, [], code
        stream = SimpleNamespace(record_event=self.record, wait_event=lambda event: self.said.append("waits"))
        cuda = SimpleNamespace(
            Stream=lambda device: stream,
            stream=lambda stream: torch.no_grad(),
            current_stream=lambda device: stream,
            cudart=lambda: SimpleNamespace(cudaHostRegister=self.lock, cudaHostUnregister=self.unlock),
            Event=FakeEvent,
        )
        monkeypatch.setattr(device_copy.torch, "cuda", cuda)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)

    def record(self):
        self.events.append(FakeEvent())
        return self.events[-1]

    def lock(self, address, size, flags):
        if not self.code:
            self.locked[address] = size
        return self.code

    def unlock(self, address):
        del self.locked[address]


def test_what_a_gpu_may_still_read_is_held_until_the_event_behind_its_copy(monkeypatch):
    gpu, ring = FakeGpu(monkeypatch), Ring(2)
    copies = device_copy._Copies(torch.device("cpu"))

    def copy():
        slot = ring.take(36)
        if slot is not None:
            copies.copied(torch.from_numpy(ring.lend(slot, SHAPE)))
        return slot

    assert copy() is not None and copy() is not None
    assert copy() is None, "both slots are read: no new result may go there"
    assert gpu.said == ["waits", "waits"], "what uses a copy runs behind it"
    gpu.events[0].happened = True
    copies.copied(torch.zeros(1))
    assert copy() is not None and copy() is None


def test_a_ring_is_locked_once_and_released_before_its_memory(monkeypatch, index):
    gpu = FakeGpu(monkeypatch)
    with ShardReader(index) as reader:
        tasks = plan_items(index)
        stream = render_ahead(tasks, reader=reader, recipe=views(), workers=2, pin_memory=True, died=RunError)
        batch = next(stream)
        locked = dict(gpu.locked)
        assert len(locked) == 1 and batch.view_BHWC.ctypes.data - next(iter(locked)) < next(iter(locked.values()))
        for _ in stream:
            assert gpu.locked == locked
        assert gpu.locked == locked, "a batch is still there"
        del batch, _
    assert not gpu.locked


def test_a_driver_that_refuses_to_lock_is_said_once(monkeypatch, index):
    FakeGpu(monkeypatch, code=2)
    with ShardReader(index) as reader, pytest.warns(RuntimeWarning, match="CUDA error 2") as said:
        tasks = plan_items(index)
        list(render_ahead(tasks, reader=reader, recipe=views(), workers=1, pin_memory=True, died=RunError))
    assert len(said) == 1


def test_a_forked_child_does_not_call_the_driver(monkeypatch):
    gpu, ring = FakeGpu(monkeypatch), Ring(1)
    ring.take(36)
    device_copy.page_lock(ring.memory)

    def drop():
        nonlocal ring
        ring = None
        return len(gpu.locked)

    assert in_child(drop) == 1 and os.getpid()
    del ring
