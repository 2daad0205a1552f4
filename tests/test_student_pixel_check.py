"""Every digest is compared with the stored one."""

import pytest

from shards.errors import CacheError
from student.feed.pixel_check import PixelCheck
from tests.student_tiny import loaded_batch


def test_every_digest_is_compared_and_a_mismatch_names_the_sample():
    """One wrong sample among many is an error with shard, key, view and both digests."""
    some = loaded_batch()
    check = PixelCheck(lambda shard, row: (f"shard{shard}", f"key{row}"))
    check.compare(some, some.pixel_digest_B)
    assert check.checked == 50
    for wrong in (0, 17, 49):
        digest_B = some.pixel_digest_B.copy()
        digest_B[wrong] ^= 1 << 31
        where = f"shard{some.shard_B[wrong]}, key key{some.row_B[wrong]}, view {some.view_B[wrong]} "
        with pytest.raises(CacheError, match=f"{where}.*expected digest {digest_B[wrong]:08x}.*1 of 50"):
            check.compare(some, digest_B)
