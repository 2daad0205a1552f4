"""The students of one pass with their directories: where they resume, what is written after a step, how they finish."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shards.errors import RunError
from student.feed.feed import Feed
from student.feed.pass_data import Data
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.learn.validation import validate
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.checkpoint import Rejected, as_state, load_checkpoint, save_checkpoint, saved_steps
from student.run.pace import Pace, Rate
from student.run.results import write_results
from student.run.run_events import (
    BalanceMeasured,
    Checkpointed,
    CheckpointRejected,
    EpochEnded,
    Event,
    Resumed,
    Stepped,
    StudentFailed,
    StudentFinished,
)
from student.run.run_files import RunFiles
from student.run.run_log import RunLog

_BALANCE = "gradient_balance"


class StudentJob(NamedTuple):
    """A student to train: its recipe and the run directory to fill."""

    recipe: StudentRecipe
    out: Path


def together(jobs: Sequence[StudentJob]) -> list[list[int]]:
    """Which jobs can share a pass: those that have a checkpoint of one and the same step, or none at all.

    A pass that was killed while it saved leaves some students one checkpoint ahead; they still share the one before.
    """
    passes: list[tuple[set[int], list[int]]] = []
    for number, job in enumerate(jobs):
        steps = set(saved_steps(RunFiles(job.out).checkpoints))
        for common, members in passes:
            if common & steps or common == steps:
                common &= steps
                members.append(number)
                break
        else:
            passes.append((steps, [number]))
    return [members for _, members in passes]


@dataclass(slots=True)
class _Student:
    """One student of the pass; `log` is None on ranks that write nothing."""

    name: str
    job: StudentJob
    trainer: Trainer
    log: RunLog | None
    last: dict[str, Any]

    def measured_once(self) -> dict[str, float]:
        """What the first step measured and later ones keep."""
        return {_BALANCE: self.last[_BALANCE]} if _BALANCE in self.last else {}


class Students:
    """The students of one pass; a context manager that holds their directories."""

    def __init__(
        self,
        jobs: Sequence[StudentJob],
        data: Data,
        settings: TrainSettings,
        group: ProcessGroup,
        feed: Feed,
        teacher_identity: Mapping[str, Any],
    ) -> None:
        """Build the students; directories are taken on entry. `teacher_identity` is what checkpoints say of it."""
        self._data, self._settings, self._group, self._feed = data, settings, group, feed
        self._teacher_identity = teacher_identity
        self._per_epoch = feed.order.steps
        self._counts_before = torch.zeros(2, dtype=torch.int64)
        self._counts_of_others = self._fed()  # one feed serves every pass
        self.pace = Pace(lambda: feed.waited_s)
        self._stack = ExitStack()
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
                ),
                log=RunLog(job.out) if group.is_main else None,
                last={},
            )
            for job in jobs
        ]

    def __enter__(self) -> "Students":
        """Take the directories; RunError, on every rank, when one is taken."""
        self._group.from_main(self._take_directories)
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave them."""
        self._stack.__exit__(*exception)

    @property
    def names(self) -> tuple[str, ...]:
        """The students that still learn."""
        return tuple(student.name for student in self._students)

    @property
    def trainers(self) -> list[Trainer]:
        """The trainers of those."""
        return [student.trainer for student in self._students]

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self._students[0].job.recipe.epochs * self._per_epoch if self._students else 0

    def resume(self) -> Generator[Event, None, int]:
        """Yield what was found and load it; returns the step to go on from."""
        step, states, world_before, rejected = self._group.from_main(self._find)
        for entry in rejected:
            yield CheckpointRejected(path=entry.path, reason=entry.reason)
        for student, state in zip(self._students, states, strict=False):
            with as_state(RunFiles(student.job.out).checkpoints, step):
                student.trainer.load_state_dict(state["trainer"])
                student.last = dict(state["last"])
                self._counts_before[:] = state["counts"][:2]
                self.pace = Pace(lambda: self._feed.waited_s, step=step, seconds_before=float(state["seconds"]))
        self._group.from_main(lambda: self._begin_logs(step))
        if states:
            world_size = self._group.world.size
            yield Resumed(students=self.names, step=step, world_size=world_size, world_size_before=world_before)
        return step

    def after_step(self, step: int, *, stopping: bool) -> Iterator[Event]:
        """Log, evaluate and save what is due after `step` optimiser steps."""
        settings = self._settings
        epoch, ended = (step - 1) // self._per_epoch, step % self._per_epoch == 0
        if step == 1:
            yield from self._say_balance()
        if step % settings.log_every == 0:
            yield from self._log_interval(step, epoch)
        if ended:
            yield from self._log_epoch(step, epoch)
        due = settings.checkpoint_every and step % settings.checkpoint_every == 0
        if ended or stopping or due:
            with self.pace.paused():
                yield from self._save(step)

    def finish(self, step: int) -> Iterator[Event]:
        """Write weights and summary; a run that has its summary is left as it is."""
        counts = self._counts()
        for student in self._students:
            summary = self._group.from_main(partial(self._write_results, student, step, counts))
            yield StudentFinished(student=student.name, out=student.job.out, summary=summary)

    def identity(self, recipe: StudentRecipe) -> dict[str, Any]:
        """Everything that decides the numbers of a run: what its checkpoints belong to."""
        return {
            "recipe": recipe.to_json(),
            **self._settings.identity(),
            **self._data.identity(),
            "teacher": dict(self._teacher_identity),
        }

    def _take_directories(self) -> None:
        with ExitStack() as stack:
            for student in self._students:
                if student.log is not None:
                    stack.enter_context(student.log)
            self._stack = stack.pop_all()

    def _find(self) -> tuple[int, list[dict[str, Any]], int, list[Rejected]]:
        """The newest step of which every student has an intact checkpoint, with their states."""
        folders = [RunFiles(student.job.out).checkpoints for student in self._students]
        common = set.intersection(*(set(saved_steps(folder)) for folder in folders))
        rejected: list[Rejected] = []
        for step in sorted(common, reverse=True):
            loaded = [
                load_checkpoint(folder, step, identity=self.identity(student.job.recipe))
                for folder, student in zip(folders, self._students, strict=True)
            ]
            damaged = [entry for entry in loaded if isinstance(entry, Rejected)]
            if not damaged:
                good = [entry for entry in loaded if not isinstance(entry, Rejected)]
                return step, [state for state, _ in good], good[0][1].world_size, rejected
            rejected += damaged
        if rejected:
            raise RunError(
                "no checkpoint is intact: "
                + "; ".join(f"{entry.path}: {entry.reason}" for entry in rejected)
                + ". Delete the checkpoints folder to train from the beginning, or choose another --out"
            )
        return 0, [], self._group.world.size, []

    def _begin_logs(self, step: int) -> None:
        for student in self._students:
            assert student.log is not None, "only rank 0 writes"
            config = {
                "recipe": student.job.recipe.to_json(),
                "train": self._settings.to_json(),
                "data": {**self._data.identity(), "world_size": self._group.world.size},
                "teacher": dict(self._teacher_identity),
            }
            student.log.begin(config, step=step, finished=step == self.num_steps)

    def _say_balance(self) -> Iterator[Event]:
        """What the first step showed of teacher against labels; kept with the student, so that a resume knows it."""
        for student in self._students:
            balance = self._group.from_main(partial(getattr, student.trainer, "balance"))  # of its part of the batch
            if balance is not None and math.isfinite(balance):
                student.last[_BALANCE] = balance
                yield BalanceMeasured(student=student.name, balance=balance)

    def _log_interval(self, step: int, epoch: int) -> Iterator[Event]:
        """Metrics over the steps since the last one logged; a student whose loss is no number leaves the others."""
        rate = self.pace.rate("interval", step)
        for student in list(self._students):
            try:
                metrics = student.trainer.interval_metrics()
            except RunError as error:
                if len(self._students) == 1:
                    raise
                self._students.remove(student)
                yield StudentFailed(student=student.name, error=str(error))
                continue
            metrics |= self._measured(student, step, rate)
            if step == self._settings.log_every:
                metrics |= student.measured_once()
            if student.log is not None:
                student.log.write("step", step=step, epoch=epoch, metrics=metrics)
            yield Stepped(
                student=student.name,
                step=step,
                epoch=epoch,
                num_steps=self.num_steps,
                eta_s=(self.num_steps - step) / rate.steps_per_s,
                metrics=metrics,
            )

    def _log_epoch(self, step: int, epoch: int) -> Iterator[Event]:
        """Metrics over the epoch, and validation when it is due."""
        rate = self.pace.rate("epoch", step)
        validation: list[dict[str, float]] = [{} for _ in self._students]
        due = step == self.num_steps or (epoch + 1) % self._settings.eval_every == 0
        if self._data.val_index is not None and due:
            with self.pace.paused():
                validation = validate(self.trainers, self._data, self._settings, self._group)
        for student, val in zip(self._students, validation, strict=True):
            metrics = student.trainer.epoch_metrics() | self._measured(student, step, rate)
            metrics["seconds"] = self.pace.seconds
            student.last = {"epoch": epoch, **metrics, **student.measured_once(), **val}
            if student.log is not None:
                student.log.write("epoch", step=step, epoch=epoch, metrics=metrics, val=val)
            yield EpochEnded(student=student.name, step=step, epoch=epoch, metrics=metrics, validation=val)

    def _measured(self, student: _Student, step: int, rate: Rate) -> dict[str, float]:
        """What belongs to a student's metrics and is not a sum over images."""
        return {
            "lr": student.trainer.lr(step - 1),
            "images_per_s": rate.steps_per_s * student.job.recipe.batch_size,
            "data_wait_share": rate.wait_share,
        }

    def _save(self, step: int) -> Iterator[Event]:
        counts, seconds = self._counts(), self.pace.seconds
        for student in self._students:
            learned = student.trainer.state_dict()
            state = {"trainer": learned, "last": student.last, "counts": counts, "seconds": seconds}
            save = partial(
                save_checkpoint,
                RunFiles(student.job.out).checkpoints,
                state,
                step=step,
                identity=self.identity(student.job.recipe),
                world_size=self._group.world.size,
            )
            path = self._group.from_main(save)
            yield Checkpointed(student=student.name, step=step, path=path)

    def _counts(self) -> torch.Tensor:
        """Pixels checked and teacher forwards over all ranks and resumes, int64 (2,)."""
        own = (self._fed() - self._counts_of_others).to(self._group.device)
        return self._counts_before + self._group.sum(own).cpu()

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
