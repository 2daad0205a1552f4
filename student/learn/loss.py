"""Compute the loss of a student: labels through one head, the teacher through the other.

    total = (1 − λ) · base + λ · distill

`distill` is one of `student.learn.losses`; of several teachers it is combined as the recipe's `combine` says.
Everything is float32 whatever the autocast: in bf16 a log-softmax has three digits. A student with one head trains it
on both; of two heads DIST learns from the teacher, or both as the recipe's `teacher_heads` says. B batch, C classes.

An image may have no label. Each half of a mixture counts in `base` with its weight if its image has a label. The sum is
divided by the labelled weight that a batch has on average: its size times the labelled share of the whole set. So every
labelled image counts alike, however a batch is cut over processes and micro-batches, which need not ask each other. A
batch without labels has a base loss of zero.
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


class Loss(NamedTuple):
    """The parts of a loss, float32 scalars; `distill` is zero without a teacher."""

    total: Tensor
    base: Tensor
    distill: Tensor


def base_loss(logit_BC: Tensor, labels: Labels, *, kind: str, smoothing: float) -> Tensor:
    """The loss against the labels, mean over the labelled weight of a batch on average; float32 (float64 stays) scalar.

    "cross_entropy": the target is λ-mix of the two classes, each smoothed (off ε/C, on 1 − ε + ε/C).
    "binary": sigmoid cross-entropy, mean over batch and classes, of the target `weight > 0` (DeiT-III).

    Raises:
        ValueError: another kind.
    """
    if kind not in ("cross_entropy", "binary"):
        raise ValueError(f"kind: expected cross_entropy or binary, got {kind!r:.60}")
    logit_BC = full(logit_BC)
    if labels.partly:
        return _partly_labelled(logit_BC, labels, kind=kind, smoothing=smoothing)
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


def _partly_labelled(logit_BC: Tensor, labels: Labels, *, kind: str, smoothing: float) -> Tensor:
    """The same where some images of the set have no label."""
    divisor = (len(logit_BC) * labels.labelled_share) or 1.0  # without any label the sum is zero
    own_B, partner_B = (half_B.to(logit_BC.dtype) for half_B in labels.halves())
    weight_B = labels.weight_B.to(logit_BC.dtype)
    label_B, partner_label_B = labels.classes
    if kind == "binary":
        target_BC = torch.zeros_like(logit_BC)
        target_BC.scatter_reduce_(1, label_B[:, None], (own_B > 0)[:, None].to(logit_BC.dtype), "amax")
        target_BC.scatter_reduce_(1, partner_label_B[:, None], (partner_B > 0)[:, None].to(logit_BC.dtype), "amax")
        loss_B = weight_B * binary_cross_entropy_with_logits(logit_BC, target_BC, reduction="none").mean(-1)
        return loss_B.sum() / divisor
    log_prob_BC = torch.log_softmax(logit_BC, -1)
    own_log_B = log_prob_BC.gather(1, label_B[:, None]).squeeze(1)
    partner_log_B = log_prob_BC.gather(1, partner_label_B[:, None]).squeeze(1)
    mixed_B = own_B * own_log_B + partner_B * partner_log_B
    smoothed_B = (1.0 - smoothing) * mixed_B + smoothing * (weight_B * log_prob_BC.mean(-1))
    return -(smoothed_B.sum() / divisor)


def taught_heads(heads: Heads, recipe: StudentRecipe) -> tuple[Tensor, ...]:
    """The logits that learn from the teacher: those of the only head, of DIST, or of both."""
    if heads.dist_BC is None:
        return (heads.cls_BC,)
    return (heads.cls_BC, heads.dist_BC) if recipe.teacher_heads == "both" else (heads.dist_BC,)


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
    """Measure how much harder the teacher pulls at the student's logits than the labels do.

    ‖λ · ∂distill/∂logits‖ ÷ ‖(1 − λ) · ∂base/∂logits‖ over the batch, each through its own head; infinite at λ = 1. The
    student's own gradients are left alone. ValueError as `student_loss`.
    """
    cls_BC = full(answered.cls_BC).detach().requires_grad_()
    dist_BC = None if answered.dist_BC is None else full(answered.dist_BC).detach().requires_grad_()
    leaves, weight = Heads(cls_BC, dist_BC), recipe.distill_weight
    with torch.enable_grad(), torch.autocast(cls_BC.device.type, enabled=False):
        (of_base_BC,) = torch.autograd.grad(_base(leaves, labels, recipe), cls_BC)
        of_distill = torch.autograd.grad(_distill(leaves, answer, recipe), taught_heads(leaves, recipe))
    of_distill_HBC = of_distill[0] if len(of_distill) == 1 else torch.stack(of_distill)
    base, distill = (1.0 - weight) * of_base_BC.norm().item(), weight * of_distill_HBC.norm().item()
    return distill / base if base > 0 else math.inf


def _base(heads: Heads, labels: Labels, recipe: StudentRecipe) -> Tensor:
    return base_loss(heads.cls_BC, labels, kind=recipe.base_loss, smoothing=recipe.label_smoothing)


def _distill(heads: Heads, answer: Answers | None, recipe: StudentRecipe) -> Tensor:
    if answer is None:
        raise ValueError(f"distill: {recipe.distill} needs a teacher, got none; give a cache, or distill=none")
    combine, loss = combination_named(recipe.combine).compute, loss_named(recipe.distill)
    distill, *other = (combine(loss, pupil_BC, answer, recipe) for pupil_BC in taught_heads(heads, recipe))
    if other:
        distill = torch.stack([distill, *other]).mean()
    return distill / heads.cls_BC.shape[-1] if recipe.reduction == "per_class" else distill
