"""All logits in float32: lossless."""

import math
from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import Field, KindCodec, RecordKind, index_field

if TYPE_CHECKING:
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.record.tail_basis import TailBasis


def _fields(record_format: "RecordFormat") -> tuple[Field, ...]:
    return (index_field(record_format), Field("logit", "<f4", record_format.num_classes, math.nan))


def _codec(record_format: "RecordFormat", _: "TailBasis | None") -> KindCodec:
    from teacher_cache.record.dense import DenseCodec

    return DenseCodec(record_format)


DENSE = RecordKind(
    name="dense",
    summary="all logits, float32, lossless",
    fields=_fields,
    codec=_codec,
    exact=True,
    logit_bytes=lambda num_classes: 4 * num_classes,
    logits=lambda record: record["logit"],
)
