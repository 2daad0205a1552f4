"""The losses against the teacher as gradients, to measure what the records of a cache cost each of them."""

from dataclasses import replace

import torch
from torch import Tensor

from student.learn.losses.distill_loss import DistillLoss
from student.learn.losses.table import LOSSES
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.record.loss_error import KnownAnswer, LossGradient


def loss_gradients(recipe: StudentRecipe | None = None) -> tuple[LossGradient, ...]:
    """Every loss that reads probabilities, with the settings of a recipe (default: those of its paper).

    The others read the first class, which every record has exactly.
    """
    known = [loss for loss in LOSSES.values() if loss.needs_probabilities]
    return tuple(
        LossGradient(
            loss=loss.name,
            uses_temperature=loss.uses_temperature,
            gradient=_Gradient(loss, recipe or replace(StudentRecipe(), **dict(loss.published))),
        )
        for loss in known
    )


class _Gradient:
    """∂loss/∂logits of one loss at any τ."""

    def __init__(self, loss: DistillLoss, recipe: StudentRecipe) -> None:
        self._loss, self._recipe = loss, recipe

    def __call__(self, student_BC: Tensor, answer: KnownAnswer, temperature: float) -> Tensor:
        leaf_BC = student_BC.clone().requires_grad_()
        loss = self._loss.compute(leaf_BC, answer, replace(self._recipe, temperature=temperature))
        (gradient_BC,) = torch.autograd.grad(loss, leaf_BC)
        return gradient_BC
