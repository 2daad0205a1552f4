"""The cells of a sweep as students of the training loop: each group shares one pass over the data.

cell_trainer   what `run_sweep` calls for a group of cells
cache_facts    what the report says about the cache
require_memory a refusal before the first step when so many students do not fit
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shards.index import ShardIndex
from student import events
from student.ablate import CellJob, CellOutcome, CellProgress
from student.grid import Cell
from student.loop import StudentJob, train_many
from student.model import make_student
from student.overrides import override
from student.recipes import StudentRecipe
from student.settings import TrainSettings
from teacher_cache.fidelity import TEMPERATURES
from teacher_cache.status import cache_fidelity, cache_status
from teacher_cache.store import TeacherCache

_FIDELITY_UNITS = 256
# Weights, gradients and two moments of AdamW, one float32 each; the average of the weights is a fifth.
_COPIES = 4


class SweepStopped(BaseException):
    """A signal asked the pass to stop and it saved: no error of a cell, so nothing here may catch it as one."""

    def __init__(self, event: events.Stopped) -> None:
        """Keep the trainer's own event."""
        super().__init__(f"stopped after step {event.step}")
        self.event = event


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTrainer:
    """Trains a group of cells; the group shares seed and views, so all of it sees the same batches.

    Attributes:
        recipe: what all cells have in common. index, val_index, cache, settings, shard_cache_dir: as `train_many`.
    """

    recipe: StudentRecipe
    index: ShardIndex
    val_index: ShardIndex
    cache: TeacherCache
    settings: TrainSettings
    shard_cache_dir: Path | None = None

    def __call__(self, jobs: Sequence[CellJob]) -> Iterator[CellOutcome | CellProgress]:
        """Yield the trainer's events as progress, and one outcome per cell.

        Errors:
            SweepStopped after a signal; everything else that `train_many` raises.
        """
        cell = jobs[0].cell
        students = [StudentJob(cell_recipe(self.recipe, job.cell), job.out) for job in jobs]
        names = tuple(job.cell.name for job in jobs)
        for event in train_many(
            students,
            self.index,
            settings=replace(self.settings, seed=cell.seed, views_used=cell.views_used),
            cache=self.cache,
            val_index=self.val_index,
            shard_cache_dir=self.shard_cache_dir,
        ):
            if isinstance(event, events.Stopped):
                raise SweepStopped(event)
            yield CellProgress(names, event)
            if isinstance(event, events.Finished):
                yield CellOutcome(event.student)
            elif isinstance(event, events.StudentFailed):
                yield CellOutcome(event.student, event.error)


def cell_recipe(recipe: StudentRecipe, cell: Cell) -> StudentRecipe:
    """The recipe of one cell: the common one with the cell's loss, λ and τ."""
    tau = recipe.temperature if cell.temperature is None else cell.temperature
    return override(recipe, {"distill": cell.distill, "distill_weight": cell.distill_weight, "temperature": tau})


def require_memory(recipe: StudentRecipe, num_classes: int, num_students: int, device: str) -> None:
    """ValueError when the weights, gradients and optimiser states of so many students exceed the device's free memory.

    Activations come on top, one student's at a time; so this refuses what certainly fails, not all that may.
    """
    bare = replace(recipe, finetune=False, init_weights="")
    model = make_student(bare, num_classes, seed=0, device="meta")
    one = sum(parameter.numel() for parameter in model.parameters()) * 4 * (_COPIES + (recipe.ema_decay > 0))
    free = _free_bytes(device)
    if one * num_students > free:
        fits = int(free // one)
        raise ValueError(
            f"together: {num_students} students of {recipe.model} need {one * num_students / 1e9:.1f} GB for weights, "
            f"gradients and optimiser, {device} has {free / 1e9:.1f} GB free; use --together {max(fits, 1)} or less"
        )


def _free_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cache_facts(cache: TeacherCache, index: ShardIndex) -> dict[str, Any]:
    """What a report needs to know of the cache: size, teacher forwards spent, and the record's error per τ."""
    status = cache_status(cache)
    per_view = sum(status.bytes_per_view.values())
    record = cache.spec.record
    rows = cache_fidelity(cache, max_units=_FIDELITY_UNITS, temperatures=TEMPERATURES)
    return {
        "cache": {
            "teacher": cache.spec.teacher.name,
            "precision": cache.spec.teacher.precision,
            "record": f"{record.kind}, {per_view:.1f} bytes per view",
            "num_views": cache.num_views,
            "num_samples": index.num_samples,
            "bytes": round(per_view * cache.num_views * index.num_samples),
            "bytes_per_view": per_view,
            "forwards_spent": cache.num_views * index.num_samples,
            "fingerprint": cache.spec.fingerprint,
        },
        "fidelity": [row.to_json() for row in rows],
    }
