"""The students of one pass with their directories: where they resume, what is written after a step, how they finish."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from shards.errors import RunError
from shards.index.pixel_rule import other_pixels
from student.feed.answers import require_finite_answers
from student.feed.batch import Batch
from student.feed.feed import Feed
from student.learn.network import has_dist
from student.learn.process_group import ProcessGroup
from student.learn.timm_model import Normalisation
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run import run_events as events
from student.run.checkpoint import as_state, newest_of_all, read_state, save_checkpoint, saved_steps
from student.run.pace import Pace, Rate, Ticker
from student.run.results import diagnosed, keep_best, write_results
from student.run.run_events import Event
from student.run.run_files import RunFiles
from student.run.run_log import RunLog
from student.run.run_reader import threads_before
from student.run.shard_sets import ShardSets
from student.run.validation import validate

T = TypeVar("T")
_BALANCE = "gradient_balance"
_LOOK_EVERY = 4  # steps between looks at whether the teacher is right
_RIGHT = "teacher_right"  # what was seen of it, in checkpoints; older ones have none


class StudentJob(NamedTuple):
    """A student to train: its recipe, the run directory to fill, whether the weights of its best epoch are kept."""

    recipe: StudentRecipe
    out: Path
    keep_best: bool = False


@dataclass(slots=True)
class _Student:
    """One student of the pass; `log` is None on ranks that write nothing."""

    name: str
    job: StudentJob
    trainer: Trainer
    log: RunLog | None
    last: dict[str, Any]

    def measured_once(self) -> dict[str, float]:
        """Return what the first step measured and later ones keep."""
        return {_BALANCE: self.last[_BALANCE]} if _BALANCE in self.last else {}


def run_identity(
    recipe: StudentRecipe, settings: TrainSettings, data: ShardSets, teacher: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides the numbers of a run: what its checkpoints belong to."""
    return {"recipe": recipe.to_json(), **settings.identity(), **data.identity(), "teacher": dict(teacher)}


