"""`train-teacher`: fine-tune a teacher on the user's classes, with the code that trains students."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from shards.commands.flags import COUNT, PATH, SEED, bundled, flag, suited_workers, typed_words
from shards.commands.shard_place import ShardPlace, beside, shard_options
from shards.console import result, say_next
from shards.errors import advisable
from shards.own_folder import require_own
from shards.text.figures import accuracy, noise
from shards.world import ALONE, world_from_env
from student.commands.flags import StudentFlags, TrainingFlags, refuse_changes, training_options
from student.commands.training_display import TrainingDisplay
from student.recipe.student_recipe import PUBLISHED
from student.run.run_files import RUN_FOLDER
from student.run.run_reader import is_finished, precision_before, recipe_before

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from student.recipe.choice import RecipeChoice
    from student.recipe.settings import Precision
    from student.recipe.suited import Suited


_MEASURED_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTraining:
    """Which network becomes the teacher, from which weights, and what the user changes in the recipe "teacher"."""

    pretrained: str | None = flag(
        "--pretrained", metavar="NAME", help="Published weights: a timm name with tag, or efficientnet_lite0."
    )
    model: str | None = flag("--model", metavar="NAME", help="A timm model without published weights.")
    init_weights: Path | None = flag("--init-weights", type=PATH, help="With --model: a file of weights to begin with.")
    epochs: int | None = flag("--epochs", type=COUNT, help="Default 10; below 1,500 images more, at most 30.")
    batch_size: int | None = flag("--batch-size", type=COUNT, help="Images per step, over all processes.")
    size: int | None = flag(
        "--size", type=COUNT, help="Side of the images, pixels; default 224; below 50,000 images 96 or 64."
    )
    config: Path | None = flag("--config", type=PATH, help="A TOML file of recipe fields.")
    sets: tuple[str, ...] = flag(
        "--set", multiple=True, metavar="KEY=VALUE", help="Any recipe field; view.FIELD for views."
    )

    def check(self) -> None:
        """Refuse names, files and combinations that cannot be, as far as that is known without torch.

        Errors:
            ValueError; ArtefactError for a missing file.
        """
        from teacher_cache.network.teacher_name import require_known
        from teacher_cache.network.weights_metadata import require_weights

        if (self.pretrained is None) == (self.model is None):
            raise ValueError(
                "train-teacher: give --pretrained NAME for published weights (efficientnet_lite0 needs no network), or "
                "--model NAME, with --init-weights FILE or to train from scratch"
            )
        if self.pretrained and self.init_weights:
            raise ValueError("--init-weights: --pretrained brings weights of its own; give --model with a file")
        require_known("--pretrained" if self.pretrained else "--model", self.pretrained or self.model or "")
        if self.init_weights:
            require_weights("--init-weights", self.init_weights)

    def suited_recipe(
        self, choice: "RecipeChoice", index: "ShardIndex", *, parts: int, before: "dict[str, Any]"
    ) -> "Suited":
        """The recipe; the views are normalised as the network's published weights want, so that stage 1 agrees."""
        from teacher_cache.network.timm_network import normalisation, require_published

        name, mean, std = normalisation(self.pretrained or self.model or "")
        if self.pretrained:
            require_published(self.pretrained)
        choice = replace(choice, model=name).with_fields(**{"view.mean": mean, "view.std": std})
        return choice.suited_to(index, parts=parts, before=before)

    def choice(self) -> "RecipeChoice":
        """Return the user's choice, before the network's normalisation is known."""
        start = f"{PUBLISHED}:{self.pretrained}" if self.pretrained else str(self.init_weights or "")
        flags = StudentFlags(
            model=self.pretrained or self.model or "",
            pretrained=None,
            recipe="teacher",
            stage=0,
            epochs=self.epochs,
            batch_size=self.batch_size,
            config=self.config,
            sets=self.sets,
        )
        started = {"finetune": True, "init_weights": start} if start else {}
        return flags.choice(image_size=self.size).with_fields(**started)


