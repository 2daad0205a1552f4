"""The first class only."""

from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import KindCodec, RecordKind, index_field

if TYPE_CHECKING:
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.record.tail_basis import TailBasis


def _codec(record_format: "RecordFormat", _: "TailBasis | None") -> KindCodec:
    from teacher_cache.record.dense import HardCodec

    return HardCodec(record_format)


HARD = RecordKind(
    name="hard",
    summary="first class only",
    fields=lambda record_format: (index_field(record_format),),
    codec=_codec,
    soft=False,
    exact=True,
)
