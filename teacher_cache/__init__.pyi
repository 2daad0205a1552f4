"""The public names of this package and where each is defined: read by type checkers, and when a name is first used."""

from .inspect.sample_record import SampleRecord as SampleRecord
from .inspect.sample_record import read_record as read_record
from .inspect.status import cache_fidelity as cache_fidelity
from .inspect.status import cache_status as cache_status
from .network.teacher import Teacher as Teacher
from .network.teacher import TeacherOptions as TeacherOptions
from .network.teacher import load_teacher as load_teacher
from .record.codec import RecordCodec as RecordCodec
from .record.record_format import RecordFormat as RecordFormat
from .stage1.agreement import fit_classes as fit_classes
from .stage1.build import build_cache as build_cache
from .stage1.opening import open_or_create as open_or_create
from .store.cache import TeacherCache as TeacherCache
from .store.spec import CacheSpec as CacheSpec
from .store.spec import TeacherSpec as TeacherSpec
