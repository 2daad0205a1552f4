"""Soft distillation of standardised logits (Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024).

Student's and teacher's logits become z-scores over the classes, so neither's spread is the other's business:

    Z(z) = (z − mean z) / std z             std over the C classes, divided by C, or by C − 1 as the authors' code does
    loss = τ² · KL(softmax(Z(teacher) / τ) ‖ softmax(Z(student) / τ))

τ is the paper's base temperature. A cache gives no logits but log p at any temperature t; t · log p differs from the
logits by one constant per row, which the mean takes away, so the z-scores are those of the logits themselves.
"""

from typing import TYPE_CHECKING, Any

from student.learn.losses.distill_loss import Answer, DistillLoss, full
from student.learn.losses.soft import soft_loss

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_STD = 1e-2
"""Standard deviation below which logits are divided by this instead. A z-score is blind to scale, so the gradient of a
student would grow without bound as its logits become alike: zero logits would fill Adam's second moments for
thousands of steps."""


def z_score(logit_BC: "Tensor", ddof: int = 0) -> "Tensor":
    """(z − mean) / std over the C classes of each row; std divides by C − ddof and is at least 0.01."""
    centred_BC = logit_BC - logit_BC.mean(-1, keepdim=True)
    mean_square_B1 = centred_BC.square().mean(-1, keepdim=True)
    if ddof:
        mean_square_B1 = mean_square_B1 * (logit_BC.shape[-1] / (logit_BC.shape[-1] - ddof))
    return centred_BC / mean_square_B1.clamp_min(_LEAST_STD**2).sqrt()


def soft_std_loss(
    logit_BC: "Tensor", teacher_BC: "Tensor", *, temperature: float, reduction: str, ddof: int = 0
) -> "Tensor":
    """τ² · KL of the z-scores at the base temperature τ, divided by B ("textbook") or by B · C ("reference").

    Args:
        logit_BC, teacher_BC: logits at τ = 1, each row up to a constant.
        ddof: of the standard deviations, which divide by C − ddof.
    """
    teacher_log_prob_BC = (z_score(full(teacher_BC), ddof) / temperature).log_softmax(-1)
    return soft_loss(z_score(full(logit_BC), ddof), teacher_log_prob_BC, temperature=temperature, reduction=reduction)


def _compute(logit_BC: "Tensor", answer: Answer, recipe: Any) -> "Tensor":
    teacher_BC = answer.log_prob(1.0)
    return soft_std_loss(
        logit_BC, teacher_BC, temperature=recipe.temperature, reduction=recipe.reduction, ddof=recipe.std_ddof
    )


SOFT_STD = DistillLoss(
    name="soft-std",
    title="soft distillation of standardised logits",
    compute=_compute,
    fields=("temperature", "reduction", "std_ddof"),
    # labels : teacher = .1 : 9 and base temperature 2, the authors' command
    published=(("distill_weight", 0.989), ("temperature", 2.0)),
)
