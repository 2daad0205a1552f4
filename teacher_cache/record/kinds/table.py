"""The kinds by name, from the smallest record to the largest."""

from teacher_cache.record.kinds.dense import DENSE
from teacher_cache.record.kinds.dense8 import DENSE8
from teacher_cache.record.kinds.hard import HARD
from teacher_cache.record.kinds.lowrank import LOWRANK
from teacher_cache.record.kinds.record_kind import RecordKind
from teacher_cache.record.kinds.topk import TOPK

KINDS: dict[str, RecordKind] = {kind.name: kind for kind in (HARD, TOPK, LOWRANK, DENSE8, DENSE)}


def kind_named(name: str) -> RecordKind:
    """The kind of that name; ValueError with what there is."""
    if name not in KINDS:
        raise ValueError(f"record kind: expected one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]
