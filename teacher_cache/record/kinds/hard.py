"""The first class only."""

from typing import TYPE_CHECKING

from teacher_cache.record.kinds.record_kind import KindCodec, RecordKind, RecordShape, index_field

if TYPE_CHECKING:
    from teacher_cache.record.tail_basis import TailBasis


def _codec(shape: RecordShape, _: "TailBasis | None") -> KindCodec:
    from teacher_cache.record.dense import HardCodec

    return HardCodec(shape)


HARD = RecordKind(
    name="hard",
    summary="first class only",
    fields=lambda shape: (index_field(shape),),
    codec=_codec,
    soft=False,
    exact=True,
)
