"""k classes by name, class means for the others."""

import math
from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import Budget, Field, KindCodec, RecordKind, RecordShape, index_field

if TYPE_CHECKING:
    from teacher_cache.record.tail_basis import TailBasis

_LEVEL_BITS = 6.0
"""Bits set aside for a level code after the store's compression: measured 4.4 to 5.8 of 8, more for peaky teachers."""


def index_bits(num_classes: int) -> int:
    """Bits of a class index that carry information: ⌈log2 C⌉."""
    return (num_classes - 1).bit_length()


def class_bits(num_classes: int) -> float:
    """Bits of a class by name with its level."""
    return index_bits(num_classes) + _LEVEL_BITS


def topk_bits(num_classes: int, k: int) -> int:
    """Bits of k classes by name with their levels, and of the mass code."""
    # Index planes that are always zero cost nothing after bit-shuffled compression.
    return math.ceil(k * index_bits(num_classes) + _LEVEL_BITS * (k + 1))


def topk_fields(shape: RecordShape) -> tuple[Field, ...]:
    """Classes, their levels and the mass code, and the tail code if there is one."""
    fields = (index_field(shape), Field("logit", "|u1", shape.k + 1, 255))
    return (*fields, Field("tail", "|u1", shape.tail_bytes, 255)) if shape.tail_bytes else fields


def topk_codec(shape: RecordShape, basis: "TailBasis | None") -> KindCodec:
    """The codec of k classes and a tail model."""
    from teacher_cache.record.top_and_tail import TopAndTailCodec

    assert basis is not None, "the kind says that it needs one"
    return TopAndTailCodec(shape, basis)


def _k(num_classes: int, bits: int) -> int:
    return max(1, min(num_classes - 1, int((bits - _LEVEL_BITS) / class_bits(num_classes))))


TOPK = RecordKind(
    name="topk",
    summary="k classes, class means for the others",
    fields=topk_fields,
    codec=topk_codec,
    needs_basis=True,
    budget=Budget(default_bytes=48, k=_k, least_bits=topk_bits),
)
