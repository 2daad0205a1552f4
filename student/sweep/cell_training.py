"""Train the cells of a sweep: cells to recipes, one pass of `train_many` per group, events to outcomes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shards.index.shard_index import ShardIndex
from shards.world import ALONE, World
from student.learn.record_errors import loss_gradients
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.loop import train_many
from student.run.run_events import Stopped, StudentFailed, StudentFinished
from student.run.run_reader import finite_json
from student.run.students import StudentJob
from student.sweep.grid import Cell, Grid
from student.sweep.memory import UncountableError, free_memory, memory_need, require_memory
from student.sweep.sweep_loop import CellJob, CellOutcome, CellProgress, Halted
from student.sweep.sweep_teachers import SweepTeachers, merged_facts
from teacher_cache.inspect.status import cache_errors, cache_status
from teacher_cache.network.device import rank_device
from teacher_cache.store.cache import TeacherCache

_FIDELITY_UNITS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTraining:
    """What all cells of a sweep have in common, and how a group of them is trained.

    Args:
        recipe: of every student; a cell decides its distillation, λ and τ.
        settings: of every pass; a cell decides its seed, and its views where it names a number of them.
        index, val_index: training and validation shards.
        teachers: the caches; a cell decides which of them teach it.
        world: of `--spread`; each of its processes has a GPU of its own and shares the machine's memory.
    """

    recipe: StudentRecipe
    settings: TrainSettings
    index: ShardIndex
    teachers: SweepTeachers
    val_index: ShardIndex
    shard_cache_dir: Path | None = None
    world: World = ALONE

    def common(self) -> dict[str, Any]:
        """What must not change between the cells of a sweep, as JSON: recipe, precision, shards, cache."""
        varied = ("distill", "distill_weight", "temperature")
        return {
            "recipe": {key: value for key, value in self.recipe.to_json().items() if key not in varied},
            "settings": {key: value for key, value in self.settings.identity().items() if key != "seed"},
            "shards": self.index.fingerprint,
            "val_shards": self.val_index.fingerprint,
            **self.teachers.identity(),
        }

    def check(self, grid: Grid, *, together: int, anyway: bool = False) -> tuple[str, ...]:
        """Raise now what the passes would raise before their first step, and what memory forbids.

        Args:
            together: students of a pass. anyway: also start what does not seem to fit.

        Returns:
            Warnings, for the user: memory may be too small.

        Raises:
            ValueError, CacheError, ShardError: as `train_many`; ValueError when `together` students do not fit.
        """
        try:
            warnings = self._memory_warnings(max(len(group) for group in grid.groups(together)), anyway=anyway)
        except UncountableError as error:
            if not anyway:
                raise
            warnings = (str(error),)
        for group in grid.groups(len(grid.cells())):
            if group[0].seed == grid.seeds[0]:
                # The first event comes after every check and before anything is built or written.
                events = self._pass([CellJob(cell, Path(cell.name)) for cell in group])
                next(events)
                events.close()
        return warnings

    def _memory_warnings(self, num_students: int, *, anyway: bool) -> tuple[str, ...]:
        """Return the warnings of `require_memory` for a pass of so many students."""
        device = self._device()
        need = memory_need(
            self.recipe,
            num_classes=self.index.num_classes,
            num_students=num_students,
            precision=self.settings.precision,
            parts=self.settings.accumulate,
            workers=self.settings.workers,
            prefetch=self.settings.prefetch,
            grad_checkpointing=self.settings.grad_checkpointing,
        )
        return require_memory(need, free_memory(device, sharing=self.world.local_size), anyway=anyway)

    def train(self, jobs: Sequence[CellJob]) -> Iterator[CellOutcome | CellProgress | Halted]:
        """Train one group of cells of one seed and one number of views; a `TrainGroup`."""
        names = tuple(job.cell.name for job in jobs)
        for event in self._pass(jobs):
            yield CellProgress(names, event)
            if isinstance(event, StudentFinished):
                yield CellOutcome(event.student)
            elif isinstance(event, StudentFailed):
                yield CellOutcome(event.student, event.error)
            elif isinstance(event, Stopped):
                yield Halted(event.exit_code)
                return

    def cell_recipe(self, cell: Cell) -> StudentRecipe:
        """The recipe of one cell; τ keeps the recipe's value where it has no meaning."""
        temperature = cell.temperature if cell.temperature is not None else self.recipe.temperature
        return replace(self.recipe, distill=cell.distill, distill_weight=cell.distill_weight, temperature=temperature)

    def _pass(self, jobs: Sequence[CellJob]) -> Any:
        cell = jobs[0].cell
        return train_many(
            [StudentJob(self.cell_recipe(job.cell), job.out) for job in jobs],
            self.index,
            settings=replace(self.settings, seed=cell.seed, views_used=cell.views_used or self.settings.views_used),
            teaching=self.teachers.teaching(cell.teachers),
            val_index=self.val_index,
            shard_cache_dir=self.shard_cache_dir,
            # Alone on its device, also where `--spread` shares the sweep among the ranks of a job.
            world=World(local_rank=self.world.local_rank),
        )

    def _device(self) -> torch.device:
        return rank_device(self.settings.device, World(local_rank=self.world.local_rank))


