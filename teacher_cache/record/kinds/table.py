"""The kinds by name, from the smallest record to the largest."""

from shards.names import OpenSet
from teacher_cache.record.kinds.dense import DENSE
from teacher_cache.record.kinds.dense8 import DENSE8
from teacher_cache.record.kinds.hard import HARD
from teacher_cache.record.kinds.lowrank import LOWRANK
from teacher_cache.record.kinds.record_kind import RecordKind
from teacher_cache.record.kinds.topk import TOPK

KINDS = OpenSet("record_kinds", "record kind", RecordKind, (HARD, TOPK, LOWRANK, DENSE8, DENSE))
