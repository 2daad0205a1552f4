"""The public names of this package and where each is defined: read by type checkers, and when a name is first used."""

from .feed.answers import TeacherAnswer as TeacherAnswer
from .feed.batch import Batch as Batch
from .feed.batch import Labels as Labels
from .feed.feed import Feed as Feed
from .feed.feed_options import FeedOptions as FeedOptions
from .feed.teaching import Teaching as Teaching
from .learn.loss import base_loss as base_loss
from .learn.loss import student_loss as student_loss
from .learn.losses.distill_loss import DistillLoss as DistillLoss
from .learn.losses.hard import hard_loss as hard_loss
from .learn.losses.soft import soft_loss as soft_loss
from .learn.losses.table import LOSSES as LOSSES
from .learn.network import Heads as Heads
from .learn.network import heads as heads
from .learn.network import make_student as make_student
from .recipe.papers import recipe_for as recipe_for
from .recipe.settings import TrainSettings as TrainSettings
from .recipe.student_recipe import StudentRecipe as StudentRecipe
from .report.write import write_report as write_report
from .run.export import load_student as load_student
from .run.loop import train as train
from .run.loop import train_many as train_many
from .run.run_reader import Run as Run
from .run.run_reader import read_run as read_run
from .run.students import StudentJob as StudentJob
