"""Evaluate several students on one pass over the validation shards."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from shards.index.reader import ShardReader
from shards.views.blocks import ViewBatch
from student.learn.evaluation import (
    EvalResult,
    Forward,
    answers_of,
    eval_batch_size,
    eval_batches,
    eval_views,
    evaluate,
    own_samples,
)
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from student.run.shard_sets import ShardSets


def validate(
    trainers: Sequence[Trainer], data: ShardSets, settings: TrainSettings, group: ProcessGroup
) -> list[dict[str, float]]:
    """Top-1 and top-5 in percent of each student, its weight average under "ema_…"; every sample counted once.

    A rank that fails ends the others too. RunError when samples are missing; ShardError from the reader.
    """
    assert data.val_index is not None, "nothing to validate on"
    models: list[tuple[int, str, nn.Module]] = []
    for number, trainer in enumerate(trainers):
        models.append((number, "", trainer.core))
        if trainer.ema is not None:
            models.append((number, "ema_", trainer.ema.model))
    networks = [(trainers[number].recipe.model, model) for number, _, model in models]
    recipe = trainers[0].recipe
    own = group.on_every_rank(lambda: _own_results(networks, recipe, data, settings, group))
    results: list[dict[str, float]] = [{} for _ in trainers]
    for (number, prefix, _), parts in zip(models, zip(*group.gathered(own), strict=True), strict=True):
        metrics = EvalResult.of_all_ranks(parts, data.val_index.num_samples).metrics()
        results[number] |= {prefix + name: value for name, value in metrics.items()}
    return results


def _own_results(
    networks: Sequence[tuple[str, nn.Module]],
    recipe: StudentRecipe,
    data: ShardSets,
    settings: TrainSettings,
    group: ProcessGroup,
) -> list[EvalResult]:
    """What each network, with its name, answers to this rank's share of the images.

    The networks walk the batches in step, so each image is decoded once for all of them.
    """
    assert data.val_index is not None, "only a run with validation shards is validated"
    trained_at_once = recipe.batch_size // (group.world.size * settings.accumulate)
    most = eval_batch_size(group.device.type, trained_at_once)  # beyond 64 no more than training takes
    views = eval_views(recipe, data.views.recipe, block_size=most)
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
                replace(forward, model=name),
                num_own=own_samples(data.val_index.rows_S, views, group.world),
                class_order=data.val_classes.order,
            )
            for (name, model), copy in zip(networks, in_step(loaded, len(networks)), strict=True)
        ]
        results: list[EvalResult] = []
        for events in zip(*evaluations, strict=True):
            results = [event.result for event in events if event.result is not None]
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
