"""k classes by name and a low-rank code of the others: any τ from 64 bytes."""

from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import LEVEL_BITS, RecordKind, ranked_codec, ranked_fields

if TYPE_CHECKING:
    from teacher_cache.record.record_format import RecordFormat


def _budget_k(record_format: "RecordFormat") -> int:
    # About a third of the bits for the peaks, measured best at 48 and 64 bytes; beyond 16 classes it is all tail.
    per_class = record_format.index_bits + LEVEL_BITS
    return max(1, min(record_format.num_classes // 4, 16, round(record_format.record_bits / (2.65 * per_class))))


LOWRANK = RecordKind(
    name="lowrank",
    summary="k classes and a low-rank code of the others",
    fields=ranked_fields,
    codec=ranked_codec,
    needs_basis=True,
    default_bytes=64,
    min_tail_bits=8,
    has_tail=True,
    budget_k=_budget_k,
)
