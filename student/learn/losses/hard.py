"""Hard distillation: cross-entropy with the teacher's first class (Touvron et al., arXiv:2012.12877, section 4)."""

from typing import TYPE_CHECKING, Any

from student.learn.losses.distill_loss import Answer, DistillLoss, full

if TYPE_CHECKING:
    from torch import Tensor


def hard_loss(logit_BC: "Tensor", hard_B: "Tensor") -> "Tensor":
    """Cross-entropy with the teacher's first class, mean over the batch: one class, never mixed or smoothed."""
    return -full(logit_BC).log_softmax(-1).gather(1, hard_B[:, None]).mean()


def _compute(logit_BC: "Tensor", answer: Answer, _: Any) -> "Tensor":
    return hard_loss(logit_BC, answer.hard)


HARD = DistillLoss(
    name="hard",
    title="hard distillation",
    compute=_compute,
    needs_probabilities=False,
    published=(("distill_weight", 0.5),),
)
