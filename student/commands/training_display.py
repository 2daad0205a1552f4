"""Draw a training: one bar for the pass, one line per student and epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from shards.console import Bar, result, say
from shards.flags import stop_with
from shards.text.figures import count

if TYPE_CHECKING:
    from student.run.run_events import Event, Resumed, Scheduled


class TrainingDisplay:
    """Draws the events of one or several students; silent on ranks other than the first."""

    def __init__(self, *, quiet: bool, beside: Callable[[], str] = lambda: "") -> None:
        """Nothing is shown before the first event; `beside` is asked for what else stands behind the bar."""
        self._quiet, self._beside = quiet, beside
        self._bar: Bar | None = None
        self._epochs = 0

    def explain(self, reasons: Sequence[str], also: Sequence[str] = ()) -> None:
        """Say which settings were chosen for these data, and why; and what else there is to say, a line each."""
        for sentence in also if not self._quiet else ():
            say(sentence)
        if reasons and not self._quiet:
            say("automatic settings: " + "; ".join(reasons))

    def show(self, event: "Event") -> None:
        """Draw one event; a stop ends the command with its exit code."""
        from student.run import run_events as events

        if isinstance(event, events.Stopped):
            self.close()
            say(f"stopped after step {event.step}, everything is saved; run the same command again to go on")
            raise stop_with(event.exit_code)
        if self._quiet:
            return
        match event:
            case events.Scheduled():
                self._begin(event)
            case events.ValidationChecked():
                self._say_validation(event.num_samples, event.num_in_training)
                if event.classes:
                    self._say(f"classes: {event.classes}")
            case events.Joining():
                others = event.world_size - 1
                say(f"rank {event.rank} of {event.world_size} waits at {event.where} for the other {others}")
            case events.Resumed():
                self._say(f"resumed after step {event.step}")
                self._say_cut(event)
                if self._bar is not None:
                    self._bar.start_at(event.step)
            case events.StartedFrom():
                changes = f"{event.changes}; all others are as in the file" if event.changes else "all as in the file"
                self._say(f"{event.student} starts from {event.weights}: {changes}")
            case events.CheckpointRejected():
                self._say(f"warning: {event.path}: {event.reason}; going on from an earlier checkpoint")
            case events.BalanceMeasured():
                self._say(
                    f"{event.student}: at step 0 the gradient from the teacher is {event.balance:.3g} times that from "
                    "the labels"
                )
            case events.Stepped() if self._bar is not None:
                shown = _figures(event.metrics, _STEP)
                self._bar.to(event.step, ", ".join(part for part in (shown, self._beside()) if part))
            case events.EpochEnded():
                if self._bar is not None:
                    self._bar.to(event.step)
                shown = _figures({**event.metrics, **(event.validation or {})}, _EPOCH)
                self._say(f"{event.student} epoch {event.epoch + 1}/{self._epochs}: {shown}")
            case events.StudentFailed():
                self._say(f"error: {event.student}: {event.error}")
            case events.StudentFinished():
                self.close()
                result(", ".join(part for part in (f"{event.out}: done", _figures(event.summary, _END)) if part))

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _begin(self, event: "Scheduled") -> None:
        steps = event.epochs * event.steps_per_epoch
        spans = "; ".join(
            f"epochs {s.first_epoch + 1}-{s.last_epoch + 1}: views {s.first_view}-{s.last_view}"
            for s in event.views[:4]
        )
        more = f" … {len(event.views) - 4} more passes" if len(event.views) > 4 else ""
        say(
            f"{', '.join(event.students)}: {count(event.epochs, 'epoch')} of "
            f"{count(event.steps_per_epoch, 'step')}, {count(event.batch_size, 'image')} a step"
        )
        evenly = event.coverage.seen
        counts = f"; over the run, each sample is seen in {evenly[0]} to {count(evenly[1], 'view')}" if evenly else ""
        num_samples = event.coverage.num_samples
        used = f"each pass uses {num_samples - event.num_left_out} of {count(num_samples, 'sample')}"
        say(f"views: {spans}{more}; {used} (whole groups and batches only){counts}")
        if event.coverage.warning:
            say(f"warning: {event.coverage.warning}")
        self.close()
        self._epochs = event.epochs
        self._bar = Bar("train", steps, "step", rate=False)

    def _say_validation(self, num_samples: int, num_in_training: int) -> None:
        """What the numbers of the validation are worth."""
        if not num_samples:
            self._say("validation: none; give --val-shards to measure what the student has learned")
        elif num_in_training:
            self._say(
                f"warning: validation: {num_in_training} of {count(num_samples, 'sample')} are in the training shards "
                "as well, so its numbers are too good; give --val-shards images that are not trained on"
            )

    def _say_cut(self, event: "Resumed") -> None:
        """What another number of ranks or micro-batches changes, and how it is kept as it was."""
        before, now = (event.world_size_before, event.accumulate_before), (event.world_size, event.accumulate)
        if before == now:
            return
        cut = "ranks × --accumulate was {} × {}, is {} × {}: same batches".format(*before, *now)
        if event.parts == event.parts_before:
            self._say(f"{cut} in the same parts; sums over the parts may round differently")
            return
        accumulate, rest = divmod(event.parts_before, event.world_size)
        way = f"; --accumulate {accumulate} would keep them" if not rest else ""
        self._say(f"{cut}, but drop path, dropout and BatchNorm go by parts of a batch and differ from now on{way}")

    def _say(self, text: str) -> None:
        (self._bar.say if self._bar else say)(text)


class _Figure(NamedTuple):
    """How a metric is shown: a share as percent, like everything that is one."""

    metric: str
    text: str
    factor: float = 1.0


_STEP = (
    _Figure("loss", "loss {:.3f}"),
    _Figure("images_per_s", "{:,.0f} images/s"),
    _Figure("data_wait_share", "data loading {:.0f} %", 100.0),
)
_EPOCH = (
    _Figure("base_loss", "label loss {:.2f}"),
    _Figure("distill_loss", "teacher loss {:.2f}"),
    _Figure("teacher_agreement", "agreement {:.0f} %", 100.0),
    _Figure("top1", "top-1 {:.1f} %"),
    _Figure("cls_top1", "CLS {:.1f}"),
    _Figure("dist_top1", "DIST {:.1f}"),
)
_END = (
    _Figure("top1", "top-1 {:.2f} %"),
    _Figure("cls_top1", "CLS {:.2f}"),
    _Figure("dist_top1", "DIST {:.2f}"),
    _Figure("pixels_checked", "{:,.0f} views compared"),
    _Figure("pixels_mismatched", "{:,.0f} differed"),
)


def _figures(values: Mapping[str, Any], shown: tuple[_Figure, ...]) -> str:
    """Metrics that are there, in words; without a teacher its loss is no figure, and digests that nobody compared."""
    parts = []
    for figure in shown:
        value = values.get(figure.metric)
        absent = figure.metric == "distill_loss" and value == 0
        absent |= figure.metric == "cls_top1" and "dist_top1" not in values  # one head: top-1 is its own
        absent |= figure.metric.startswith("pixels") and not values.get("pixels_checked")
        if isinstance(value, int | float) and not absent:
            parts.append(figure.text.format(figure.factor * value))
    return ", ".join(parts)
