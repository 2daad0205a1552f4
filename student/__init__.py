"""Stage 2: students from shards and a teacher cache, any λ, any τ, one or many on a pass.

    recipe    which students there are and how each is trained
    feed      the door: views, labels and the teacher's answers in any training loop
    learn     network, losses, optimiser, trainer, process group, evaluation
    run       the loop; a run with its directory, exact resume, export
    sweep     maps of λ × τ;  report: what came of it;  cost: what it costs

The names of `__all__` are what other code may import (docs/python.md); they are loaded when they are asked for.
"""

from typing import TYPE_CHECKING

from shards.public_names import names_from

if TYPE_CHECKING:
    from student.feed.batch import Batch, Labels
    from student.feed.feed import Feed
    from student.feed.teacher_source import TeacherAnswer
    from student.learn.loss import base_loss, student_loss
    from student.learn.losses.distill_loss import DistillLoss
    from student.learn.losses.hard import hard_loss
    from student.learn.losses.soft import soft_loss
    from student.learn.losses.table import LOSSES
    from student.learn.network import Heads, heads, make_student
    from student.recipe.papers import recipe_for
    from student.recipe.settings import TrainSettings
    from student.recipe.student_recipe import StudentRecipe
    from student.report.write import write_report
    from student.run.export import load_student
    from student.run.loop import train, train_many
    from student.run.run_reader import Run, read_run
    from student.run.students import StudentJob

__all__ = [
    "LOSSES",
    "Batch",
    "DistillLoss",
    "Feed",
    "Heads",
    "Labels",
    "Run",
    "StudentJob",
    "StudentRecipe",
    "TeacherAnswer",
    "TrainSettings",
    "base_loss",
    "hard_loss",
    "heads",
    "load_student",
    "make_student",
    "read_run",
    "recipe_for",
    "soft_loss",
    "student_loss",
    "train",
    "train_many",
    "write_report",
]

_MODULES = {
    "LOSSES": "student.learn.losses.table",
    "Batch": "student.feed.batch",
    "DistillLoss": "student.learn.losses.distill_loss",
    "Feed": "student.feed.feed",
    "Heads": "student.learn.network",
    "Labels": "student.feed.batch",
    "Run": "student.run.run_reader",
    "StudentJob": "student.run.students",
    "StudentRecipe": "student.recipe.student_recipe",
    "TeacherAnswer": "student.feed.teacher_source",
    "TrainSettings": "student.recipe.settings",
    "base_loss": "student.learn.loss",
    "hard_loss": "student.learn.losses.hard",
    "heads": "student.learn.network",
    "load_student": "student.run.export",
    "make_student": "student.learn.network",
    "read_run": "student.run.run_reader",
    "recipe_for": "student.recipe.papers",
    "soft_loss": "student.learn.losses.soft",
    "student_loss": "student.learn.loss",
    "train": "student.run.loop",
    "train_many": "student.run.loop",
    "write_report": "student.report.write",
}

__getattr__ = names_from(__name__, _MODULES)
