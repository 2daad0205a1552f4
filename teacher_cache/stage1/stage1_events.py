"""The events of stage 1: small frozen values, in the order in which things happen."""

from dataclasses import dataclass

from teacher_cache.record.fidelity import Fidelity
from teacher_cache.stage1.agreement import Renumbered
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Stage 1 begins: units of the whole cache and missing ones, and the views of those that this process begins with.

    A process that is done with its share helps the others, so it may end with more views than these.
    """

    num_units: int
    missing_units: int
    share_views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDamaged:
    """The ledger's summary, from which a reader starts, is damaged or gone; it is written anew at the end."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDamaged:
    """A committed unit that does not verify; it was taken out of the ledger and will be computed again."""

    unit: UnitId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStarted:
    """The first forward of a unit is next."""

    unit: UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDone:
    """One teacher forward: its rows, and this run so far."""

    unit: UnitId
    num_views: int
    views_done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCommitted:
    """A unit is in the ledger; said while the next one is computed.

    Attributes:
        written: False where another process had committed it just before.
        num_views: views of the unit. seconds: since its first forward.
        label_agreement: share of the views, among those that show their own image for the larger part, whose first
            class is the label. Near 1 / C it says that teacher and labels number their classes differently. NaN where
            no sample has a label.
        renumbered: classes that the teacher seems to know by another number, of the views of this run so far.
    """

    unit: UnitId
    written: bool
    num_views: int
    seconds: float
    label_agreement: float
    renumbered: tuple[Renumbered, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSkipped:
    """A unit that another process committed after this one had listed it as missing."""

    unit: UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsElsewhere:
    """All that is missing is being computed by other processes: this one waits for them, and helps if one ends."""

    num_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFinished:
    """The end of this process's walk.

    Attributes:
        stopped: it was asked to stop; the unit that was being computed was dropped.
        num_forwards: teacher forwards of this run.
        views_done: views computed by this run. seconds: wall time.
        missing_units: units that are still missing in the cache.
        label_agreement: as in `UnitCommitted`, the mean over the units of this run; NaN without any.
        labels_disagree: it is so small that teacher and shards number their classes differently.
        renumbered: as in `UnitCommitted`.
    """

    stopped: bool
    num_forwards: int
    views_done: int
    seconds: float
    missing_units: int
    label_agreement: float
    labels_disagree: bool
    renumbered: tuple[Renumbered, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Views of the calibration pass that the teacher has answered."""

    views_done: int
    num_views: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortCalibration:
    """The record of a new cache was fitted on few views, and what that costs.

    Attributes:
        num_views: views it was fitted on. wanted: from how many on nothing is said.
        errors: per τ, of a fit on two thirds of them, measured on the others: slightly worse than the cache's own.
        num_measured: views behind `errors`.
    """

    num_views: int
    wanted: int
    errors: tuple[Fidelity, ...]
    num_measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOpened:
    """The cache is there and open for writing.

    Attributes:
        cache: to be closed by whoever takes it.
        created: this process made it. grown: it had fewer views before.
    """

    cache: TeacherCache
    created: bool
    grown: bool


BuildEvent = (
    Started
    | SnapshotDamaged
    | UnitDamaged
    | UnitStarted
    | BatchDone
    | UnitCommitted
    | UnitSkipped
    | UnitsElsewhere
    | BuildFinished
)
OpenEvent = Calibrated | ShortCalibration | CacheOpened
