"""Compare the digest of every rendered view with the one in its record (law 1).

Legend: B a batch.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from shards.text.figures import count
from shards.views.blocks import ViewBatch


class PixelCheck:
    """Compares every view with its record, and counts (law 1).

    Attributes:
        checked: views compared so far.
    """

    def __init__(self, name_of: Callable[[int, int], tuple[str, str]], remedy: str = "") -> None:
        """Compare from now on.

        Args:
            name_of: (shard, row) → names of shard and sample.
            remedy: what to do after a mismatch, for the message.
        """
        self.checked = 0
        self._name_of, self._remedy = name_of, remedy

    def compare(self, batch: ViewBatch, digest_B: NDArray[np.uint32]) -> None:
        """Compare a batch with the digests that stage 1 stored, uint32 (B,).

        Errors:
            CacheError at the first view that differs, naming shard, key and view, and how many differ.
        """
        wrong_B = np.flatnonzero(batch.pixel_digest_B != digest_B)
        self.checked += len(digest_B)
        if len(wrong_B):
            first = int(wrong_B[0])
            shard_name, key = self._name_of(int(batch.shard_B[first]), int(batch.row_B[first]))
            raise CacheError(
                f"pixels of shard {shard_name}, key {key}, view {int(batch.view_B[first])} are not those the teacher "
                f"saw: expected digest {int(digest_B[first]):08x}, got {int(batch.pixel_digest_B[first]):08x} "
                f"({len(wrong_B)} of {count(len(digest_B), 'sample')} of this batch differ). {self._remedy}"
            )
