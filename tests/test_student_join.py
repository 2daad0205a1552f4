"""The join gives every view its own record and compares every digest."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shards.errors import CacheError
from student.feed.join import RecordSlab, SlabLoader, require_same_pixels
from student.feed.loader import LoadedBatch

ROWS = np.array([5, 3, 7])
VIEWS = 4


class FakeCache(SimpleNamespace):
    """Units whose values say which (view, shard, row) they are; counts its reads."""

    rows_S, views_per_unit = ROWS, VIEWS
    row_fields = ("pixel_digest", "logit")

    def read_unit(self, view_block, shard):
        self.reads.append((view_block, shard))
        view, row = np.mgrid[view_block * VIEWS : (view_block + 1) * VIEWS, : ROWS[shard]]
        code = (view * 100 + shard * 10 + row).astype(np.uint32)
        kept_beside = np.zeros((2, 2), np.uint32)  # not one entry per row
        logit = np.stack([code, -code.astype(int)], -1).astype(np.float32)
        return {"pixel_digest": code, "logit": logit, "fidelity_at": kept_beside}


def batch(count=50, views=range(4, 8), seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    shard_B = rng.integers(0, 3, count).astype(np.int32)
    row_B = np.array([rng.integers(0, ROWS[s]) for s in shard_B], np.int32)
    view_B = rng.integers(views.start, views.stop, count).astype(np.int32)
    return LoadedBatch(
        shard_B=shard_B,
        row_B=row_B,
        view_B=view_B,
        label_B=np.zeros(count, np.int64),
        pixel_digest_B=(view_B * 100 + shard_B * 10 + row_B).astype(np.uint32),
        partner_B=np.arange(count, dtype=np.int32),
        lam_B=np.ones(count, np.float32),
        box_B4=np.zeros((count, 4), np.int16),
        view_BHWC=torch.zeros(count, 1, 1, 3, dtype=torch.uint8),
    )


@pytest.mark.parametrize("views", [range(4, 8), range(5, 7), range(7, 8)])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_view_gets_its_own_record(views, threads):
    """A gather that is off by one view, shard or row would train on another image's answer."""
    slab = RecordSlab.load(FakeCache(reads=[]), views, threads=threads)
    some = batch(views=views)
    record = slab.gather(some)
    assert np.array_equal(record["pixel_digest"], some.pixel_digest_B)
    assert np.array_equal(record["logit"][:, 1], -record["logit"][:, 0])
    assert slab.num_bytes == len(views) * ROWS.sum() * 12


def test_every_digest_is_compared_and_a_mismatch_names_the_sample():
    """One wrong sample among many is an error with shard, key, view and both digests."""
    some = batch()
    names = lambda shard, row: (f"shard{shard}", f"key{row}")  # noqa: E731
    assert require_same_pixels(some, some.pixel_digest_B, name_of=names) == 50
    for wrong in (0, 17, 49):
        digest_B = some.pixel_digest_B.copy()
        digest_B[wrong] ^= 1 << 31
        where = f"shard{some.shard_B[wrong]}, key key{some.row_B[wrong]}, view {some.view_B[wrong]} "
        with pytest.raises(CacheError, match=f"{where}.*expected digest {digest_B[wrong]:08x}.*1 of 50"):
            require_same_pixels(some, digest_B, name_of=names)


def test_slabs_are_loaded_once_per_super_epoch_and_ahead():
    """Epochs of one super-epoch share a slab; the next one is being loaded while this one is used."""
    cache = FakeCache(reads=[])
    schedule = [range(0, 2)] * 2 + [range(2, 4)] * 2 + [range(4, 6)]
    with SlabLoader(cache, schedule) as slabs:
        first = slabs.epoch(0)
        assert slabs.epoch(1) is first
        assert slabs.epoch(2).views == range(2, 4)
        assert slabs.epoch(4).views == range(4, 6)
    assert len(cache.reads) == 9, "three slabs of three shards, each read once"


def test_an_error_of_the_store_reaches_the_epoch_that_needs_it():
    """A damaged unit that is loaded ahead must not be lost in the thread."""
    cache = FakeCache(reads=[])
    good = cache.read_unit

    def damaged(view_block, shard):
        if view_block == 1:
            raise CacheError("unit is damaged")
        return good(view_block, shard)

    cache.read_unit = damaged
    with SlabLoader(cache, [range(0, 4), range(4, 8)]) as slabs:
        slabs.epoch(0)
        with pytest.raises(CacheError, match="unit is damaged"):
            slabs.epoch(1)
