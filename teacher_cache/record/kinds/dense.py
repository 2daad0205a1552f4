"""All logits in float32: lossless."""

import math
from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import Field, KindCodec, RecordKind, RecordShape, index_field

if TYPE_CHECKING:
    from teacher_cache.record.tail_basis import TailBasis


def _fields(shape: RecordShape) -> tuple[Field, ...]:
    return (index_field(shape), Field("logit", "<f4", shape.num_classes, math.nan))


def _codec(shape: RecordShape, _: "TailBasis | None") -> KindCodec:
    from teacher_cache.record.dense import DenseCodec

    return DenseCodec(shape)


DENSE = RecordKind(
    name="dense",
    summary="all logits, float32, lossless",
    fields=_fields,
    codec=_codec,
    exact=True,
    logit_bytes=lambda num_classes: 4 * num_classes,
    logits=lambda record: record["logit"],
)
