"""The losses by name, in the order in which they are listed; "none" is the word for training without a teacher."""

from shards.names import OpenSet
from student.learn.losses.dist import DIST
from student.learn.losses.distill_loss import DistillLoss
from student.learn.losses.hard import HARD
from student.learn.losses.soft import SOFT
from student.learn.losses.soft_std import SOFT_STD

NONE = "none"
LOSSES = OpenSet("losses", "distill", DistillLoss, (HARD, SOFT, DIST, SOFT_STD))


def distillations() -> tuple[str, ...]:
    """List the values of a recipe's `distill`: "none", and every loss."""
    return (NONE, *LOSSES)


def loss_named(name: str) -> DistillLoss:
    """The loss of that name; ValueError with the supported ones."""
    return LOSSES.named(name)
