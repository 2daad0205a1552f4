"""k classes by name, class means for the others."""

from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import LEVEL_BITS, RecordKind, ranked_codec, ranked_fields

if TYPE_CHECKING:
    from teacher_cache.record.record_format import RecordFormat


def _budget_k(record_format: "RecordFormat") -> int:
    per_class = record_format.index_bits + LEVEL_BITS
    return max(1, min(record_format.num_classes - 1, int((record_format.record_bits - LEVEL_BITS) / per_class)))


TOPK = RecordKind(
    name="topk",
    summary="k classes, class means for the others",
    fields=ranked_fields,
    codec=ranked_codec,
    needs_basis=True,
    default_bytes=48,
    budget_k=_budget_k,
)
