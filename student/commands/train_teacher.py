"""`train-teacher`: a teacher of the user's own classes, fine-tuned by what trains students."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.console import result, say
from shards.flags import ShardPlace, bundled, shard_options
from shards.world import world_from_env
from student.commands.flags import StudentFlags, TrainingFlags, training_options
from student.commands.training_display import TrainingDisplay

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from student.recipe.suited import Suited


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTraining:
    """Which network becomes the teacher, from which weights, and what the user changes in the recipe "teacher"."""

    pretrained: str | None
    model: str | None
    init_weights: Path | None
    epochs: int | None
    batch_size: int | None
    size: int | None
    config: Path | None
    sets: tuple[str, ...]

    def chosen(self, index: "ShardIndex", *, parts: int, before: "dict[str, Any]") -> "Suited":
        """The recipe; the views are normalised as the network's published weights want, so that stage 1 agrees."""
        from teacher_cache.network.timm_network import normalisation

        if (self.pretrained is None) == (self.model is None):
            raise ValueError(
                "train-teacher: give --pretrained NAME for published weights (efficientnet_lite0 needs no network), or "
                "--model NAME, with --init-weights FILE or to train from scratch"
            )
        if self.pretrained and self.init_weights:
            raise ValueError("--init-weights: --pretrained brings weights of its own; give --model with a file")
        name, mean, std = normalisation(self.pretrained or self.model or "")
        start = f"timm:{self.pretrained}" if self.pretrained else str(self.init_weights or "")
        flags = StudentFlags(
            model=name,
            recipe="teacher",
            stage=0,
            epochs=self.epochs,
            batch_size=self.batch_size,
            config=self.config,
            sets=self.sets,
        )
        fixed: dict[str, Any] = {"view.mean": mean, "view.std": std, "image_size": self.size}
        if start:
            fixed |= {"finetune": True, "init_weights": start}
        return flags.chosen(None, index, num_views=[], parts=parts, before=before, **fixed)


_teacher_training = bundled(
    TeacherTraining,
    "teacher",
    click.option(
        "--pretrained", metavar="NAME", help="Published weights: a timm name with tag, or efficientnet_lite0."
    ),
    click.option("--model", metavar="NAME", help="A timm model without published weights."),
    click.option("--init-weights", type=click.Path(path_type=Path), help="For --model: a file to begin with."),
    click.option("--epochs", type=click.IntRange(1), help="Default 10."),
    click.option("--batch-size", type=click.IntRange(1), help="Global: over all processes."),
    click.option("--size", type=click.IntRange(1), help="Side of the images, pixels; default 224."),
    click.option("--config", type=click.Path(path_type=Path), help="A TOML file of recipe fields."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any recipe field; view.FIELD for views."),
)


@click.command("train-teacher")
@shard_options()
@click.option("--val-shards", help="Shards to evaluate on; default: the training images, which flatters.")
@_teacher_training
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory; an unfinished run goes on.")
@click.option("--seed", default=0, show_default=True, help="Initial classifier, order.")
@training_options
def train_teacher(
    place: ShardPlace,
    val_shards: str | None,
    teacher: TeacherTraining,
    out: Path,
    seed: int,
    training: TrainingFlags,
) -> None:
    """Fine-tune a classifier on your classes, for cache-teacher: from published weights, from a file, or from scratch.

    Writes OUT/weights.safetensors, which `cache-teacher --teacher-weights` takes. Run the same command again to go on.
    """
    from student.run.loop import train
    from student.run.run_events import StudentFinished
    from student.run.run_reader import recipe_before

    settings, world = training.settings(seed=seed), world_from_env()
    index = place.index()
    recipe, reasons = teacher.chosen(index, parts=world.size * settings.accumulate, before=recipe_before(out))
    if not recipe.finetune and world.rank == 0:
        say(f"{recipe.model}: from scratch; --pretrained or --init-weights gives a better teacher of few images")
    display = TrainingDisplay(quiet=world.rank > 0)
    display.explain(reasons)
    val_index = place.index_of(val_shards) if val_shards else index
    for event in train(
        recipe,
        index,
        settings=settings,
        out=out,
        val_index=val_index,
        shard_cache_dir=place.shard_cache,
        world=world,
    ):
        display.show(event)
        if isinstance(event, StudentFinished) and world.rank == 0:
            display.close()
            seen = "validation" if val_shards else "of its own training"
            result(
                f"teacher: top-1 {event.summary['top1']:.1f} % of {val_index.num_samples} images {seen}, chance is "
                f"{100 / index.num_classes:.1f} %\n"
                f"next: cache-teacher --shards {place.shards} --teacher-weights {out}/{event.summary['weights']} "
                f"--size {recipe.image_size} --cache DIR --views 12"
            )
    display.close()
