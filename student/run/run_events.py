"""Events of a run: small frozen values, which the commands draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from student.feed.coverage import Coverage
from student.feed.order import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """Before the first step: how long the run is, and which views its epochs use.

    The `batch_size` × `steps_per_epoch` views of an epoch are of about `images_per_epoch` distinct images.
    `num_left_out` samples per super-epoch are in no full block or full batch. They take turns from one view block to
    the next; `coverage` says how evenly, and which samples no epoch reaches. `labels` says how many samples
    have no label; "" where all have one.
    """

    students: tuple[str, ...]
    epochs: int
    steps_per_epoch: int
    batch_size: int
    images_per_epoch: int
    num_left_out: int
    coverage: Coverage
    views: tuple[Span, ...]
    repeats: int = 1
    labels: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationChecked:
    """Before the first step: samples to validate on (0: none), and how many of them are trained on as well.

    `classes` says how their classes are found among those of the training shards; "" where they are the same.
    """

    num_samples: int
    num_in_training: int
    classes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """This rank of several waits for the others at an address; told before it does."""

    rank: int
    world_size: int
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The run goes on after `step` steps, with the same batches whatever the number of ranks.

    `parts`, ranks × micro-batches, decides what drop path draws and over which images BatchNorm takes its statistics.
    `threads` are those of torch on a CPU, 0 elsewhere; where a machine has fewer than the run began with, sums round
    otherwise.
    """

    students: tuple[str, ...]
    step: int
    world_size: int
    world_size_before: int
    accumulate: int = 1
    accumulate_before: int = 1
    threads: int = 0
    threads_before: int = 0

    @property
    def parts(self) -> int:
        """Into how many parts a batch is cut."""
        return self.world_size * self.accumulate

    @property
    def parts_before(self) -> int:
        """Into how many it was cut before."""
        return self.world_size_before * self.accumulate_before


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedFrom:
    """A student starts from `weights`; `changes` says what was chosen in that file, resized, left out or begun anew."""

    student: str
    weights: str
    changes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A damaged checkpoint was passed over; the run goes on from an earlier one."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceMeasured:
    """How much harder the teacher pulls at a student's logits than the labels do, at step 0: a ratio of norms."""

    student: str
    balance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far the pass is, for whoever watches: told at the first step and then by time.

    Attributes:
        loss: mean of the main process since the last metrics; None for several students, or right after metrics.
        steps_per_s, images_per_s, wait_share: since this was told last.
    """

    students: tuple[str, ...]
    step: int
    num_steps: int
    loss: float | None
    steps_per_s: float
    images_per_s: float
    wait_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """Metrics of a student over the last steps, with what is left: `eta_s` seconds at this pace."""

    student: str
    step: int
    epoch: int
    num_steps: int
    eta_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """An epoch (from 0) is saved: a student's metrics over it, and of its validation when that was due."""

    student: str
    step: int
    epoch: int
    metrics: Mapping[str, float]
    validation: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """A checkpoint is complete on disk."""

    student: str
    step: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentFailed:
    """One of several students cannot go on; the others do."""

    student: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A signal asked to stop: the step was finished and saved; exit with `exit_code` and start again to go on.

    Without students it came when all of them were done.
    """

    students: tuple[str, ...]
    step: int
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentFinished:
    """A student is done; `summary` is what summary.json holds. `before`: it was done when the call began."""

    student: str
    out: Path
    summary: Mapping[str, object]
    before: bool = False


Event = (
    Joining
    | Scheduled
    | ValidationChecked
    | Resumed
    | StartedFrom
    | Rejected
    | BalanceMeasured
    | Progressed
    | Stepped
    | EpochEnded
    | Checkpointed
    | StudentFailed
    | Stopped
    | StudentFinished
)
