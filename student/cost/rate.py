"""Measure how many images a second a recipe is trained at on this machine, before a run of a given time."""

import time
from pathlib import Path

from shards.index.shard_index import ShardIndex
from shards.views.view_recipe import ViewRecipe
from shards.world import ALONE
from student.feed.feed import Feed
from student.feed.feed_options import FeedOptions
from student.learn.process_group import process_group
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.device import rank_device

_WARM_STEPS = 4


def images_per_s(
    recipe: StudentRecipe,
    index: ShardIndex,
    settings: TrainSettings,
    *,
    views: ViewRecipe,
    shard_cache: Path | None = None,
    seconds: float,
) -> float:
    """Train a student that is thrown away on views without a teacher, and return images per second.

    Args:
        views: of the run. seconds: how long it is timed, after four steps or as much time that are not counted.
    """
    device = rank_device(settings.device, ALONE)
    with (
        Feed(
            index,
            views=views,
            batch_size=recipe.batch_size,
            repeats=recipe.repeats,
            seed=settings.seed,
            device=device,
            workers=settings.workers,
            options=FeedOptions(accumulate=settings.accumulate, shard_cache=shard_cache),
        ) as feed,
        process_group(ALONE, device) as group,
    ):
        steps = feed.order.steps
        trainer = Trainer(recipe, settings, num_classes=index.num_classes, steps_per_epoch=steps, group=group)
        epoch, num_steps, first_step, begun_s = 0, 0, 0, time.monotonic()
        while True:
            for batch in feed.epoch(epoch):
                trainer.feed(batch.images, batch.labels, None, step=0, micro=batch.micro)
                if batch.micro + 1 < settings.accumulate:
                    continue
                num_steps += 1
                if not first_step:
                    # Where steps take seconds, start-up is no matter, and all of them would take minutes.
                    if num_steps == _WARM_STEPS or time.monotonic() - begun_s > seconds:
                        trainer.interval_metrics()  # waits for the device
                        first_step, begun_s = num_steps, time.monotonic()
                elif time.monotonic() - begun_s > seconds:
                    trainer.interval_metrics()
                    return (num_steps - first_step) * recipe.batch_size / (time.monotonic() - begun_s)
            epoch += 1  # in order, so that workers go on: an epoch of a small set is one step
