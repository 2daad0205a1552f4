"""The join compares every digest."""

import numpy as np
import pytest
import torch

from shards.errors import CacheError
from student.feed.join import require_same_pixels
from student.feed.loader import LoadedBatch

ROWS = np.array([5, 3, 7])


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
