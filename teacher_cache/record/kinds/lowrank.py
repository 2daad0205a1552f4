"""k classes by name and a low-rank code of the others: any τ from 64 bytes."""

from teacher_cache.record.kinds.record_kind import Budget, RecordKind
from teacher_cache.record.kinds.topk import class_bits, topk_bits, topk_codec, topk_fields


def _k(num_classes: int, bits: int) -> int:
    # About a third of the bits for the classes by name, measured best at 48 and 64 bytes; beyond 16 it is all tail.
    return max(1, min(num_classes // 4, 16, round(bits / (2.65 * class_bits(num_classes)))))


LOWRANK = RecordKind(
    name="lowrank",
    summary="k classes and a low-rank code of the others",
    fields=topk_fields,
    codec=topk_codec,
    needs_basis=True,
    budget=Budget(
        default_bytes=64,
        k=_k,
        least_bits=lambda num_classes, k: topk_bits(num_classes, k) + 8,
        tail_bytes=lambda num_classes, k, bits: (bits - topk_bits(num_classes, k)) // 8,
    ),
)
