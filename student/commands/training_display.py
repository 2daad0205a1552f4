"""How a training is drawn: one bar for the pass, one line per student and epoch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shards.console import Bar, result, say
from shards.flags import stop_with

if TYPE_CHECKING:
    from student.run.run_events import Event, Scheduled


class TrainingDisplay:
    """Draws the events of one or several students; silent on ranks other than the first."""

    def __init__(self, *, quiet: bool) -> None:
        """Nothing is shown before the first event."""
        self._quiet = quiet
        self._bar: Bar | None = None

    def explain(self, reasons: Sequence[str]) -> None:
        """Say which settings were chosen for these data, and why."""
        if reasons and not self._quiet:
            say("chosen for these data: " + "; ".join(reasons))

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
            case events.Resumed():
                self._say(f"resumed after step {event.step}")
                if event.world_size != event.world_size_before:
                    self._say(
                        f"world size was {event.world_size_before}, is {event.world_size}: same batches, other rounding"
                    )
                if self._bar is not None:
                    self._bar.start_at(event.step)
            case events.CheckpointRejected():
                self._say(f"warning: {event.path}: {event.reason}; going on from an earlier checkpoint")
            case events.BalanceMeasured():
                self._say(
                    f"{event.student}  at step 0 the teacher pulls at the logits {event.balance:.3g} times as hard as "
                    "the labels"
                )
            case events.Stepped() if self._bar is not None:
                self._bar.to(event.step, _figures(event.metrics, ("loss", "images_per_s", "data_wait_share")))
            case events.EpochEnded():
                if self._bar is not None:
                    self._bar.to(event.step)
                shown = _figures(event.metrics, ("base_loss", "distill_loss", "teacher_agreement", "images_per_s"))
                tops = _figures(event.validation or {}, ("top1", "cls_top1", "dist_top1"))
                self._say(f"{event.student}  epoch {event.epoch + 1}  {shown}  {tops}")
            case events.StudentFailed():
                self._say(f"error: {event.student}: {event.error}")
            case events.StudentFinished():
                self._say(f"{event.student}: done, {event.out}")
                result(_figures(event.summary, ("top1", "cls_top1", "dist_top1", "pixels_checked")))

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _begin(self, event: "Scheduled") -> None:
        steps = event.epochs * event.steps_per_epoch
        spans = "; ".join(
            f"epochs {s.first_epoch + 1}-{s.last_epoch + 1}: views {s.first_view}-{s.last_view}"
            for s in event.views[:4]
        )
        more = f" … {len(event.views) - 4} more passes" if len(event.views) > 4 else ""
        say(
            f"{', '.join(event.students)}: {event.epochs} epochs of {event.steps_per_epoch} steps of {event.batch_size}"
        )
        say(f"views: {spans}{more}; samples left out of each pass (no full block or batch): {event.num_left_out}")
        self.close()
        self._bar = Bar("train", steps, "steps")

    def _say(self, text: str) -> None:
        (self._bar.say if self._bar else say)(text)


def _figures(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Some numbers of a mapping, by name, those that are there."""
    return "  ".join(f"{name} {values[name]:.4g}" for name in names if isinstance(values.get(name), (int, float)))
