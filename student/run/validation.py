"""Evaluate several students on one pass over the validation shards."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from shards.index.reader import ShardReader
from shards.views.blocks import ViewBatch
from student.learn.evaluation import Forward, answers_of, eval_batches, eval_views, evaluate
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.run.shard_sets import ShardSets


def validate(
    trainers: Sequence[Trainer], data: ShardSets, settings: TrainSettings, group: ProcessGroup
) -> list[dict[str, float]]:
    """Top-1 and top-5 in percent of each student, its weight average under "ema_…"; every sample counted once.

    The students walk the batches in step, so each image is decoded once for all of them.
    """
    assert data.val_index is not None, "nothing to validate on"
    views = eval_views(trainers[0].recipe, data.views.recipe)
    models: list[tuple[int, str, nn.Module]] = []
    for number, trainer in enumerate(trainers):
        models.append((number, "", trainer.core))
        if trainer.ema is not None:
            models.append((number, "ema_", trainer.ema.model))
    forward = Forward(
        views=views,
        device=torch.device(group.device),
        precision=settings.precision,
        answers=answers_of(compiled=settings.compile, batch_size=views.block_size),
    )
    with ShardReader(data.val_index, data.shard_cache_dir) as reader:
        loaded = eval_batches(
            reader,
            views,
            world=group.world,
            workers=settings.workers,
            pin_memory=group.device.type == "cuda",
        )
        evaluations = [
            evaluate(
                model,
                copy,
                forward,
                num_samples=data.val_index.num_samples,
                class_order=data.val_classes.order,
                total=group.sum,
            )
            for (_, _, model), copy in zip(models, in_step(loaded, len(models)), strict=True)
        ]
        results: list[dict[str, float]] = [{} for _ in trainers]
        for events in zip(*evaluations, strict=True):
            for (number, prefix, _), event in zip(models, events, strict=True):
                if event.result is not None:
                    results[number] |= {prefix + name: value for name, value in event.result.metrics().items()}
    return results


def in_step(batches: Iterator[ViewBatch], count: int) -> list[Iterator[ViewBatch]]:
    """Give the batches to several readers that walk in step; a batch is let go as soon as the last one has passed it.

    `itertools.tee` would keep 57 of them.
    """
    waiting: list[deque[ViewBatch]] = [deque() for _ in range(count)]

    def reader(own: deque[ViewBatch]) -> Iterator[ViewBatch]:
        while True:
            if not own:
                batch = next(batches, None)
                if batch is None:
                    return
                for queue in waiting:
                    queue.append(batch)
                del batch
            yield own.popleft()

    return [reader(own) for own in waiting]
