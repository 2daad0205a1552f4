"""Compute the learning rate as a pure function of (recipe, epoch, step).

Linear warm-up from `warmup_lr` over `warmup_epochs`, then half a cosine from the scaled lr to `min_lr`. The cosine is
that of the whole run, not of what the warm-up leaves (no warm-up prefix), and there is no cool-down, as in DeiT.
"""

import math

from student.recipe.student_recipe import StudentRecipe


def lr_at(recipe: StudentRecipe, epoch: int, step: int = 0, steps_per_epoch: int = 1) -> float:
    """The learning rate of one optimiser step.

    Args:
        epoch: from 0; step: optimiser step inside the epoch, from 0; only schedule_unit "step" looks at it.
        steps_per_epoch: optimiser steps of an epoch.

    With `lr_lag` epoch e runs at the rate of epoch e − 1, and epoch 0 at the first value of the schedule, as in the
    authors' code: it steps the schedule at the end of an epoch with the index of that epoch. ValueError
    outside the run.
    """
    if not (0 <= epoch < recipe.epochs and 0 <= step < steps_per_epoch):
        raise ValueError(
            f"learning rate: expected epoch in [0, {recipe.epochs}) and step in [0, {steps_per_epoch}), "
            f"got epoch {epoch}, step {step}"
        )
    if recipe.schedule_unit == "step":
        return _rate(recipe, epoch + step / steps_per_epoch)
    return _rate(recipe, max(epoch - recipe.lr_lag, 0))


def _rate(recipe: StudentRecipe, time: float) -> float:
    peak = recipe.scaled_lr
    if time < recipe.warmup_epochs:
        return recipe.warmup_lr + time * (peak - recipe.warmup_lr) / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return peak
    return recipe.min_lr + 0.5 * (peak - recipe.min_lr) * (1.0 + math.cos(math.pi * time / recipe.epochs))
