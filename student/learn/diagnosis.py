"""Say in plain sentences what a finished run suffers from, as far as the run knows it. This file imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shards.data_defaults import SMALL_VIEW
from shards.errors import flag_hint
from shards.text.figures import accuracy, count, noise

_UNLEARNED = 0.9  # of log C: a student that guesses has a label loss of log C
_MOSTLY_WRONG = 0.5  # of the views
_UNEVEN = 1.5  # times its even share has the largest class
_BETTER_HEAD = 1.0  # points of top-1
_TIMES_EACH_VIEW = 4  # a network of some size learns answers by heart that it is shown more often
_UNSURE = 4.0  # points: what a good teacher is worth
MORE_VIEWS = "each cached view was trained on"
"""How the sentence begins that asks for more views of the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a finished run knows of itself; None or NaN where it does not.

    Attributes:
        num_classes: C. base_loss: of the last epoch against the labels, nats; NaN for a loss that is no cross-entropy.
        validation: top-1 by name in percent: "top1" of the answer, "cls_top1", "dist_top1". num_validated: images.
        largest_class: top-1 of always naming the largest class of the validation images, percent.
        teacher_right: share of the training views where the teacher's first class is the label.
        mild_views: whether these views are of the mild recipe already.
        student_params, teacher_params: parameters; None of a teacher that cannot be counted.
        times_each_view: how often the run trains on each cached view; None where views never end.
    """

    num_classes: int
    base_loss: float = math.nan
    validation: Mapping[str, float]
    num_validated: int = 0
    largest_class: float = math.nan
    teacher_right: float | None = None
    mild_views: bool = False
    student_params: int = 0
    teacher_params: int | None = None
    times_each_view: float | None = None


def diagnosis(facts: RunFacts) -> tuple[str, ...]:
    """Return one sentence for each thing that is due; nothing for a run that is well."""
    checks = (_underfits, _names_one_class, _teacher_wrong, _larger_than_teacher, _uneven_heads, _few_views, _unsure)
    return tuple(sentence for check in checks if (sentence := check(facts)))


def _underfits(facts: RunFacts) -> str:
    chance, top1 = math.log(facts.num_classes), facts.validation.get("top1", 0.0)
    halfway = 50 + 50 / facts.num_classes  # between a guess and always right: smoothed labels keep a loss high
    if not facts.base_loss >= _UNLEARNED * chance or top1 >= halfway:
        return ""
    longer = f"train longer{flag_hint('--epochs', '--budget')}"
    return (
        f"the network has learned little yet: its training loss is {facts.base_loss:.2f}, guessing among "
        f"{count(facts.num_classes, 'class')} gives {chance:.2f}; {longer}, or with a higher learning rate"
    )


def _names_one_class(facts: RunFacts) -> str:
    top1 = facts.validation.get("top1", math.nan)
    # A set of one class tells nothing, and a network that has learned nothing is said to have learned little.
    if not top1 <= facts.largest_class < 100 or _underfits(facts):
        return ""
    known = facts.num_validated or 1000
    uneven = facts.largest_class >= _UNEVEN * 100 / facts.num_classes
    return (
        f"top-1 of {accuracy(top1, known)} is no more than always naming the largest class gives "
        f"({accuracy(facts.largest_class, known)}): see which classes are right (evaluate), or train longer"
        f"{flag_hint('--epochs', '--budget')}{'; more images of the small classes help' if uneven else ''}"
    )


def _teacher_wrong(facts: RunFacts) -> str:
    if facts.teacher_right is None or facts.teacher_right >= _MOSTLY_WRONG:
        return ""
    milder = "" if facts.mild_views else f"milder views (cache-teacher --view-recipe {SMALL_VIEW}), "
    return (
        f"the teacher's first class is the label for only {100 * facts.teacher_right:.0f} % of the training views; "
        f"use {milder}larger views, or a better teacher: one trained longer, on more images, or from stronger weights"
    )


def _larger_than_teacher(facts: RunFacts) -> str:
    if facts.teacher_params is None or facts.student_params <= facts.teacher_params:
        return ""
    student, teacher = facts.student_params / 1e6, facts.teacher_params / 1e6
    return (
        f"the student is larger than its teacher ({student:.2f} and {teacher:.2f} million parameters); a smaller one "
        f"learns faster{flag_hint('--model')}, or begin with published weights{flag_hint('--pretrained')}"
    )


def _uneven_heads(facts: RunFacts) -> str:
    average = facts.validation.get("top1", math.nan)
    heads = {"CLS": facts.validation.get("cls_top1", math.nan), "DIST": facts.validation.get("dist_top1", math.nan)}
    better = {name: top1 for name, top1 in heads.items() if top1 > average + _BETTER_HEAD}
    if not better:
        return ""
    name = max(better, key=lambda head: better[head])
    advice = (
        "what the teacher says does not help here; see how often it is right (cache-teacher says it), or lower λ"
        if name == "CLS"
        else "the head of the labels lags behind; raise λ"
    )
    return (
        f"the {name} head alone has {better[name]:.1f} % top-1, the average of both heads, which answers, "
        f"{average:.1f} %: {advice}{flag_hint('--lambda')}"
    )


def _few_views(facts: RunFacts) -> str:
    if facts.times_each_view is None or facts.times_each_view <= _TIMES_EACH_VIEW:
        return ""
    return (
        f"{MORE_VIEWS} {facts.times_each_view:.0f} times; a cache of more views of the same images helps a student "
        "that is trained so long"
    )


def _unsure(facts: RunFacts) -> str:
    top1 = facts.validation.get("top1", math.nan)
    if not facts.num_validated or not 0 <= top1 <= 100 or (around := noise(top1, facts.num_validated)) < _UNSURE:
        return ""
    return (
        f"{count(facts.num_validated, 'validation image')} give top-1 to ± {around:.1f} points (95 %): a smaller "
        "difference between two runs may be chance; validate on more images, or compare several seeds"
    )
