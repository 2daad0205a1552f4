"""The proof of the join: the pixel digest of every view is compared with the one in its record (law 1).

Legend: B a batch.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from student.feed.loader import LoadedBatch

PIXEL_DIGEST = "pixel_digest"


def require_same_pixels(
    batch: LoadedBatch, digest_B: NDArray[np.uint32], *, name_of: Callable[[int, int], tuple[str, str]]
) -> int:
    """Compare the digest of every view with its record's; returns how many were compared (all of them).

    Args:
        batch: what the student is about to see.
        digest_B: uint32, the digests stage 1 stored.
        name_of: (shard, row) to the names of shard and sample, for the message.

    Raises:
        CacheError: naming shard, key and view of the first mismatch and how many there are (law 1).
    """
    wrong_B = np.flatnonzero(batch.pixel_digest_B != digest_B)
    if len(wrong_B):
        raise PixelMismatchError(batch, digest_B, wrong_B, name_of)
    return len(digest_B)


class PixelMismatchError(CacheError):
    """The student's pixels are not those the teacher saw."""

    def __init__(
        self,
        batch: LoadedBatch,
        digest_B: NDArray[np.uint32],
        wrong_B: NDArray[np.int64],
        name_of: Callable[[int, int], tuple[str, str]],
    ) -> None:
        """Describe the first mismatch."""
        first = int(wrong_B[0])
        shard_name, key = name_of(int(batch.shard_B[first]), int(batch.row_B[first]))
        self.num_mismatched = len(wrong_B)
        super().__init__(
            f"pixels of shard {shard_name}, key {key}, view {int(batch.view_B[first])} are not those the teacher saw: "
            f"expected digest {int(digest_B[first]):08x}, got {int(batch.pixel_digest_B[first]):08x} "
            f"({len(wrong_B)} of {len(digest_B)} samples of this batch differ). Another image library or machine "
            "renders these views differently: install the versions the cache was made with, or make the cache here"
        )
