"""Each sentence of a diagnosis is said where it is due and nowhere else."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.errors import advising
from student.learn.diagnosis import RunFacts, diagnosis
from student.report.runs_page import notes
from student.run.run_reader import Run

WELL = RunFacts(
    num_classes=10,
    base_loss=1.0,
    validation={"top1": 70.0, "cls_top1": 69.0, "dist_top1": 69.5},
    num_validated=2_000,
    largest_class=12.0,
    teacher_right=0.8,
    student_params=1_000_000,
    teacher_params=4_000_000,
    times_each_view=1.0,
)


def test_a_run_that_is_well_gets_no_sentence() -> None:
    """Advice that is always there is not read."""
    assert diagnosis(WELL) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"base_loss": 2.2, "validation": {"top1": 20.0}},
            "its training loss is 2.20, guessing among 10 classes gives 2.30",
        ),
        ({"teacher_right": 0.3}, "the label for only 30 % of the training views"),
        ({"student_params": 5_000_000}, "larger than its teacher (5.00 and 4.00 million"),
        ({"validation": {"top1": 60.0, "cls_top1": 64.0, "dist_top1": 50.0}}, "the CLS head alone has 64.0 %"),
        ({"validation": {"top1": 60.0, "cls_top1": 50.0, "dist_top1": 64.0}}, "the DIST head alone has 64.0 %"),
        ({"times_each_view": 25.0}, "each cached view was trained on 25 times"),
        ({"largest_class": 70.0}, "top-1 of 70.0 % is no more than always naming the largest class gives (70.0 %)"),
        ({"largest_class": 90.0, "validation": {"top1": 4.0}, "base_loss": 1.27}, "top-1 of 4.0 % is no more than"),
        ({"num_validated": 184, "validation": {"top1": 36.4}}, "184 validation images give top-1 to ± 7.0"),
    ],
)
def test_one_ailment_gets_one_sentence(changes: dict[str, Any], words: str) -> None:
    """The sentence names the figure that it is about."""
    (sentence,) = diagnosis(replace(WELL, **changes))
    assert words in sentence and len(sentence) < 600
    with advising(()):
        (unflagged,) = diagnosis(replace(WELL, **changes))
    assert "--" not in re.sub(r"cache-teacher --[a-z-]+", "", unflagged), "a command has the flags that it advises"
    assert "()" not in unflagged


@pytest.mark.parametrize(
    "changes",
    [
        {"largest_class": 100.0, "validation": {"top1": 100.0}},
        {"largest_class": 60.0, "validation": {"top1": 60.1}},
        {"largest_class": 70.0, "validation": {}},
    ],
)
def test_a_largest_class_that_says_nothing_is_not_named(changes: dict[str, Any]) -> None:
    """One class in all of the validation, a student beyond it, a run that was not validated."""
    assert diagnosis(replace(WELL, **changes)) == ()


@pytest.mark.parametrize("mild", [False, True])
def test_milder_views_are_advised_where_there_are_any(mild: bool) -> None:
    """Who had the mildest recipe was told to use it."""
    (sentence,) = diagnosis(replace(WELL, teacher_right=0.3, mild_views=mild))
    assert ("--view-recipe small" in sentence) != mild and "better teacher" in sentence


@pytest.mark.parametrize(("largest", "uneven"), [(10.0, False), (12.0, False), (40.0, True)])
def test_images_of_small_classes_are_advised_where_classes_are_uneven(largest: float, uneven: bool) -> None:
    (sentence,) = diagnosis(replace(WELL, validation={"top1": 5.0}, largest_class=largest))
    assert ("small classes" in sentence) == uneven and "largest class" in sentence


def test_a_student_that_learned_nothing_is_told_so_once() -> None:
    (sentence,) = diagnosis(replace(WELL, base_loss=2.3, validation={"top1": 10.0}, largest_class=12.0))
    assert "learned little" in sentence


def test_what_a_run_does_not_know_is_not_diagnosed() -> None:
    """No validation, no teacher, no cross-entropy: no sentence about them."""
    assert diagnosis(RunFacts(num_classes=10, validation={})) == ()


def test_the_report_says_each_sentence_once_with_its_runs(tmp_path: Path) -> None:
    """Nine cells of a sweep with the same ailment are one line."""
    runs = [
        Run(path=tmp_path / name, config={}, steps=(), epochs=(), summary={"diagnosis": ["it is ill"]} if ill else {})
        for name, ill in (("a", True), ("b", False), ("c", True))
    ]
    page = str(notes(runs, ["a", "b", "c"]))
    assert page.count("it is ill") == 1 and "a, c" in page
    assert str(notes(runs[1:2], ["b"])) == ""
