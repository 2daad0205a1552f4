"""Counts, shares, durations and sizes are written in one way, by one module."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from shards import console
from shards.console import Bar
from shards.text.figures import byte_size, count, duration, percent, plural
from student.commands.training_display import TrainingDisplay
from student.run.run_events import StudentFinished
from teacher_cache.network import device
from tests.test_layering import ROOT, SOURCES

PRODUCT = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("shards", "teacher_cache", "student")]
AGREES = {("student/sweep/cell_training.py", "record.k"), ("student/recipe/suited.py", "counts")}
"""A field of a file of sweeps, which stays as it is; and several numbers in one text."""


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "shard", "0 shards"), (1, "shard", "1 shard"), (2, "class", "2 classes"), (1, "class", "1 class"),
     (1234567, "view", "1,234,567 views"), (3, "teacher forward", "3 teacher forwards"), (2, "batch", "2 batches"),
     (2, "epoch", "2 epochs")],
)  # fmt: skip
def test_counts_agree_with_their_noun(number: int, noun: str, text: str) -> None:
    assert count(number, noun) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 64, "0.0 %"), (64, 64, "100.0 %"), (1, 10**6, "0.1 %"), (10**6 - 1, 10**6, "99.9 %"), (1, 3, "33.3 %"),
     (0, 0, "– %"), (float("nan"), 2, "– %")],
)  # fmt: skip
def test_all_and_none_are_said_of_all_and_none_only(part: float, whole: float, text: str) -> None:
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "under 1 s"), (1.0, "1.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (240, "4 min 00 s"),
     (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (float("inf"), "?"), (float("nan"), "?")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(1, "1 byte"), (0, "0 bytes"), (1536, "1,536 bytes"), (999_999, "1.0 MB"), (1.5e9, "1.5 GB"), (2.34e12, "2.3 TB")],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert byte_size(num_bytes) == text


def nouns(trees: Iterable[ast.AST]) -> set[str]:
    """The plurals of what the formatter counts anywhere; sizes of files are no counts, and "answers" is also a verb."""
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 2]
    counted = [call.args[1] for call in calls if ast.unparse(call.func) in ("count", "plural")]
    words = [noun.value.split()[-1] for noun in counted if isinstance(noun, ast.Constant)]
    return {plural(2, word) for word in words} - {"bytes", "answers"}


def counted_by_hand(tree: ast.AST, where: str, nouns: set[str]) -> Iterator[str]:
    """The f-strings that put a number before a plural themselves; rates have decimals, constants are known."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, after in zip(node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            number, form = ast.unparse(value.value), ast.unparse(value.format_spec) if value.format_spec else ""
            word = re.match(r" (?:more |full |selected |remote |training )?(\w+)(?!\w|/)", str(after.value))
            known = number.isupper() or re.search(r"\.\df", form) or (where, number) in AGREES
            if word and word[1] in nouns and not known:
                yield f"{where}:{node.lineno}: {ast.unparse(value)}{after.value}"


def test_what_is_printed_leaves_plurals_to_the_formatter() -> None:
    """ "--budget is 1 minutes", "of 1 epochs": a noun that is counted by the formatter once is counted by it always."""
    trees = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in PRODUCT}
    found = nouns(trees.values())
    assert {"minutes", "epochs", "classes", "views", "images"} <= found and len(trees) > 200
    assert [line for where, tree in trees.items() for line in counted_by_hand(tree, where, found)] == []
    by_hand = ast.parse("f'{n} epochs', f'{n:g} minutes', f'{n} more classes', f'{n:.1f} views', f'{MOST} views'")
    assert [line.split(":")[0] for line in counted_by_hand(by_hand, "x", found)] == ["x", "x", "x"]


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(console, "time", found := Clock())
    return found


def test_what_is_done_at_once_has_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("make-shards", 1, "shard")
    bar.to(1)
    assert capsys.readouterr().err == "make-shards: 1/1 shard, in under 1 s\n"


def test_the_time_left_counts_no_compilation(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The first step takes four minutes, the others a second each."""
    bar = Bar("train", 100, "step")
    clock.now += 240
    bar.to(1)
    assert capsys.readouterr().err == "train: 1/100 steps\n", "one step is no rate"
    for step in range(2, 101):
        clock.now += 1
        bar.to(step)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "train: 11/100 steps, 1.0/s, 1 min 29 s left"
    assert said[-1] == "train: 100/100 steps, 1.0/s, in 5 min 39 s"


def test_a_resumed_run_counts_no_rate_of_what_was_done_before(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("train", 100, "step")
    bar.start_at(90)
    for step in range(91, 101):
        clock.now += 10
        bar.to(step)
    assert "0.1/s, 1 min 20 s left" in capsys.readouterr().err


def test_a_run_without_figures_ends_without_a_comma(capsys: pytest.CaptureFixture[str]) -> None:
    TrainingDisplay(quiet=False).show(StudentFinished(student="a", out=Path("runs/a"), summary={}))
    assert capsys.readouterr().out == "runs/a: done\n"


@pytest.mark.parametrize(
    ("kind", "programs", "headers", "missing"),
    [
        ("cpu", {"g++"}, False, None),
        ("cpu", {"gcc", "clang"}, True, "a C++ compiler: expected g++ or c++ or clang++, or CXX"),
        ("cuda", {"gcc"}, True, None),
        ("cuda", {"clang"}, True, None),
        ("cuda", {"g++"}, True, "a C compiler: expected gcc or clang, or CC"),
        ("cuda", {"gcc"}, False, "Python's header files: expected"),
    ],
)
def test_what_compiling_needs_is_asked_for_only_where_it_is_missing(
    kind: str, programs: set[str], headers: bool, missing: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU Triton needs C and Python.h, which images made to run programs lack; code for CPUs is C++."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}" if name in programs else None)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    lines = device.expectations(kind, precision="bf16", compile=True)
    assert [line for line in lines if "needs" in line] == [line for line in lines if missing and missing in line]
    assert len(lines) == 1 + bool(missing)