@click.command("train-teacher")
@shard_options()
@click.option("--val-shards", help="Shards to evaluate on; default: the training images, which flatters.")
@bundled(TeacherTraining, "teacher")
@click.option("--out", required=True, type=PATH, help="Run directory; an unfinished run goes on.")
@click.option("--seed", default=0, type=SEED, help="Seed of the initial classifier and the order.")
@training_options
def train_teacher(
    shard_place: ShardPlace,
    val_shards: str | None,
    teacher: TeacherTraining,
    out: Path,
    seed: int,
    training: TrainingFlags,
) -> None:
    """Fine-tune a classifier on your classes, for cache-teacher: from published weights, from a file, or from scratch.

    Writes OUT/weights.safetensors, of the last epoch, and with --val-shards also OUT/weights_best.safetensors, of the
    best one. `cache-teacher --teacher-weights` takes either file. Run the same command again to go on.
    """
    require_own("--out", out, RUN_FOLDER)
    teacher.check()
    index = shard_place.labelled(shard_place.shards, "--shards", "a teacher's training")
    world = world_from_env()
    before = recipe_before(out)
    data: dict[str, Any] = {"parts": world.size * training.accumulate, "before": before}
    choice = teacher.choice()
    refuse_changes(out, choice.changes(before))
    choice = choice.for_set(shard_place.survey(index), before)
    choice.suited_to(index, **data)
    val_index = shard_place.labelled(val_shards, "--val-shards", "validation") if val_shards else index
    from student.run.loop import train_many
    from student.run.run_events import StudentFinished
    from student.run.students import StudentJob

    settings = training.settings(run_precision=precision_before(out), seed=seed, quiet=is_finished(out))
    recipe, reasons = teacher.suited_recipe(choice, index, **data)
    start = " or ".join(advisable("--pretrained", "--init-weights"))
    scratch = f"{recipe.model} is trained from random weights; {start} needs fewer images"
    display = TrainingDisplay(quiet=world.rank > 0)
    display.explain(reasons, () if recipe.finetune else (scratch,))
    if not is_finished(out):
        shard_place.fetch(world, index, val_index)
    for event in train_many(
        [StudentJob(recipe, out, keep_best=val_shards is not None)],
        index,
        settings=settings,
        val_index=val_index,
        shard_cache_dir=shard_place.shard_cache,
        world=world,
    ):
        display.show(event)
        if isinstance(event, StudentFinished) and world.rank == 0:
            display.close()
            _say_best(out, event.summary)
            if not val_shards:
                result("these are its own training images, which flatters it; give --val-shards others")
            views = [] if shard_place.survey(index).is_small else ["--size", recipe.image_size, "--views", 12]
            weights = out / str(event.summary.get("best_weights", event.summary["weights"]))
            say_next(_cache_command(shard_place, weights, views or typed_words("size")))
    display.close()


def _cache_command(place: ShardPlace, weights: Path, views: Sequence[object]) -> list[object]:
    """The command that stores the answers of this teacher, beside its run."""
    out = weights.parent
    where = typed_words("shard_cache", "shard_cache_limit", "device")
    cache = beside(out, f"{out.resolve().name}.zarr")
    return ["cache-teacher", "--shards", place.shards, "--teacher-weights", weights, *views, *where, "--cache", cache]


def measured_rate(shards: Path, start: Mapping[str, Any]) -> float:
    """Train a teacher that is thrown away on a few batches, and return images per second.

    Args:
        start: the fields of `TeacherTraining` that the user would type: `pretrained` or `model`, and `size`.
    """
    from shards.pool.cpus import default_workers
    from student.cost.rate import images_per_s
    from student.recipe.settings import TrainSettings
    from teacher_cache.network.arithmetic import default_precision
    from teacher_cache.network.device import chosen_device

    place = ShardPlace(shards=str(shards), shard_cache=None, shard_cache_limit=None)
    index = place.index()
    values: dict[str, Any] = {field.name: None for field in fields(TeacherTraining)} | {"sets": ()}
    teacher = TeacherTraining(**(values | dict(start)))
    recipe, _ = teacher.suited_recipe(teacher.choice().for_set(place.survey(index), {}), index, parts=1, before={})
    device = chosen_device(None)
    precision = cast("Precision", default_precision(device)[0])
    settings = TrainSettings(precision=precision, workers=suited_workers(default_workers(ALONE), device), device=device)
    return images_per_s(recipe, index, settings, views=recipe.view_recipe, seconds=_MEASURED_S)


def _say_best(out: Path, summary: Mapping[str, Any]) -> None:
    """Say which weights the next command takes: those of the best epoch, and what the last epoch's are worth beside."""
    best, images = summary.get("best_epoch"), summary.get("validation_images")
    if best is None or not images:
        return
    file, top1, last = out / summary["best_weights"], summary["best_top1"], summary["top1"]
    words = f"best epoch {best + 1} of {summary['epochs']}: top-1 {accuracy(top1, images)}; its weights: {file}"
    if best + 1 < summary["epochs"]:
        doubt = math.hypot(noise(top1, images), noise(last, images))
        verdict = "more than" if top1 - last > doubt else "within"
        words += (
            f". The last epoch is {top1 - last:.1f} points lower, {verdict} the noise of ±{doubt:.1f}: "
            f"{out / summary['weights']}"
        )
    result(words)
