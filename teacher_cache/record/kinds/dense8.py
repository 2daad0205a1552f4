"""All logits in 8 bits: the record of few classes."""

import math
from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import Field, KindCodec, RecordKind, RecordShape, index_field

if TYPE_CHECKING:
    from teacher_cache.record.tail_basis import TailBasis


def _fields(shape: RecordShape) -> tuple[Field, ...]:
    range_field = Field("logit_range", "<f4", None, math.nan)
    return (index_field(shape), range_field, Field("logit", "|u1", shape.num_classes, 255))


def _codec(shape: RecordShape, _: "TailBasis | None") -> KindCodec:
    from teacher_cache.record.dense import Dense8Codec

    return Dense8Codec(shape)


DENSE8 = RecordKind(
    name="dense8",
    summary="all logits in 8 bits",
    fields=_fields,
    codec=_codec,
    logit_bytes=lambda num_classes: num_classes + 4,
)
