"""Read the record of one sample in one view: the teacher's answer to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.index.shard_index import ShardIndex
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import signed
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.header import require_index


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """What a cache holds of one (view, sample).

    Attributes:
        shard, row, view: where it is.
        fields: the arrays of the record as they are on disk, one entry each, and the pixel digest.
    """

    shard: int
    row: int
    view: int
    fields: dict[str, NDArray[Any]]
    codec: RecordCodec

    @property
    def pixel_digest(self) -> int:
        """crc32c of the pixels that the teacher saw, and of their mixing."""
        return int(self.fields["pixel_digest"])

    @property
    def hard(self) -> int:
        """The teacher's first class: always exact."""
        return int(self.codec.hard_label(self._record())[0])

    def log_prob(self, temperature: float = 1.0) -> NDArray[np.float32]:
        """Log p at τ of all classes, float32 (C,); ValueError for a record of kind "hard" and for τ ≤ 0."""
        values: NDArray[np.float32] = self.codec.log_prob(self._record(), temperature)[0].numpy()
        return values

    def _record(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(signed(np.asarray(value)[None])) for name, value in self.fields.items()}


def read_record(cache: TeacherCache, index: ShardIndex, key: str, view: int) -> SampleRecord:
    """The record of a sample in a view. It reads and checks the whole unit: for many samples read units, or use a feed.

    Errors:
        ShardError when no sample has that key; ValueError for a view that the cache has no room for; CacheError for a
        unit that is not there or damaged, and for an index of other shards.
    """
    require_index(cache.header, index, cache.url)
    if not 0 <= view < cache.num_views:
        raise ValueError(f"view: {cache.url} holds views 0 … {cache.num_views - 1}, got {view}")
    shard, row = index.find(key)
    view_block, place = divmod(view, cache.views_per_unit)
    unit = cache.read_unit(view_block, shard)
    fields = {name: unit[name][place, row] for name in cache.row_fields}
    return SampleRecord(
        shard=shard, row=row, view=view, fields=fields, codec=RecordCodec(cache.spec.record, cache.basis)
    )
