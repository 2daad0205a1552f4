"""Write what a finished run leaves: weights that plain timm loads, a model card, the summary."""

import math
from collections.abc import Mapping
from typing import Any

from shards.data_defaults import SMALL_VIEW
from shards.index.classes import majority
from student.learn.diagnosis import RunFacts, diagnosis
from student.learn.losses.table import NONE
from student.learn.timm_model import num_params
from student.learn.trainer import Trainer
from student.run.export import ExportInfo, export_weights, model_card
from student.run.run_files import read_json
from student.run.run_log import RunLog
from student.run.shard_sets import ShardSets

# Not in the weights file, so that equal weights are equal files however long they took.
_TIMES = ("seconds", "images_per_s", "data_wait_share")


def write_results(
    log: RunLog,
    trainer: Trainer,
    data: ShardSets,
    *,
    steps: int,
    measured: Mapping[str, Any],
    teacher: Mapping[str, Any],
) -> dict[str, Any]:
    """Write weights, card and, last, the summary, which is returned; a run that has its summary is left as it is.

    Args:
        measured: counts and metrics of the run, JSON types; they stand in the summary as they are.
        teacher: what the teacher was, as in the checkpoints.
    """
    files = log.files
    if files.summary.is_file():
        return read_json(files.summary)
    recipe, info = trainer.recipe, _info(trainer, data, measured, teacher)
    export_weights(trainer.core, files.weights, info)
    if trainer.ema is not None:
        export_weights(trainer.ema.model, files.ema_weights, info)
    log.write_card(model_card(info, files.weights.name))
    shared = data.num_in_training
    summary = {
        "student": files.out.name,
        "model": recipe.model,
        "distill": recipe.distill,
        "distill_weight": recipe.distill_weight,
        "temperature": recipe.temperature,
        "epochs": recipe.epochs,
        "steps": steps,
        "images": steps * recipe.batch_size,
        **measured,
        **({"validation_in_training": shared} if shared else {}),
        **_validation(data),
        "weights": files.weights.name,
        **_best(log),
    }
    log.finish(summary)
    return summary


def keep_best(
    log: RunLog, trainer: Trainer, data: ShardSets, *, measured: Mapping[str, Any], teacher: Mapping[str, Any]
) -> None:
    """Write the weights beside the last ones where no epoch before it was better.

    Before the epoch's line is in the log: what is killed in between writes the same file again.

    Args:
        measured, teacher: as of `write_results`; with "top1".
    """
    _, top1 = log.best_epoch()
    if measured["top1"] >= top1:
        export_weights(trainer.core, log.files.best_weights, _info(trainer, data, measured, teacher))


def _info(trainer: Trainer, data: ShardSets, measured: Mapping[str, Any], teacher: Mapping[str, Any]) -> ExportInfo:
    index = data.index
    return ExportInfo(
        recipe=trainer.recipe,
        mean=data.views.recipe.mean,
        std=data.views.recipe.std,
        num_classes=index.num_classes,
        class_names=index.class_names,
        pixels=index.pixels,
        num_skipped=index.num_skipped,
        fingerprints={"shards": index.fingerprint, **_fingerprints(teacher)},
        metrics={k: v for k, v in measured.items() if isinstance(v, float) and k not in _TIMES},
    )


def _best(log: RunLog) -> dict[str, Any]:
    """The best epoch (from 0) and its top-1, where its weights were kept."""
    if not log.files.best_weights.is_file():
        return {}
    epoch, top1 = log.best_epoch()
    return {"best_epoch": epoch, "best_top1": top1, "best_weights": log.files.best_weights.name}


def _validation(data: ShardSets) -> dict[str, float]:
    """Images trained and validated on, and what always naming the largest class would reach, percent."""
    val = data.val_index
    sizes = {} if val is None else {"validation_images": val.num_samples, "validation_majority": majority(val)}
    return {"training_images": data.index.num_samples, **sizes}


def diagnosed(
    trainer: Trainer,
    data: ShardSets,
    measured: Mapping[str, Any],
    teacher: Mapping[str, Any],
    teacher_right: float | None,
) -> dict[str, Any]:
    """Diagnose a finished student, as an entry of its summary; empty for one that is well.

    Args:
        measured: metrics of its last epoch. teacher: what the teacher was, as in the checkpoints.
        teacher_right: share of the training views where its first class is the label; None: nobody looked.
    """
    recipe, val_index, num_views = trainer.recipe, data.val_index, data.views.num_views
    taught = recipe.distill != NONE
    sentences = diagnosis(
        RunFacts(
            num_classes=data.index.num_classes,
            base_loss=measured.get("base_loss", math.nan) if recipe.base_loss == "cross_entropy" else math.nan,
            validation={name: value for name, value in measured.items() if name.endswith("top1")},
            num_validated=val_index.num_samples if val_index is not None else 0,
            largest_class=majority(val_index) if val_index is not None else math.nan,
            teacher_right=teacher_right if taught else None,
            mild_views=data.views.recipe.name == SMALL_VIEW,
            student_params=sum(param.numel() for param in trainer.core.parameters()),
            teacher_params=_teacher_params(teacher) if taught else None,
            times_each_view=recipe.epochs / num_views if num_views and taught else None,
        )
    )
    return {"diagnosis": list(sentences)} if sentences else {}


def _teacher_params(identity: Mapping[str, Any]) -> int | None:
    """Parameters of a single teacher of timm's, by its spec; None for several, none, and a function of the user's."""
    teacher = identity.get("teacher")
    if not isinstance(teacher, Mapping):
        return None
    return num_params(str(teacher.get("name", "")), int(identity.get("record", {}).get("num_classes", 0)))


def _fingerprints(teacher: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprints of the teacher, or of each of several, by name."""
    several = teacher.get("teachers", (teacher,))
    names = ["teacher"] if len(several) == 1 else [f"teacher {n}" for n in range(1, len(several) + 1)]
    return {
        f"{name} {key}": one[key]
        for name, one in zip(names, several, strict=True)
        for key in ("fingerprint", "weights_sha256")
        if key in one
    }
