"""Soft distillation: τ² · KL(teacher_τ ‖ student_τ).

"textbook" is the mean over the batch (Hinton et al., arXiv:1503.02531); "reference" divides by batch × classes, as the
code of DeiT's authors does: 1/C of the textbook.
"""

from typing import TYPE_CHECKING, Any

from student.learn.losses.distill_loss import Answer, DistillLoss, full

if TYPE_CHECKING:
    from torch import Tensor


_REDUCTIONS = ("textbook", "reference", "per_class")  # the last divides every loss, so the caller does it


def soft_loss(logit_BC: "Tensor", teacher_log_prob_BC: "Tensor", *, temperature: float, reduction: str) -> "Tensor":
    """τ² · KL(teacher_τ ‖ student_τ), divided by B ("textbook") or by B · C ("reference").

    Args:
        logit_BC: the student's logits at τ = 1; teacher_log_prob_BC: the teacher's log p already at τ.

    Raises:
        ValueError: another reduction, or two shapes; they would broadcast to a wrong loss.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r:.60}")
    if logit_BC.shape != teacher_log_prob_BC.shape:
        student, teacher = tuple(logit_BC.shape), tuple(teacher_log_prob_BC.shape)
        raise ValueError(f"logits: expected {teacher}, the shape of the teacher's answer, got {student}")
    log_prob_BC = (full(logit_BC) / temperature).log_softmax(-1)
    # A class that the teacher gives no mass (log p = −∞) adds 0; NaN stays NaN, and the loss shows it.
    teacher_log_prob_BC = teacher_log_prob_BC.to(log_prob_BC.dtype).clamp_min(-1e30)
    term_BC = teacher_log_prob_BC.exp() * (teacher_log_prob_BC - log_prob_BC)
    return term_BC.sum() * temperature**2 / (term_BC.numel() if reduction == "reference" else term_BC.shape[0])


def _compute(logit_BC: "Tensor", answer: Answer, recipe: Any) -> "Tensor":
    log_prob_BC = answer.log_prob(recipe.temperature)
    return soft_loss(logit_BC, log_prob_BC, temperature=recipe.temperature, reduction=recipe.reduction)


SOFT = DistillLoss(
    name="soft",
    title="soft distillation",
    compute=_compute,
    fields=("temperature", "reduction"),
    # of DeiT (arXiv:2012.12877, section 6), whose code measures λ in the reference reduction
    published=(("distill_weight", 0.1), ("temperature", 3.0), ("reduction", "reference")),
)
