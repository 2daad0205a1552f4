"""Run the calibration pass: the teacher's answers to a sample of views, from which the tail basis is fitted.

The sample is a pure function of spec and shards, and the pass has one batch size of its own, so whoever fits the basis
fits the same one. It is kept apart from the views that the fidelity report measures.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shards.index.reader import ShardReader
from shards.rng import stream
from shards.views.blocks import model_input, render_block
from shards.views.mixing import block_mix, block_rows, num_blocks
from shards.views.view_recipe import ViewRecipe
from teacher_cache.network.teacher import Teacher
from teacher_cache.store.digest import IndexLike, UnitId, fidelity_count, fidelity_positions
from teacher_cache.store.spec import CacheSpec

# N calibration views, C classes, B teacher batch, V views of a unit, R rows of a shard.

SMALLEST, LARGEST, SHARE = 512, 4096, 20
"""Views of the pass: one view in SHARE of the first view block, within these bounds and what there is."""

FEWEST = 16
"""With fewer views no tail basis is fitted."""

BATCH = 64
_VIEW_BLOCK = 0  # the same sample whatever number of views is asked for today


class Sample(NamedTuple):
    """A block in one view, and the positions in it whose answers are used."""

    shard: int
    block: int
    view: int
    place_N: NDArray[np.int64]


def calibration_size(spec: CacheSpec, num_samples: int) -> int:
    """Return the number of views that the pass aims at."""
    return min(LARGEST, max(SMALLEST, num_samples * spec.recipe.block_views // SHARE))


def calibration_sample(spec: CacheSpec, index: IndexLike, num_views: int) -> list[Sample]:
    """Choose blocks, each in one keyed view of the first view block, that together hold about `num_views` usable views.

    A view is not used where it, or its partner in mixing, is measured by the fidelity report. Samples that the report
    measures in no view of their unit come first, each block in one view; where there are too few of those, as in a
    cache of a few hundred images, further views and then the other samples fill up.
    """
    recipe = spec.recipe
    places = [(s, b) for s in range(len(index.names)) for b in range(num_blocks(recipe, int(index.rows_S[s])))]
    rng = stream(recipe.seed, "calibration")
    order = [places[n] for n in rng.permutation(len(places))]
    view_of = dict(zip(order, (int(word) % recipe.block_views for word in rng.words(len(order))), strict=True))
    samples: dict[tuple[int, int, int], Sample] = {}
    count = 0
    for strict, turn in product((True, False), range(recipe.block_views)):
        for shard, block in order:
            view = _VIEW_BLOCK * recipe.block_views + (view_of[shard, block] + turn) % recipe.block_views
            if count >= num_views:
                return _in_order(samples)
            before = samples.get((shard, block, view))
            place_N = _usable(spec, index, shard, block, view, strict=strict)
            if len(place_N) > (0 if before is None else len(before.place_N)):
                samples[shard, block, view] = Sample(shard, block, view, place_N)
                count += len(place_N) - (0 if before is None else len(before.place_N))
    return _in_order(samples)


def _in_order(samples: dict[tuple[int, int, int], Sample]) -> list[Sample]:
    # Views of one sample next to each other: `fit_basis` cuts its folds between samples.
    return [samples[place] for place in sorted(samples)]


def _usable(spec: CacheSpec, index: IndexLike, shard: int, block: int, view: int, *, strict: bool) -> NDArray[np.int64]:
    recipe, name, num_rows = spec.recipe, index.names[shard], int(index.rows_S[shard])
    rows = block_rows(recipe, name, num_rows, view)[block * recipe.block_size : (block + 1) * recipe.block_size]
    count = fidelity_count(spec, index.rows_S)
    positions_F2 = fidelity_positions(spec, UnitId(_VIEW_BLOCK, shard), name, num_rows, count)
    measured_VR = np.zeros((recipe.block_views, num_rows), np.bool_)
    measured_VR[positions_F2[:, 0], positions_F2[:, 1]] = True
    measured_R: NDArray[np.bool_] = (
        np.logical_or.reduce(measured_VR) if strict else measured_VR[view % recipe.block_views]
    )
    measured_N = measured_R[rows]
    partner_N = block_mix(recipe, name, block, len(rows), view).partner_N
    return np.flatnonzero(~(measured_N | measured_N[partner_N]))


def calibration_logits(
    teacher: Teacher, reader: ShardReader, recipe: ViewRecipe, samples: Sequence[Sample]
) -> Iterator[NDArray[np.float32]]:
    """Yield the teacher's answers to the sample, (≤ BATCH, C) float32 at a time, in order.

    Errors:
        ShardError naming the sample that cannot be read.
    """
    waiting: list[torch.Tensor] = []
    for sample in samples:
        batch = render_block(reader, recipe, sample.shard, sample.block, [sample.view])
        image_BCHW = model_input(batch, recipe, teacher.device)
        waiting += image_BCHW[torch.from_numpy(sample.place_N).to(teacher.device, non_blocking=True)]
        while len(waiting) >= BATCH:
            yield _answer(teacher, waiting[:BATCH])
            waiting = waiting[BATCH:]
    if waiting:
        yield _answer(teacher, waiting)


def _answer(teacher: Teacher, images: list[torch.Tensor]) -> NDArray[np.float32]:
    image_BCHW = torch.stack(images)
    padded_BCHW = image_BCHW.new_zeros((BATCH, *image_BCHW.shape[1:]))
    padded_BCHW[: len(images)] = image_BCHW
    logit_BC: NDArray[np.float32] = teacher.logits(padded_BCHW)[: len(images)].cpu().numpy()
    return logit_BC
