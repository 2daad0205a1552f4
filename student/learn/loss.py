"""The loss of a student: labels through one head, the teacher through the other.

    total = (1 − λ) · base + λ · distill

`distill` is one of `student.learn.losses`; of several teachers it is combined as the recipe's `combine` says.
Everything is float32 whatever the autocast: in bf16 a log-softmax has three digits. B batch, C classes. A student with
one head trains it on both.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from student.feed.batch import Labels
from student.learn.losses.distill_loss import full
from student.learn.losses.table import NONE, loss_named
from student.learn.network import Heads
from student.recipe.combinations import Answers, combination_named
from student.recipe.student_recipe import StudentRecipe

__all__ = ["Labels", "Loss", "base_loss", "gradient_balance", "student_loss"]


class Loss(NamedTuple):
    """The parts of a loss, float32 scalars; `distill` is zero without a teacher."""

    total: Tensor
    base: Tensor
    distill: Tensor


def base_loss(logit_BC: Tensor, labels: Labels, *, kind: str, smoothing: float) -> Tensor:
    """The loss against the labels, mean over the batch; float32 (float64 stays) scalar.

    "cross_entropy": the target is λ-mix of the two classes, each smoothed (off ε/C, on 1 − ε + ε/C).
    "binary": sigmoid cross-entropy, mean over batch and classes, of the target `weight > 0` (DeiT-III).
    """
    logit_BC = full(logit_BC)
    lam_B = labels.lam_B.to(logit_BC.dtype)
    if kind == "binary":
        target_BC = torch.zeros_like(logit_BC)
        own, partner = (lam_B > 0)[:, None], (lam_B < 1)[:, None]
        target_BC.scatter_reduce_(1, labels.label_B[:, None], own.to(logit_BC.dtype), "amax")
        target_BC.scatter_reduce_(1, labels.partner_label_B[:, None], partner.to(logit_BC.dtype), "amax")
        return binary_cross_entropy_with_logits(logit_BC, target_BC)
    log_prob_BC = torch.log_softmax(logit_BC, -1)
    own_B = log_prob_BC.gather(1, labels.label_B[:, None]).squeeze(1)
    partner_B = log_prob_BC.gather(1, labels.partner_label_B[:, None]).squeeze(1)
    mixed_B = lam_B * own_B + (1.0 - lam_B) * partner_B
    return -((1.0 - smoothing) * mixed_B + smoothing * log_prob_BC.mean(-1)).mean()


def student_loss(heads: Heads, labels: Labels, answer: Answers | None, recipe: StudentRecipe) -> Loss:
    """(1 − λ) · base + λ · distill of the recipe, with its parts.

    ValueError when the recipe distils and no teacher is given.
    """
    with torch.autocast(heads.cls_BC.device.type, enabled=False):
        base = _base(heads, labels, recipe)
        if recipe.distill == NONE:
            return Loss(base, base.detach(), torch.zeros_like(base))
        distill = _distill(heads, answer, recipe)
        weight = recipe.distill_weight
        return Loss((1.0 - weight) * base + weight * distill, base.detach(), distill.detach())


def gradient_balance(answered: Heads, labels: Labels, answer: Answers, recipe: StudentRecipe) -> float:
    """How much harder the teacher pulls at the student's logits than the labels do.

    ‖λ · ∂distill/∂logits‖ ÷ ‖(1 − λ) · ∂base/∂logits‖ over the batch, each through its own head; infinite at λ = 1. The
    student's own gradients are left alone. ValueError as `student_loss`.
    """
    cls_BC = full(answered.cls_BC).detach().requires_grad_()
    dist_BC = None if answered.dist_BC is None else full(answered.dist_BC).detach().requires_grad_()
    leaves, weight = Heads(cls_BC, dist_BC), recipe.distill_weight
    with torch.enable_grad(), torch.autocast(cls_BC.device.type, enabled=False):
        (of_base_BC,) = torch.autograd.grad(_base(leaves, labels, recipe), cls_BC)
        (of_distill_BC,) = torch.autograd.grad(_distill(leaves, answer, recipe), cls_BC if dist_BC is None else dist_BC)
    base, distill = (1.0 - weight) * of_base_BC.norm().item(), weight * of_distill_BC.norm().item()
    return distill / base if base > 0 else math.inf


def _base(heads: Heads, labels: Labels, recipe: StudentRecipe) -> Tensor:
    return base_loss(heads.cls_BC, labels, kind=recipe.base_loss, smoothing=recipe.label_smoothing)


def _distill(heads: Heads, answer: Answers | None, recipe: StudentRecipe) -> Tensor:
    if answer is None:
        raise ValueError(f"distill: {recipe.distill} needs a teacher, got none; give a cache, or distill=none")
    dist_BC = heads.cls_BC if heads.dist_BC is None else heads.dist_BC
    distill = combination_named(recipe.combine).compute(loss_named(recipe.distill), dist_BC, answer, recipe)
    return distill / dist_BC.shape[-1] if recipe.reduction == "per_class" else distill