def sweep_facts(
    teachers: SweepTeachers, temperatures: Sequence[float], *, distillations: Sequence[str], recipe: StudentRecipe
) -> Mapping[str, Any]:
    """What a report says of the caches of a sweep: of one as `cache_facts`, of several also each by name."""
    facts = {
        name: cache_facts(cache, temperatures, distillations=distillations, recipe=recipe)
        for name, cache in teachers.caches.items()
    }
    return next(iter(facts.values())) if len(facts) == 1 else merged_facts(facts)


def cache_facts(
    cache: TeacherCache, temperatures: Sequence[float], *, distillations: Sequence[str], recipe: StudentRecipe
) -> Mapping[str, Any]:
    """What a report says of a cache: teacher, views, bytes, forwards, and the true error of its records.

    The error is that of the divergence at each τ, and that of the gradient of each loss with the recipe's settings.

    Reads a sample of units. An exact record has no error; where a record cannot be measured there are no
    rows, and the report says so.
    """
    spec, status = cache.spec, cache_status(cache)
    per_view = status.total_bytes_per_view
    record = spec.record
    losses = [loss for loss in loss_gradients(recipe) if loss.loss in distillations]
    if record.entry.soft and record.entry.exact:
        rows = [{"temperature": t, "gradient_error": 0.0, "kl": 0.0, "kl_p99": 0.0, "bias": 0.0} for t in temperatures]
        by_loss = [
            {"loss": loss.loss, "temperature": t, "gradient_error": 0.0}
            for loss in losses
            for t in (temperatures if loss.uses_temperature else (None,))
        ]
    else:
        measured, errors = cache_errors(cache, losses, max_units=_FIDELITY_UNITS, temperatures=temperatures)
        rows, by_loss = [row.to_json() for row in measured], [row.to_json() for row in errors]
    facts = {
        "cache": {
            "url": cache.url,
            "fingerprint": spec.fingerprint,
            "teacher": spec.teacher.name,
            "teacher_precision": spec.teacher.precision,
            "views_recipe": spec.recipe.name,
            "record": f"{record.kind}, {record.k} classes by name, {record.num_bytes} bytes",
            "num_views": status.num_whole_views,
            "num_samples": int(status.rows_S.sum()),
            "forwards_spent": status.num_views_done,
            "bytes_per_view": per_view,
            "bytes": per_view * status.num_views_done,
        },
        "fidelity": rows,
        "loss_errors": by_loss,
    }
    result: Mapping[str, Any] = finite_json(facts)
    return result
