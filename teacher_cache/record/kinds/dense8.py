"""All logits in 8 bits: the record of few classes."""

import math
from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import Field, KindCodec, RecordKind, index_field

if TYPE_CHECKING:
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.record.tail_basis import TailBasis


def _fields(record_format: "RecordFormat") -> tuple[Field, ...]:
    range_field = Field("logit_range", "<f4", None, math.nan)
    return (index_field(record_format), range_field, Field("logit", "|u1", record_format.num_classes, 255))


def _codec(record_format: "RecordFormat", _: "TailBasis | None") -> KindCodec:
    from teacher_cache.record.dense import Dense8Codec

    return Dense8Codec(record_format)


DENSE8 = RecordKind(
    name="dense8",
    summary="all logits in 8 bits",
    fields=_fields,
    codec=_codec,
    logit_bytes=lambda num_classes: num_classes + 4,
)
