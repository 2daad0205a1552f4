"""The artefact of stage 1: one small record for every (view, sample), and the spec that says what it is of.

    record    logits ↔ bytes: any τ from one record, and how true it is
    store     spec, layout, ledger; units in Zarr, all or nothing
    network   the teacher
    stage1    runs the teacher over units and commits them
    inspect   look before, during and after
    publish   copies, smaller ones, cards

The names of `__all__` are what other code may import (docs/python.md); they are loaded when they are asked for.
"""

from typing import TYPE_CHECKING

from shards.public_names import names_from

if TYPE_CHECKING:
    from teacher_cache.inspect.sample_record import SampleRecord, read_record
    from teacher_cache.inspect.status import cache_fidelity, cache_status
    from teacher_cache.network.teacher import Teacher, load_teacher
    from teacher_cache.record.codec import RecordCodec
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.stage1.build import build_cache
    from teacher_cache.stage1.opening import open_or_create
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.spec import CacheSpec, TeacherSpec

__all__ = [
    "CacheSpec",
    "RecordCodec",
    "RecordFormat",
    "SampleRecord",
    "Teacher",
    "TeacherCache",
    "TeacherSpec",
    "build_cache",
    "cache_fidelity",
    "cache_status",
    "load_teacher",
    "open_or_create",
    "read_record",
]

_MODULES = {
    "CacheSpec": "teacher_cache.store.spec",
    "RecordCodec": "teacher_cache.record.codec",
    "RecordFormat": "teacher_cache.record.record_format",
    "SampleRecord": "teacher_cache.inspect.sample_record",
    "Teacher": "teacher_cache.network.teacher",
    "TeacherCache": "teacher_cache.store.cache",
    "TeacherSpec": "teacher_cache.store.spec",
    "build_cache": "teacher_cache.stage1.build",
    "cache_fidelity": "teacher_cache.inspect.status",
    "cache_status": "teacher_cache.inspect.status",
    "load_teacher": "teacher_cache.network.teacher",
    "open_or_create": "teacher_cache.stage1.opening",
    "read_record": "teacher_cache.inspect.sample_record",
}

__getattr__ = names_from(__name__, _MODULES)
