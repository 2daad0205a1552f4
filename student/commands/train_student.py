"""`train-student`: stage 2."""

from contextlib import ExitStack
from pathlib import Path

import click

from shards.flags import ShardPlace, shard_options
from shards.world import world_from_env
from student.commands.flags import StudentFlags, TrainingFlags, student_options, training_options
from student.commands.training_display import TrainingDisplay
from student.learn.losses.table import distillations
from teacher_cache.commands.flags import TeacherFlags, teacher_options


@click.command("train-student")
@shard_options()
@click.option("--val-shards", help="Shards to evaluate on.")
@click.option("--cache", help="The teacher cache. Without it: --distill none, or --online.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run directory; an unfinished run goes on.")
@click.option("--distill", metavar=f"[{'|'.join(distillations())}]", help="Default: the recipe's.")
@click.option("--lambda", "distill_weight", type=float, help="λ, weight of the distillation loss in [0, 1].")
@click.option("--tau", "temperature", type=float, help="τ, temperature of the soft loss.")
@student_options
@click.option("--online", is_flag=True, help="Run the teacher in the loop instead of reading a cache.")
@teacher_options
@click.option("--views-used", type=click.IntRange(1), help="Cycle through the first so many views of the cache.")
@click.option("--seed", default=0, show_default=True, help="Initial weights, order, drop path.")
@training_options
def train_student(
    place: ShardPlace,
    val_shards: str | None,
    cache: str | None,
    out: Path,
    distill: str | None,
    distill_weight: float | None,
    temperature: float | None,
    student: StudentFlags,
    online: bool,
    teacher: TeacherFlags,
    views_used: int | None,
    seed: int,
    training: TrainingFlags,
) -> None:
    """Train a DeiT student from shards and a teacher cache: any λ, any τ, hard or soft.

    Run the same command again to go on after a kill. Under torchrun every process is one rank.
    """
    from student.run.loop import train
    from teacher_cache.store.cache import TeacherCache

    if cache and online:
        raise ValueError("--online: runs the teacher in the loop; drop it, or drop --cache")
    settings = training.settings(seed=seed, views_used=views_used)
    world = world_from_env()
    with ExitStack() as stack:
        opened = stack.enter_context(TeacherCache.open(cache)) if cache else None
        num_views = views_used or (opened.num_views if opened else None)
        recipe, reasons = student.chosen(
            opened.spec.recipe if opened else None,
            num_views=(num_views,) if num_views else (),
            distill=distill,
            distill_weight=distill_weight,
            temperature=temperature,
        )
        network = None
        if online:
            network = teacher.load(
                recipe.view_recipe, device=training.device, precision=settings.precision, local_rank=world.local_rank
            )
        display = TrainingDisplay(quiet=world.rank > 0)
        display.explain(reasons)
        for event in train(
            recipe,
            place.index(),
            settings=settings,
            out=out,
            cache=opened,
            teacher=network,
            val_index=place.index_of(val_shards) if val_shards else None,
            shard_cache_dir=place.shard_cache,
            world=world,
        ):
            display.show(event)
        display.close()
