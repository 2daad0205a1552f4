"""DIST: Pearson correlation with the teacher, within each view and within each class (Huang et al., arXiv:2205.10536).

With Y = softmax(z / τ) of student (s) and teacher (t), ρ Pearson's correlation, B rows and C classes:

    inter = mean over rows i    of 1 − ρ(Y_s[i, :], Y_t[i, :])        which classes one view is like
    intra = mean over classes j of 1 − ρ(Y_s[:, j], Y_t[:, j])        which views are like one class
    loss  = τ² · (β · inter + γ · intra)                              τ² as in the authors' code

A correlation is blind to scale and offset, so the student need not match how sure the teacher is. `intra` correlates
over the batch it is given: under DistributedDataParallel or accumulation that is the micro-batch of one process, and
another micro-batch size is another loss. One row alone has no correlation: its intra is 1, without gradient.
"""

from typing import TYPE_CHECKING, Any

from student.learn.losses.distill_loss import Answer, DistillLoss, full

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SPREAD = 1e-2
"""Standard deviation over the mean, below which probabilities are divided by this instead. A correlation is blind to
scale, so its gradient grows without bound as a student's answers become alike: one that starts at zero logits would
fill Adam's second moments for thousands of steps."""


def dist_loss(
    logit_BC: "Tensor", teacher_log_prob_BC: "Tensor", *, temperature: float, beta: float, gamma: float
) -> "Tensor":
    """τ² · (β · inter + γ · intra), float32 (float64 stays) scalar.

    Args:
        logit_BC: the student's logits at τ = 1; teacher_log_prob_BC: the teacher's log p already at τ.
    """
    prob_BC = (full(logit_BC) / temperature).softmax(-1)
    teacher_BC = teacher_log_prob_BC.to(prob_BC.dtype).exp()
    inter, intra = (1.0 - _correlation(prob_BC, teacher_BC, dim).mean() for dim in (1, 0))
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a_BC: "Tensor", b_BC: "Tensor", dim: int) -> "Tensor":
    """Pearson's correlation of probabilities along a dimension; nearer to 0 where one side hardly varies."""
    return (_standardised(a_BC, dim) * _standardised(b_BC, dim)).sum(dim)


def _standardised(prob_BC: "Tensor", dim: int) -> "Tensor":
    """Centred, and of norm 1 along the dimension, or less below the least spread."""
    import torch

    # Relative to their mean, or the squares of a class of small probability would underflow; a mean far below rounding
    # counts as no probability at all.
    mean = prob_BC.detach().mean(dim, keepdim=True).clamp_min(torch.finfo(prob_BC.dtype).eps ** 2)
    relative_BC = prob_BC / mean
    centred_BC = relative_BC - relative_BC.mean(dim, keepdim=True)
    square = centred_BC.square().sum(dim, keepdim=True).clamp_min(prob_BC.shape[dim] * _LEAST_SPREAD**2)
    return centred_BC / square.sqrt()


def _compute(logit_BC: "Tensor", answer: Answer, recipe: Any) -> "Tensor":
    log_prob_BC = answer.log_prob(recipe.temperature)
    return dist_loss(
        logit_BC, log_prob_BC, temperature=recipe.temperature, beta=recipe.dist_beta, gamma=recipe.dist_gamma
    )


DIST = DistillLoss(
    name="dist",
    title="DIST distillation",
    compute=_compute,
    fields=("temperature", "dist_beta", "dist_gamma"),
    published=(("distill_weight", 0.5), ("temperature", 1.0)),
)
