"""What a finished run leaves: weights that plain timm loads, a model card, the summary."""

from collections.abc import Mapping
from typing import Any

from shards.index.classes import majority
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
    recipe, index = trainer.recipe, data.index
    info = ExportInfo(
        recipe=recipe,
        mean=data.views.recipe.mean,
        std=data.views.recipe.std,
        num_classes=index.num_classes,
        class_names=index.class_names,
        pixels=index.pixels,
        fingerprints={"shards": index.fingerprint, **_fingerprints(teacher)},
        metrics={k: v for k, v in measured.items() if isinstance(v, float) and k not in _TIMES},
    )
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
    }
    log.finish(summary)
    return summary


def _validation(data: ShardSets) -> dict[str, float]:
    """How many images the accuracy is of, and what always naming the largest class would reach, percent."""
    val = data.val_index
    return {} if val is None else {"validation_images": val.num_samples, "validation_majority": majority(val)}


def _fingerprints(teacher: Mapping[str, Any]) -> dict[str, str]:
    """What identifies the teacher, or each of several, by name."""
    several = teacher.get("teachers", (teacher,))
    names = ["teacher"] if len(several) == 1 else [f"teacher {n}" for n in range(1, len(several) + 1)]
    return {
        f"{name} {key}": one[key]
        for name, one in zip(names, several, strict=True)
        for key in ("fingerprint", "weights_sha256")
        if key in one
    }