class Students:
    """The students of one pass; a context manager that holds their directories.

    Attributes:
        num_steps: optimiser steps of the whole run.
    """

    def __init__(
        self,
        jobs: Sequence[StudentJob],
        data: ShardSets,
        settings: TrainSettings,
        group: ProcessGroup,
        feed: Feed,
        teacher_identity: Mapping[str, Any],
        *,
        alone: bool,
    ) -> None:
        """Build the students; directories are taken on entry.

        Args:
            teacher_identity: what checkpoints say of the teacher.
            alone: the run has one student; an error of its numbers is raised instead of told as `StudentFailed`.
        """
        self._alone, self.num_steps = alone, jobs[0].recipe.epochs * feed.order.steps
        self._data, self._settings, self._group, self._feed = data, settings, group, feed
        self._teacher_identity = teacher_identity
        self.identity = partial(run_identity, settings=settings, data=data, teacher=teacher_identity)
        self._threads_before = [threads_before(job.out) for job in jobs]  # now: the configurations are written anew
        self._per_epoch = feed.order.steps
        self._counts_before = torch.zeros(2, dtype=torch.int64)
        self._counts_of_others = self._fed()  # one feed serves every pass
        self.pace, self._ticker = Pace(lambda: feed.waited_s), Ticker()
        self._stack = ExitStack()
        self._right_before = torch.zeros(2, dtype=torch.float64)
        self._right = self._right_before.to(group.device, copy=True)
        seen = Normalisation(data.views.recipe.mean, data.views.recipe.std)
        self._students = [
            _Student(
                name=job.out.name,
                job=job,
                trainer=Trainer(
                    job.recipe,
                    settings,
                    num_classes=data.index.num_classes,
                    steps_per_epoch=self._per_epoch,
                    group=group,
                    normalisation=seen,
                ),
                log=RunLog(job.out) if group.is_main else None,
                last={},
            )
            for job in jobs
        ]
        for student in self._students:
            data.require_taught_heads(student.job.recipe, two=has_dist(student.trainer.core))

    def __enter__(self) -> "Students":
        """Take the directories; RunError, on every rank, when one is taken."""
        self._group.from_main(self._take_directories)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    @property
    def names(self) -> tuple[str, ...]:
        """The students that still learn."""
        return tuple(student.name for student in self._students)

    @property
    def trainers(self) -> list[Trainer]:
        """The trainers of those."""
        return [student.trainer for student in self._students]

    def look_at(self, batch: Batch, step: int) -> None:
        """Count on some of the batches for how many labelled views the teacher's first class is the label."""
        if batch.answer is None or step % _LOOK_EVERY:
            return
        labels = batch.labels
        label_B = torch.where(labels.lam_B >= 0.5, labels.label_B, labels.partner_label_B)
        right_B = (batch.answer.hard == label_B) & (label_B >= 0)
        self._right += torch.stack((right_B.sum(), (label_B >= 0).sum()))

    def resume(self) -> Generator[Event, None, int]:
        """Yield what was found and load it; returns the step to go on from."""
        jobs, world_size = [student.job for student in self._students], self._group.world.size
        saved = [(RunFiles(job.out).checkpoints, self.identity(job.recipe)) for job in jobs]
        newest = self._group.from_main(lambda: newest_of_all(saved, world_size))
        step = newest.step
        yield from newest.rejected
        for student in self._students if step else ():
            self._group.on_every_rank(partial(self._load, student, step))
        owed = self._group.from_main(lambda: self._begin_logs(step))
        if step:
            yield events.Resumed(
                students=self.names,
                step=step,
                world_size=world_size,
                world_size_before=newest.world_size,
                accumulate=self._settings.accumulate,
                accumulate_before=newest.accumulate,
                **self._threads(),
            )
        for student in self._students if not step else ():
            if (start := student.trainer.start) is not None:
                weights = student.job.recipe.init_weights
                pixels = "" if start.pixels is None else other_pixels(start.pixels, self._data.index.pixels)
                changes = "; ".join(part for part in (start.chosen, start.words, pixels) if part)
                yield events.StartedFrom(student=student.name, weights=weights, changes=changes)
        if owed:
            yield from self._report_epoch([self._students[number] for number in owed], step)
        return step

    def _threads(self) -> dict[str, int]:
        """The threads of torch now, and others in which a student began; none beside a GPU: they decide no number."""
        if self._group.device.type != "cpu":
            return {}
        now = torch.get_num_threads()
        return {"threads": now, "threads_before": next((n for n in self._threads_before if n not in (0, now)), now)}

    def progress(self, step: int) -> Iterator[Event]:
        """Tell a reader how far the run is: after the first step, seconds later, then every `Ticker.EVERY_S` seconds.

        Only the main process asks its device, for its own part of the batches: no rank waits for another.
        """
        if not self._group.is_main or not self._ticker.due():
            return
        rate = self.pace.rate("shown", step)
        yield events.Progressed(
            students=self.names,
            step=step,
            num_steps=self.num_steps,
            loss=self._students[0].trainer.recent_loss() if len(self._students) == 1 else None,
            steps_per_s=rate.steps_per_s,
            images_per_s=rate.steps_per_s * self._students[0].job.recipe.batch_size,
            wait_share=rate.wait_share,
        )

    def after_step(self, step: int, *, stopping: bool) -> Iterator[Event]:
        """Log, save and evaluate what is due after `step` optimiser steps, in this order.

        An epoch is evaluated and reported when it is saved; where a signal or kill comes between, `resume` does it.
        """
        settings = self._settings
        epoch, ended = (step - 1) // self._per_epoch, step % self._per_epoch == 0
        if step == 1:
            yield from self._say_balance()
        if step % settings.log_every == 0:
            yield from self._log_interval(step, epoch)
        if ended:
            yield from self._end_epoch(step, epoch)
        due = settings.checkpoint_every and step % settings.checkpoint_every == 0
        if ended or stopping or due:
            with self.pace.paused():
                yield from self._save(step)
        if ended and not stopping:
            yield from self._report_epoch(self._students, step)

    def finish(self, step: int) -> Iterator[Event]:
        """Write weights and summary; a run that has its summary is left as it is."""
        counts, (right, looked_at) = self._counts(), self._teacher_right().tolist()
        for student in self._students:
            teacher_right = right / looked_at if looked_at else None
            student.last |= diagnosed(student.trainer, self._data, student.last, self._teacher_identity, teacher_right)
            summary = self._group.from_main(partial(self._write_results, student, step, counts))
            yield events.StudentFinished(student=student.name, out=student.job.out, summary=summary)

    def _take_directories(self) -> None:
        with ExitStack() as stack:
            for student in self._students:
                if student.log is not None:
                    stack.enter_context(student.log)
            self._stack = stack.pop_all()

    def _load(self, student: _Student, step: int) -> None:
        """Put the checkpoint of a step into a student; every rank reads it."""
        folder, identity = RunFiles(student.job.out).checkpoints, self.identity(student.job.recipe)
        state = read_state(folder, step, identity, self._group.world.size)
        with as_state(folder, step):
            student.trainer.load_state_dict(state["trainer"])
            student.last = dict(state["last"])
            self._counts_before[:] = state["counts"][:2]
            self._right_before[:] = state.get(_RIGHT, 0)
            self.pace = Pace(lambda: self._feed.waited_s, step=step, seconds_before=float(state["seconds"]))

    def _begin_logs(self, step: int) -> list[int]:
        """Open the logs; the students that are saved at the end of an epoch which was not reported. On rank 0."""
        owed: list[int] = []
        for number, student in enumerate(self._students):
            assert student.log is not None, "only rank 0 writes"
            config = {
                "recipe": student.job.recipe.to_json(),
                "train": self._settings.to_json(),
                "data": {**self._data.identity(), "world_size": self._group.world.size},
                "teacher": dict(self._teacher_identity),
            }
            finished = step == self.num_steps and student.log.files.summary.is_file()
            student.log.begin(config, step=step, finished=finished)
            if step and step % self._per_epoch == 0 and not finished:
                reported = student.log.epoch_values(step)
                student.last |= reported or {}
                owed += [number] if reported is None else []
        return owed

    def _say_balance(self) -> Iterator[Event]:
        """Tell how hard the teacher pulled at the first step, and keep it with the student, for a resume."""
        for student in self._students:
            balance = self._group.from_main(partial(getattr, student.trainer, "balance"))  # of its part of the batch
            if balance is not None and math.isfinite(balance):
                student.last[_BALANCE] = balance
                yield events.BalanceMeasured(student=student.name, balance=balance)

    def _log_interval(self, step: int, epoch: int) -> Iterator[Event]:
        """Metrics over the steps since the last one logged."""
        rate = self.pace.rate("interval", step)
        for student, metrics in (yield from self._looked_at(Trainer.interval_metrics)):
            metrics |= self._measured(student, step, rate)
            if step == self._settings.log_every:
                metrics |= student.measured_once()
            if student.log is not None:
                student.log.write("step", step=step, epoch=epoch, metrics=metrics)
            yield events.Stepped(
                student=student.name,
                step=step,
                epoch=epoch,
                num_steps=self.num_steps,
                eta_s=(self.num_steps - step) / rate.steps_per_s,
                metrics=metrics,
            )

    def _end_epoch(self, step: int, epoch: int) -> Iterator[Event]:
        """Metrics over the epoch, which go into its checkpoint."""
        rate = self.pace.rate("epoch", step)
        for student, means in (yield from self._looked_at(Trainer.epoch_metrics)):
            metrics = means | self._measured(student, step, rate) | {"seconds": self.pace.seconds}
            student.last = {"epoch": epoch, **metrics, **student.measured_once()}

    def _report_epoch(self, students: Sequence[_Student], step: int) -> Iterator[Event]:
        """Validate when it is due, and tell how the epoch was that ends after `step` and is saved."""
        epoch = (step - 1) // self._per_epoch
        validation: list[dict[str, float]] = [{} for _ in students]
        due = step == self.num_steps or (epoch + 1) % self._settings.eval_every == 0
        if self._data.val_index is not None and due:
            with self.pace.paused():
                trainers = [student.trainer for student in students]
                validation = validate(trainers, self._data, self._settings, self._group)
        for student, val in zip(students, validation, strict=True):
            metrics = {name: value for name, value in student.last.items() if name not in ("epoch", _BALANCE)}
            student.last |= val
            if student.job.keep_best and val:
                self._group.from_main(partial(self._keep_best, student))
            if student.log is not None:
                student.log.write("epoch", step=step, epoch=epoch, metrics=metrics, val=val)
            yield events.EpochEnded(student=student.name, step=step, epoch=epoch, metrics=metrics, validation=val)

    def _keep_best(self, student: _Student) -> None:
        assert student.log is not None, "only rank 0 writes"
        keep_best(student.log, student.trainer, self._data, measured=student.last, teacher=self._teacher_identity)

    def _looked_at(self, look: Callable[[Trainer], T]) -> Generator[Event, None, list[tuple[_Student, T]]]:
        """Call `look` on each student; those whose numbers it refuses leave the pass. RunError for a broken teacher."""
        results: list[tuple[_Student, T]] = []
        wrong = self._feed.num_not_finite
        require_finite_answers(None if wrong is None else self._group.sum(wrong))
        for student in list(self._students):
            try:
                results.append((student, look(student.trainer)))
            except RunError as error:
                steps = saved_steps(RunFiles(student.job.out).checkpoints)
                checkpoint_words = (
                    f"the checkpoint of step {steps[0]} is kept" if steps else "no checkpoint was written"
                )
                if self._alone:
                    raise RunError(f"{error}; {checkpoint_words}") from error
                self._students.remove(student)
                yield events.StudentFailed(student=student.name, error=f"{error}; {checkpoint_words}")
        return results

    def _measured(self, student: _Student, step: int, rate: Rate) -> dict[str, float]:
        """Return the metrics of a student that are no sums over images."""
        return {
            "lr": student.trainer.lr(step - 1),
            "images_per_s": rate.steps_per_s * student.job.recipe.batch_size,
            "data_wait_share": rate.wait_share,
        }

    def _save(self, step: int) -> Iterator[Event]:
        counts, right, seconds = self._counts(), self._teacher_right(), self.pace.seconds
        for student, learned in (yield from self._looked_at(Trainer.state_dict)):
            state = {"trainer": learned, "last": student.last, "counts": counts, "seconds": seconds, _RIGHT: right}
            save = partial(
                save_checkpoint,
                RunFiles(student.job.out).checkpoints,
                state,
                step=step,
                identity=self.identity(student.job.recipe),
                world_size=self._group.world.size,
            )
            path = self._group.from_main(save)
            yield events.Checkpointed(student=student.name, step=step, path=path)

    def _counts(self) -> torch.Tensor:
        """Pixels checked and teacher forwards over all ranks and resumes, int64 (2,)."""
        own = (self._fed() - self._counts_of_others).to(self._group.device)
        return self._counts_before + self._group.sum(own).cpu()

    def _teacher_right(self) -> torch.Tensor:
        """Labelled views looked at where the teacher is right, and all of them, float64 (2,)."""
        return self._right_before + self._group.sum(self._right).cpu()

    def _fed(self) -> torch.Tensor:
        """The same on this rank since the feed was opened."""
        return torch.tensor([self._feed.pixels_checked, self._feed.teacher_forwards])

    def _write_results(self, student: _Student, step: int, counts: torch.Tensor) -> dict[str, Any]:
        """The files of a finished run, the summary last; on rank 0."""
        assert student.log is not None, "only rank 0 writes"
        measured = {
            **student.last,
            "world_size": self._group.world.size,
            "pixels_checked": int(counts[0]),
            "pixels_mismatched": 0,  # a mismatch ends a run with an error
            "teacher_forwards_in_training": int(counts[1]),
        }
        return write_results(
            student.log, student.trainer, self._data, steps=step, measured=measured, teacher=self._teacher_identity
        )
