"""The losses of a student: labels through one head, the teacher through the other.

    total = (1 − λ) · base + λ · distill

hard: cross-entropy with the teacher's first class. soft: τ² · KL(teacher_τ ‖ student_τ), the mean over the batch
("textbook", Hinton et al., arXiv:1503.02531) or divided by batch × classes ("reference", the authors' code, 1/C of the
textbook). Everything is float32 whatever the autocast: in bf16 a log-softmax has three digits.
B batch, C classes. A student with one head trains it on both.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from student.model import Heads
from student.recipes import StudentRecipe


class Labels(NamedTuple):
    """What the images of a batch show: class (B,) int64, the partner's class, and the weight of the own image."""

    label_B: Tensor
    partner_label_B: Tensor
    lam_B: Tensor

    @classmethod
    def of(cls, label_B: Tensor, partner_B: Tensor | None = None, lam_B: Tensor | None = None) -> "Labels":
        """From class, partner's position in the batch and weight; unmixed without the last two."""
        if partner_B is None or lam_B is None:
            return cls(label_B, label_B, torch.ones(label_B.shape, device=label_B.device))
        return cls(label_B, label_B[partner_B.long()], lam_B.float())


class Teacher(NamedTuple):
    """The teacher's answer to a batch: first class (B,) int64, and log p at τ (B, C) float32 when the loss is soft."""

    hard_B: Tensor
    log_prob_BC: Tensor | None


class Loss(NamedTuple):
    """The parts of a loss, float32 scalars; `distill` is zero without a teacher."""

    total: Tensor
    base: Tensor
    distill: Tensor


def teacher_from_logits(logit_BC: Tensor, recipe: StudentRecipe) -> Teacher:
    """The teacher of a batch from its logits (the teacher in the loop); tied first classes go to the lowest index."""
    logit_BC = logit_BC.float()
    classes = torch.arange(logit_BC.shape[1], device=logit_BC.device)
    first = logit_BC == logit_BC.amax(-1, keepdim=True)
    hard_B = torch.where(first, classes, logit_BC.shape[1] - 1).amin(-1)
    soft = recipe.distill == "soft"
    return Teacher(hard_B, torch.log_softmax(logit_BC / recipe.temperature, -1) if soft else None)


def base_loss(logit_BC: Tensor, labels: Labels, *, kind: str, smoothing: float) -> Tensor:
    """The loss against the labels, mean over the batch; float32 (float64 stays) scalar.

    "cross_entropy": the target is λ-mix of the two classes, each smoothed (off ε/C, on 1 − ε + ε/C).
    "binary": sigmoid cross-entropy, mean over batch and classes, of the target `weight > 0` (DeiT-III).
    """
    logit_BC = _full(logit_BC)
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


def hard_loss(logit_BC: Tensor, hard_B: Tensor) -> Tensor:
    """Cross-entropy with the teacher's first class, mean over the batch: one class, never mixed or smoothed."""
    return -torch.log_softmax(_full(logit_BC), -1).gather(1, hard_B[:, None]).mean()


def soft_loss(logit_BC: Tensor, teacher_log_prob_BC: Tensor, *, temperature: float, reduction: str) -> Tensor:
    """τ² · KL(teacher_τ ‖ student_τ), divided by B ("textbook") or by B · C ("reference").

    Args:
        logit_BC: the student's logits at τ = 1; teacher_log_prob_BC: the teacher's log p already at τ.
    """
    log_prob_BC = torch.log_softmax(_full(logit_BC) / temperature, -1)
    teacher_log_prob_BC = teacher_log_prob_BC.to(log_prob_BC.dtype)
    prob_BC = teacher_log_prob_BC.exp()
    # a class the teacher gives no mass (log p = −∞) adds nothing
    term_BC = torch.where(prob_BC > 0, prob_BC * (teacher_log_prob_BC - log_prob_BC), 0.0)
    return term_BC.sum() * temperature**2 / (term_BC.numel() if reduction == "reference" else term_BC.shape[0])


def student_loss(heads: Heads, labels: Labels, teacher: Teacher | None, recipe: StudentRecipe) -> Loss:
    """(1 − λ) · base + λ · distill of the recipe, with its parts.

    ValueError when the recipe distils and no teacher is given.
    """
    with torch.autocast(heads.cls_BC.device.type, enabled=False):
        base = base_loss(heads.cls_BC, labels, kind=recipe.base_loss, smoothing=recipe.label_smoothing)
        if recipe.distill == "none":
            return Loss(base, base.detach(), torch.zeros_like(base))
        if teacher is None:
            raise ValueError(f"distill: {recipe.distill} needs a teacher, got none; give a cache, or distill=none")
        dist_BC = heads.cls_BC if heads.dist_BC is None else heads.dist_BC
        distill = _distill(dist_BC, teacher, recipe)
        weight = recipe.distill_weight
        return Loss((1.0 - weight) * base + weight * distill, base.detach(), distill.detach())


def _distill(dist_BC: Tensor, teacher: Teacher, recipe: StudentRecipe) -> Tensor:
    """The loss against the teacher."""
    if recipe.distill == "hard":
        return hard_loss(dist_BC, teacher.hard_B)
    if teacher.log_prob_BC is None:
        raise ValueError("distill: soft needs the teacher's probabilities, got its first classes only")
    return soft_loss(dist_BC, teacher.log_prob_BC, temperature=recipe.temperature, reduction=recipe.reduction)


def _full(logit_BC: Tensor) -> Tensor:
    """At least float32."""
    return logit_BC if logit_BC.dtype == torch.float64 else logit_BC.float()
