"""Draw a training: one bar for the pass, one line per student and epoch; of a sweep also the time left, and a table."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shards.commands.flags import stop_with
from shards.commands.shard_place import ShardPlace
from shards.console import Bar, command_line, result, runs_next_itself, say, setting_lines
from shards.errors import flag_hint
from shards.text.figures import accuracy, count, duration
from shards.world import World, world_from_env
from student.learn.diagnosis import MORE_VIEWS
from student.sweep.sweep_loop import (
    CellEnded,
    CellProgress,
    CellsStarted,
    SweepEvent,
    SweepFinished,
    SweepPlanned,
    Tally,
)

if TYPE_CHECKING:
    from student.run.run_events import Event, Progressed, Resumed, Scheduled, StudentFinished, ValidationChecked
    from teacher_cache.store.cache import TeacherCache

MoreViews = Callable[[int], Sequence[Sequence[object]]]
"""The commands by which the caches of a training get so many views."""
_LONG_S = 1800.0
_SHORT_S = 600.0


def more_views(caches: "Sequence[TeacherCache]", place: ShardPlace) -> MoreViews:
    """Return what gives, for a number of views, the commands by which caches of some shards get so many."""
    from teacher_cache.commands.extending import extending

    return lambda num_views: [
        extending(cache.url, cache.header, place.shards or "", num_views)
        for cache in caches
        if cache.num_views < num_views
    ]


def views_to_keep(out: Path, before: int | None, held: int | None) -> int | None:
    """Return the number of views that an existing run or sweep goes on with, and say it, where its caches hold more.

    Args:
        before: views that it cycles through. held: by each of its caches at least; None: there is no cache.

    Returns: None where there is nothing to keep, or a cache holds less.
    """
    if before is None or (held is not None and before > held):
        return None
    if held is not None and before < held and world_from_env(shared=True).rank == 0:
        say(
            f"views: {out} was begun with {count(before, 'view')} of each image and keeps them; to train on all "
            f"{held} of the cache, give another --out"
        )
    return before


def no_more(num_views: int) -> Sequence[Sequence[object]]:
    """Without a cache there is none to extend."""
    return ()


class TrainingDisplay:
    """Draws the events of one or several students; silent on ranks other than the first."""

    def __init__(self, *, quiet: bool, beside: Callable[[], str] = lambda: "", more_views: MoreViews = no_more) -> None:
        """Nothing is shown before the first event.

        Args:
            beside: is asked for what else stands behind the bar. more_views: how the caches are extended.
        """
        self._quiet, self._beside, self._more_views, self._num_views = quiet, beside, more_views, 0
        self._bar: Bar | None = None
        self._notes: set[object] = set()
        self._opening: list[str] = []
        self._epochs = self._num_steps = self._num_validated = self._num_told = 0

    def explain(self, reasons: Sequence[str], also: Sequence[str] = ()) -> None:
        """Keep for the first line: which settings were chosen for these data, and why; and other sentences."""
        self._opening += also
        self._opening += setting_lines(reasons)

    def show(self, event: "Event") -> None:
        """Draw one event; a stop ends the command with its exit code."""
        from student.run import run_events as events

        if isinstance(event, events.Stopped):
            if not event.students and not runs_next_itself():
                return  # all of them were done, and nothing comes after them
            self.close()
            of = f" of {self._num_steps}" if self._num_steps else ""
            say(f"stopped after step {event.step}{of}, everything is saved; run the same command again to go on")
            raise stop_with(event.exit_code)
        if self._quiet:
            return
        match event:
            case events.Scheduled():
                self._begin(event)
            case events.ValidationChecked():
                self._say_validation(event)
                if event.classes:
                    say(f"classes: {event.classes}")
            case events.Joining():
                others = event.world_size - 1
                say(f"{World(event.rank, event.world_size).name} waits at {event.where} for the other {others}")
            case events.Resumed():
                say(f"resumed after step {event.step} of {self._num_steps}")
                self._say_cut(event)
                if event.threads != event.threads_before:
                    say(
                        f"torch computes in {count(event.threads, 'thread')}, the run was begun with "
                        f"{event.threads_before}: last bits may differ from now on"
                    )
                if self._bar is not None:
                    self._bar.start_at(event.step)
            case events.StartedFrom():
                changes = f"{event.changes}; all others are as in the file" if event.changes else "all as in the file"
                say(f"{event.student} starts from {event.weights}: {changes}")
            case events.Rejected():
                say(f"warning: {event.path}: {event.reason}; going on from an earlier checkpoint")
            case events.Progressed():
                self._progress(event)
            case events.EpochEnded():
                if self._bar is not None and event.step == self._num_steps:
                    self._bar.to(event.step)
                shown = self._figures({**event.metrics, **(event.validation or {})}, _EPOCH)
                say(f"{event.student} epoch {event.epoch + 1}/{self._epochs}: {shown}")
            case events.StudentFailed():
                say(f"error: {event.student}: {event.error}")
            case events.StudentFinished():
                self._finish(event)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _begin(self, event: "Scheduled") -> None:
        for line in self._opening:
            say(line)
        self._opening = []
        self._epochs, self._num_steps = event.epochs, event.epochs * event.steps_per_epoch
        say(
            f"{', '.join(event.students)}: {count(event.epochs, 'epoch')} of "
            f"{count(event.steps_per_epoch, 'step')}, {count(event.batch_size, 'image')} a step"
        )
        for line in _data_words(event):
            say(line)
        self._num_views = max((span.last_view + 1 for span in event.views), default=0)
        if event.coverage.warning:
            say(f"warning: {event.coverage.warning}")
            self._say_more_views(event.coverage.more_views)
        self.close()
        self._num_told = 0
        self._bar = Bar("train", self._num_steps, "step", rate=False)

    def _progress(self, event: "Progressed") -> None:
        """A line by time: the first step, an estimate of the whole soon after it, then how far the pass is."""
        self._num_told += 1
        if self._bar is None:
            return
        if self._num_told == 2 and event.steps_per_s > 0 and event.num_steps - event.step >= event.steps_per_s:
            say(self._estimate(event))
        parts = [f"loss {event.loss:.3f}"] if event.loss is not None else []
        parts += [f"{event.images_per_s:,.0f} images/s, data loading {100 * event.wait_share:.0f} %"]
        self._bar.to(event.step, ", ".join(part for part in (*parts, self._beside()) if part), line=True)

    def _estimate(self, event: "Progressed") -> str:
        """Estimate the time left at the rate of the first steps; of a long run also what would be short."""
        left_s = (event.num_steps - event.step) / event.steps_per_s
        text = f"about {duration(left_s)} left for {count(event.num_steps - event.step, 'step')}, without validation"
        epochs = int(self._epochs * _SHORT_S / left_s) if left_s > _LONG_S else 0
        return text + (f"; --epochs {epochs} takes about {duration(_SHORT_S)}" if epochs else "")

    def _finish(self, event: "StudentFinished") -> None:
        self.close()
        images = event.summary.get("validation_images", self._num_validated)
        self._num_validated = images if isinstance(images, int) else 0
        parts = [f"{event.out}: {'already finished' if event.before else 'done'}"]
        top1, majority = self._figures(event.summary, _END[:1]), event.summary.get("validation_majority")
        if top1 and self._num_validated and isinstance(majority, float):
            top1 += f" of {count(self._num_validated, 'validation image')}"
            top1 += f" (always naming the largest class: {accuracy(majority, self._num_validated)})"
        parts += [part for part in (top1, self._figures(event.summary, _END[1:])) if part]
        result(", ".join(parts))
        self._say_notes(event.summary.get("diagnosis"))

    def _say_notes(self, sentences: object) -> None:
        """Print what the student suffers from; of the students of a sweep each sentence once."""
        for sentence in sentences if isinstance(sentences, list) else ():
            if sentence not in self._notes:
                self._notes.add(sentence)
                say(f"note: {sentence}")
                if sentence.startswith(MORE_VIEWS):
                    self._say_more_views(2 * self._num_views)

    def _say_more_views(self, num_views: int) -> None:
        """The commands that make so many views, 0 for none; not where another command runs these and has its plan."""
        commands = self._more_views(num_views) if num_views and not runs_next_itself() else ()
        for words in commands:
            say(f"      {command_line(words)}")
        if commands:
            say("      and then the training with another --out")

    def _say_validation(self, event: "ValidationChecked") -> None:
        """Print what the numbers of the validation are worth."""
        self._num_validated = event.num_samples
        if not event.num_samples:
            say("validation: none; give --val-shards to measure what the student has learned")
        elif event.num_in_training:
            say(
                f"warning: validation: {event.num_in_training} of {count(event.num_samples, 'sample')} are in the "
                "training shards as well, so its numbers are too good; validate on images that are not trained on"
                f"{flag_hint('--val-shards')}"
            )

    def _say_cut(self, event: "Resumed") -> None:
        """Print what another number of ranks or micro-batches changes, and how to keep it as it was."""
        before, now = (event.world_size_before, event.accumulate_before), (event.world_size, event.accumulate)
        if before == now:
            return
        cut = "ranks × --accumulate was {} × {}, is {} × {}: same batches".format(*before, *now)
        if event.parts == event.parts_before:
            say(f"{cut} in the same parts; sums over the parts may round differently")
            return
        accumulate, rest = divmod(event.parts_before, event.world_size)
        way = f"; --accumulate {accumulate} would keep them" if not rest else ""
        say(f"{cut}, but drop path, dropout and BatchNorm go by parts of a batch and differ from now on{way}")

    def _figures(self, values: Mapping[str, Any], shown: "tuple[_Figure, ...]") -> str:
        """Metrics in words; without teacher or labels their loss is no figure, and digests that nobody compared."""
        parts = []
        for figure in shown:
            value = values.get(figure.metric)
            absent = figure.metric in ("base_loss", "distill_loss") and value == 0
            absent |= figure.metric == "cls_top1" and "dist_top1" not in values  # one head: top-1 is its own
            absent |= figure.metric.startswith("pixels") and not values.get("pixels_checked")
            if isinstance(value, int | float) and not absent:
                score = accuracy(value, self._num_validated or 1000) if "top1" in figure.metric else ""
                parts.append(figure.text.format(score or figure.factor * value))
        return ", ".join(parts)


def _data_words(event: "Scheduled") -> list[str]:
    """Describe the images and views that the epochs use, a sentence each."""
    num_images = event.steps_per_epoch * event.batch_size
    all_images = count(event.coverage.num_samples, "training image")
    every = num_images == event.coverage.num_samples
    lines = [f"each epoch: {'all' if every else f'{num_images:,} of the'} {all_images}"]
    if event.repeats > 1:
        most, about = ("", "") if num_images == event.repeats * event.images_per_epoch else ("up to ", "about ")
        distinct = f"each of {about}{event.images_per_epoch:,} of the {all_images}"
        views = f"{most}{count(event.repeats, 'view')} of {distinct}"
        lines = [f"each epoch: {count(num_images, 'augmented image')}, {views}"]
    if event.num_left_out:
        others = "" if event.coverage.num_unseen else ", other epochs use them"
        do = "does" if event.num_left_out == 1 else "do"
        lines[0] += f"; {event.num_left_out} {do} not fill a batch{others}"
    num_views = max((span.last_view + 1 for span in event.views), default=0)
    again = f" in epochs 1-{num_views}, then the same {num_views} again" if len(event.views) > 1 else " in every epoch"
    if num_views:
        lines.append(f"views: new ones{again}")
    if event.labels:
        lines.append(f"labels: {event.labels}")
    return lines


class _Figure(NamedTuple):
    """How a metric is shown; accuracies come with their unit."""

    metric: str
    text: str
    factor: float = 1.0


_EPOCH = (
    _Figure("base_loss", "label loss {:.2f}"),
    _Figure("distill_loss", "teacher loss {:.2f}"),
    _Figure("teacher_agreement", "agreement {:.0f} %", 100.0),
    _Figure("top1", "top-1 {}"),
    _Figure("cls_top1", "CLS {}"),
    _Figure("dist_top1", "DIST {}"),
)
_END = (
    _Figure("top1", "top-1 {}"),
    _Figure("cls_top1", "CLS head {}"),
    _Figure("dist_top1", "DIST head {}"),
    _Figure("pixels_checked", "the pixels of all {:,.0f} views are those that the teacher saw"),
)


class SweepDisplay:
    """Draws the events of a sweep; its training events are silent on ranks other than the first.

    Args:
        out: the sweep's directory. together: students per pass. processes: that share the sweep.
    """

    def __init__(
        self, out: Path, *, together: int, processes: int, quiet: bool, more_views: MoreViews = no_more
    ) -> None:
        """Nothing is shown before the first event; `more_views` as of `TrainingDisplay`."""
        self._out, self._together, self._processes, self._quiet = out, together, processes, quiet
        self._training = TrainingDisplay(quiet=quiet, beside=self.left, more_views=more_views)
        self._waiting, self._began, self._pass_left_s = 0, 0.0, float("inf")

    def explain(self, reasons: Sequence[str]) -> None:
        """Say which settings were chosen for these data, and why."""
        self._training.explain(reasons)

    def show(self, event: SweepEvent) -> None:
        """Draw one event."""
        if isinstance(event, CellProgress):
            self._pass_left_s = getattr(event.event, "eta_s", self._pass_left_s)
            self._training.show(event.event)
            return
        self._training.close()
        counts = _counts(event.tally)
        match event:
            case SweepPlanned():
                done = event.tally.num_done == event.tally.num_total
                say(f"{self._out}: {'already finished: ' if done else ''}{counts}")
            case CellsStarted(names=names, tally=tally):
                self._began, self._pass_left_s = time.monotonic(), float("inf")
                self._waiting = tally.num_total - tally.num_done - tally.num_failed - len(names)
                say(f"training {', '.join(names)}; {counts}")
            case CellEnded() if event.error:
                say(f"error: {event.name}: {event.error}; {counts}; run the same command to retry")
            case SweepFinished():
                if self._began:
                    say(f"{self._out}: {counts}")
                if not self._quiet:
                    self._table()

    def left(self) -> str:
        """Return the time left of the whole sweep: this pass, and as many like it as the waiting cells need."""
        whole = time.monotonic() - self._began + self._pass_left_s
        passes = -(-self._waiting // (self._together * self._processes))
        left = self._pass_left_s + passes * whole
        return f"whole grid {duration(left)} left" if math.isfinite(left) else ""

    def _table(self) -> None:
        from student.report.text import sweep_lines
        from student.sweep.sweep_directory import read_sweep

        for line in sweep_lines(read_sweep(self._out)):
            result(line)


def _counts(tally: Tally) -> str:
    failed = f", {tally.num_failed} failed" if tally.num_failed else ""
    return f"{tally.num_done} of {count(tally.num_total, 'cell')} done{failed}"
