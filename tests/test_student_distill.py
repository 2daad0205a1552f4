"""`distill` runs the other commands in order, as a user would type them, and ends with what came out."""

import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from shards.commands.make_shards import _say_pixels
from shards.errors import RunError, advisable
from shards.index.shard_index import open_index
from shards.own_folder import CACHE_KIND
from shards.tars.writer import write_samples
from shards.text.figures import duration
from shards.views.view_recipe import ViewRecipe
from student.commands.distill import _most_epochs, _Steps, distill, outcome
from student.cost.distill_plan import plan_within, student_seconds, views_for_all
from student.cost.time_budget import BUDGET_FILE, TimeBudget
from student.feed.coverage import left_over_in_all
from student.feed.order import Order
from teacher_cache.network.weights_metadata import BEST_WEIGHTS

PNG = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
NUM_PHOTOS = 47  # no multiple of the 16 of a mixing group
SUMMARY = {"validation_images": 100, "validation_majority": 20.0}


def write_run(out: Path, top1: float, words: tuple[str, ...]) -> None:
    """A finished run, as far as `distill` reads it."""
    out.mkdir(parents=True, exist_ok=True)
    typed = dict(pairwise(words))
    start = f"timm:{typed['--pretrained']}" if "--pretrained" in typed else ""
    recipe = {"epochs": 7, "model": typed.get("--model", "net"), "init_weights": start}
    (out / "config.json").write_text(json.dumps({"recipe": recipe, "train": {}}))
    best = {"best_epoch": 1, "best_top1": top1 + 3, "best_weights": BEST_WEIGHTS} if out.name == "teacher" else {}
    (out / "summary.json").write_text(json.dumps({**SUMMARY, "top1": top1, "images_per_s": 40.0, **best}))
    if best:
        (out / BEST_WEIGHTS).write_bytes(b"")


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[click.Group]:
    """Commands of the real names that write what theirs would leave, and keep what they were asked."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(b"")
    asked: list[list[str]] = []

    def act(name: str, words: tuple[str, ...]) -> None:
        asked.append([name, *words])
        if name == "make-shards":
            for split in ("train", "val"):
                samples = [(f"dog/{n}", n % 2, "png", PNG) for n in range(1, NUM_PHOTOS + 1)]
                if not Path(words[1], split).exists():
                    write_samples(samples, Path(words[1], split), num_classes=2)
        elif name.startswith("train"):
            write_run(Path(words[-1]), 90.0 if name == "train-teacher" else 26.0, words)
        elif name == "cache-teacher":
            Path(words[-1]).mkdir(exist_ok=True)
        elif name == "report":
            Path(words[-1]).write_text("")

    commands: dict[str, click.Command] = {"distill": distill}
    for name in ("make-shards", "train-teacher", "cache-teacher", "train-student", "evaluate", "report"):
        params: list[click.Parameter] = [click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)]
        settings = {"ignore_unknown_options": True}
        commands[name] = click.Command(
            name, params=params, callback=lambda words, name=name: act(name, words), context_settings=settings
        )
    monkeypatch.setattr("student.commands.distill.measured_rate", lambda *_: 40.0)
    group = click.Group("cli.py", commands)
    vars(group)["asked"] = asked
    yield group


def run(group: click.Group, *words: str) -> tuple[str, list[list[str]]]:
    """What is printed, and the commands that ran."""
    vars(group)["asked"].clear()
    done = CliRunner().invoke(group, ["distill", *words], prog_name="cli.py")
    assert done.exit_code == 0, done.output
    return done.output, list(vars(group)["asked"])


def test_each_command_is_printed_as_it_runs_and_ends_with_the_comparison(group: click.Group) -> None:
    """Nothing is done that a reader of the terminal could not type."""
    output, asked = run(group, "photos", "--out", "work")
    order = "make-shards train-teacher cache-teacher train-student train-student evaluate report"
    assert [words[0] for words in asked] == order.split()
    for words in asked:
        assert f"python cli.py {' '.join(words)}" in output
    assert "--split" in asked[0], "two classes and no validation part"
    assert asked[2][asked[2].index("--teacher-weights") + 1] == os.path.join("work", "teacher", BEST_WEIGHTS)
    assert asked[6][asked[6].index("--teacher") + 1] == os.path.join("work", "teacher"), "the page names the epoch"
    assert re.search(r"teacher +93 %", output)
    assert asked[4][-6:] == ["--distill", "none", "--epochs", "7", "--out", os.path.join("work", "without-teacher")]
    assert "teacher" in output and "always naming the largest class" in output
    assert output.count("next: ") == 1 and "predict photos/dog/1.jpg --weights work/student" in output


def test_a_list_of_labels_reaches_make_shards(group: click.Group) -> None:
    """Photos side by side with a list had no way into this command."""
    Path("list.csv").write_text("1.jpg,cat\n")
    _, asked = run(group, "photos", "--out", "work", "--labels", "list.csv")
    assert asked[0][3:7] == ["--labels", "list.csv", "--split", "0.2"]


@pytest.mark.parametrize("out", ["photos", "photos/work", "file", "photos/../photos/cat"])
def test_a_place_that_cannot_be_is_refused_before_anything_is_written(group: click.Group, out: str) -> None:
    """A folder for the results among the photos became a class without images at the next try."""
    Path("file").write_text("")
    before = sorted(Path().rglob("*"))
    refused = CliRunner().invoke(group, ["distill", "photos", "--out", out])
    assert isinstance(refused.exception, ValueError) and f"--out {out}: expected a folder" in str(refused.exception)
    assert sorted(Path().rglob("*")) == before and not vars(group)["asked"]


def test_photos_may_lie_in_the_folder_of_the_results(group: click.Group) -> None:
    assert run(group, "photos", "--out", ".")[1][0][1:3] == ["photos", "data"]


def test_a_set_beyond_the_small_ones_gets_what_a_budget_of_minutes_allows(
    group: click.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image more made the student a DeiT of 224 pixels, from random weights, in fifteen minutes."""
    small = run(group, "photos", "--out", "small")[1]
    assert not {"--model", "--size", "--view-recipe"} & {word for words in small for word in words}
    monkeypatch.setattr("shards.data_defaults.SMALL_SET", NUM_PHOTOS)
    measured: list[Any] = []
    monkeypatch.setattr("student.commands.distill.measured_rate", lambda *args: measured.append(args) or 40.0)
    output, asked = run(group, "photos", "--out", "work")
    assert measured[0][1]["size"] == 96 and f"{NUM_PHOTOS} images: as in a small set" in output
    assert asked[1][5:] == ["--pretrained", "efficientnet_lite0", "--size", "96", *asked[1][9:]]
    assert asked[2][-6:-2] == ["--view-recipe", "small", "--size", "96"]
    for words in asked[3:5]:
        assert words[words.index("--model") + 1] == "small_cnn"
    again = run(group, "photos", "--out", "work")[1]
    assert "--size" not in again[1] and "--size" not in again[2], "what exists keeps its settings"


def test_students_of_one_folder_are_of_one_model(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large set that an earlier version began with a DeiT goes on with it."""
    monkeypatch.setattr("shards.data_defaults.SMALL_SET", NUM_PHOTOS)
    write_run(Path("work", "student"), 26.0, ("--out", "work/student"))
    assert all("--model" not in words for words in run(group, "photos", "--out", "work")[1])


def test_the_photo_to_try_is_of_the_folder_that_was_validated_on(group: click.Group) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            photo = Path("both", part, name, "1.jpg")
            photo.parent.mkdir(parents=True)
            photo.write_bytes(b"")
    output, asked = run(group, "both", "--out", "work")
    assert "--split" not in asked[0] and "predict both/test/dog/1.jpg" in output


def test_the_same_line_again_asks_for_the_same_runs(group: click.Group) -> None:
    """Otherwise each command would refuse a directory of another run."""
    _, first = run(group, "photos", "--out", "work")
    _, second = run(group, "photos", "--out", "work", "--budget", "90")
    assert second[4] == first[4] and second[3][-4:-2] == ["--epochs", "7"]
    assert "--views" not in second[2] and second[1][-4:-2] == ["--epochs", "7"]


def test_a_budget_that_changes_nothing_is_said(group: click.Group) -> None:
    """Nothing was trained, and the old result was printed as that of more time."""
    assert "--budget" not in run(group, "photos", "--out", "work")[0].partition("[1]")[0]
    assert "keeps its 7 epochs" in run(group, "photos", "--out", "work", "--budget", "90")[0]


def test_the_teacher_stays_when_its_package_comes_or_goes(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether published weights are installed decides for a new folder alone."""
    _, first = run(group, "photos", "--out", "work")
    monkeypatch.setattr("student.commands.distill.find_spec", lambda _: None)
    assert run(group, "photos", "--out", "work")[1][1][:7] == first[1][:7]
    assert "resnet18" in run(group, "photos", "--out", "other")[1][1]


def test_a_wrong_name_is_refused_by_the_flag_that_was_typed(
    group: click.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was called --model, after the photos were packed."""
    monkeypatch.delitem(sys.modules, "timm", raising=False)  # once it is imported, any name may be registered
    refused = CliRunner().invoke(group, ["distill", "photos", "--out", "work", "--pretrained", "resnt18"])
    assert "--pretrained" in str(refused.exception) and not vars(group)["asked"]


def test_photos_are_turned_where_that_is_asked(group: click.Group) -> None:
    """As `make-shards --upright` does."""
    assert "--upright" in run(group, "photos", "--out", "work", "--upright")[1][0]


def test_every_flag_that_packing_advises_about_pixels_is_one_of_distill_too(group: click.Group) -> None:
    """The advice of make-shards stands in the output of distill; --background was advised and refused."""
    advised = set(re.findall(r"; (--[a-z]+)", inspect.getsource(_say_pixels)))
    flags = {word for param in distill.params for word in param.opts}
    assert advised == {"--upright", "--background"} and advised <= flags
    packing = run(group, "photos", "--out", "work", "--background", "white")[1][0]
    assert packing[packing.index("--background") + 1] == "white"


@pytest.mark.parametrize(("top1", "verdict"), [(26.0, "within the noise"), (60.0, "more than the noise")])
def test_a_difference_is_called_noise_where_it_is(top1: float, verdict: str) -> None:
    """Of 100 images one photo is one point."""
    student: dict[str, Any] = {**SUMMARY, "top1": top1}
    lines = "\n".join(outcome({"top1": 93.0}, student, {"top1": 25.0}))
    assert verdict in lines and "93 %" in lines and "20 %" in lines


@pytest.mark.parametrize(
    ("teacher", "student", "weak"), [(24.0, 25.0, True), (24.0, 26.0, False), (25.0, 25.0, False), (93.0, 20.0, False)]
)
def test_a_teacher_is_called_weak_where_it_is_below_a_student_without_it_and_does_not_help(
    teacher: float, student: float, weak: bool
) -> None:
    lines = "\n".join(outcome({"top1": teacher}, {**SUMMARY, "top1": student}, {"top1": 25.0}))
    assert ("weaker than the student without it" in lines) == weak


@pytest.mark.parametrize("rate", [0.5, 5.0, 40.0, 3000.0])
@pytest.mark.parametrize("num_photos", [20, 500, 9000])
def test_a_plan_fits_its_budget_or_is_the_smallest_and_says_what_to_change(rate: float, num_photos: int) -> None:
    """The teacher's epochs were not counted: a budget of 5 minutes took 20."""
    sizes = {"num_training": num_photos, "num_validation": num_photos // 4, "most_epochs": 5}
    plans = [plan_within(60 * minutes, rate, **sizes) for minutes in (1, 5, 15, 60, 600)]
    for minutes, plan in zip((1, 5, 15, 60, 600), plans, strict=True):
        words = plan.words(60 * minutes, rate)
        assert 1 <= plan.epochs <= 5 and plan.num_views >= 6
        assert plan.teacher_s >= plan.epochs * (num_photos / rate + 0.25), "what each epoch costs besides its steps"
        if plan.fits(60 * minutes):
            assert words.startswith("plan: ")
        else:
            assert (
                words.startswith("warning: ")
                and f"--budget is {minutes} minute{'s' * (minutes > 1)}:" in words
                and "--budget " in words[-20:]
            )
            wanted = int(words.rpartition(" ")[2])
            assert plan_within(60 * wanted, rate, **sizes).fits(60 * wanted), "the advised budget is enough"
            assert plan.epochs == 1 and plan.num_views == 6
    for less, more in pairwise(plans):
        assert less.epochs <= more.epochs and less.num_views <= more.num_views


@pytest.mark.parametrize(
    ("num_photos", "minutes", "epochs"), [(700, 59, 5), (700, 60, 21), (50_000, 59, 5), (50_000, 60, 10)]
)
def test_an_hour_trains_the_teacher_as_long_as_its_own_command(num_photos: int, minutes: int, epochs: int) -> None:
    """Of 50,000 photos on it had stayed at five epochs."""
    assert _most_epochs(num_photos, 60.0 * minutes) == epochs


def test_a_rounding_of_the_sum_costs_no_epoch() -> None:
    """The parts of a plan add up to its budget: 26 of these 200 had an epoch too few, as the sum was rounded up."""
    budgets = [60.0 + 7.3 * n for n in range(200)]
    sizes = {"num_training": 700, "num_validation": 175, "most_epochs": 5}
    planned = [plan_within(seconds, 33.0, **sizes).epochs for seconds in budgets]
    assert planned == [plan_within(seconds + 1e-6, 33.0, **sizes).epochs for seconds in budgets] == sorted(planned)


def test_what_was_used_before_the_plan_counts() -> None:
    """Packing many photos may take longer than the rest: the plan was said to fit what was over."""
    plan = plan_within(240.0, 40.0, num_training=400, num_validation=100, most_epochs=5)
    assert plan.words(300.0, 40.0, 60.0).startswith("plan: ")
    late = plan.words(300.0, 40.0, 200.0)
    assert late.startswith("warning: ") and "until now 3 min 20 s" in late and late.endswith("--budget 8")
    assert plan.fits(480.0, 200.0) and not plan.fits(420.0, 200.0)


@pytest.mark.parametrize("rate", [0.05, 40.0])
def test_the_plan_stands_before_the_teacher_and_the_time_at_the_end(
    group: click.Group, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """With what to change, where it does not fit."""
    monkeypatch.setattr("student.commands.distill.measured_rate", lambda *_: rate)
    output, asked = run(group, "photos", "--out", "work", "--budget", "5")
    plan = output.partition("train-teacher")[0]
    assert ("plan: about" in plan) == (rate > 1) and ("warning: this takes about" in plan) == (rate < 1)
    assert asked[1][-4:-2] == ["--epochs", "5" if rate > 1 else "1"]
    assert re.search(r"this took .* of 5 minutes \(--budget\)", output)
    assert "this takes" not in (again := run(group, "photos", "--out", "work", "--budget", "5")[0])
    assert "plan: " not in again, "it keeps what was planned"


def test_the_views_leave_no_photo_out(group: click.Group) -> None:
    """Six views leave 15 of 47 photos out, which a command that distill had chosen then warned of."""
    asked = run(group, "photos", "--out", "work", "--budget", "1")[1]
    index, num_views = open_index("work/data/train"), int(asked[2][asked[2].index("--views") + 1])
    assert num_views >= views_for_all(index) > 6
    order = Order(rows_S=index.rows_S, recipe=ViewRecipe(), batch_size=16, num_views=num_views)
    assert not left_over_in_all(index, order, num_views).any()
    assert left_over_in_all(index, order, 6).sum() == 15


COMMANDS = ["make-shards", "train-teacher", "cache-teacher", "train-student", "evaluate", "report"]


@pytest.fixture
def clock(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The seconds that each command takes, on a clock that nothing else moves; "now" is the time."""
    seconds = dict.fromkeys(COMMANDS, 30.0) | {"now": 0.0, "stop_after": -1.0}
    monkeypatch.setattr("student.cost.time_budget.monotonic", lambda: seconds["now"])

    def timed(command: click.Command) -> None:
        act = command.callback
        assert act is not None

        def stopping(words: tuple[str, ...]) -> None:
            seconds["stop_after"] -= 1
            seconds["now"] += seconds[str(command.name)]
            if seconds["stop_after"] == -1:
                raise KeyboardInterrupt
            act(words)

        command.callback = stopping

    for name in COMMANDS:
        timed(group.commands[name])
    return seconds


@pytest.mark.parametrize("stopped", range(7))
def test_the_time_before_a_stop_counts(group: click.Group, clock: dict[str, float], stopped: int) -> None:
    """After a stop the whole budget was given away once more; the time between two calls is nobody's."""
    clock["stop_after"] = stopped
    CliRunner().invoke(group, ["distill", "photos", "--out", "work"], prog_name="cli.py")
    before_s = clock["now"]
    assert before_s == 30 * (stopped + 1)
    clock["now"] += 1e6
    output, asked = run(group, "photos", "--out", "work")
    first = output.partition("[1]")[0]
    used, left = f"earlier calls used {duration(before_s)} of 15 minutes", f"{duration(900 - before_s)} left"
    assert f"budget: {used}, {left}" in first
    whole_s = before_s + 30 * len(asked)
    assert f"this took {duration(whole_s)} of 15 minutes (--budget), {duration(before_s)} in earlier calls" in output
    if stopped <= 3:  # the first student is not yet begun
        used_s = before_s + 30 * 3  # three commands again
        assert asked[3][-4:-2] == ["--budget", str(round(student_seconds(900 - used_s) / 60, 1))]
        assert f"budget: {duration(used_s)} of 15 minutes used" in output


def test_a_call_that_finds_everything_finished_costs_nothing(group: click.Group, clock: dict[str, float]) -> None:
    """Each look at the result took some seconds from the budget; what is made anew after a loss still counts."""
    run(group, "photos", "--out", "work")
    whole_s, text = clock["now"], Path("work", BUDGET_FILE).read_text()
    for _ in range(2):
        output, _ = run(group, "photos", "--out", "work")
        assert f"this took {duration(whole_s)} of 15 minutes (--budget)\n" in output
        assert Path("work", BUDGET_FILE).read_text() == text
    for lost in ("teacher/summary.json", "student/summary.json", "without-teacher/summary.json", "report.html"):
        Path("work", lost).unlink()
        before_s = sum(json.loads(Path("work", BUDGET_FILE).read_text())["spent_s"].values())
        run(group, "photos", "--out", "work")
        assert sum(json.loads(Path("work", BUDGET_FILE).read_text())["spent_s"].values()) == before_s + 210, lost


def test_a_second_call_for_a_folder_is_refused_while_the_first_runs(group: click.Group) -> None:
    """Both would write budget.json: the last one's times won."""
    train = group.commands["train-teacher"]
    act, refused = train.callback, []
    assert act is not None

    def meanwhile(words: tuple[str, ...]) -> None:
        refused.append(CliRunner().invoke(group, ["distill", "photos", "--out", "work"], prog_name="cli.py").exception)
        act(words)

    train.callback = meanwhile
    assert run(group, "photos", "--out", "work")[1][-1][0] == "report", "the first goes on"
    assert isinstance(refused[0], RunError) and "work: another distill works here" in str(refused[0])
    train.callback = act
    assert [entry for entry in Path("work").iterdir() if "lock" in entry.name] == []
    assert run(group, "photos", "--out", "work"), "it may be used again"


@pytest.mark.parametrize("name", ["file", "file/below", "cache", "cache/inner", "photos", "photos/work"])
def test_a_wrong_place_is_refused_by_its_flag(group: click.Group, name: str) -> None:
    """budget.json in it was blamed, which nobody had typed."""
    Path("file").write_text("")
    Path("cache").mkdir()
    Path("cache", "zarr.json").write_text(json.dumps({"attributes": {"kind": CACHE_KIND}}))
    refused = CliRunner().invoke(group, ["distill", "photos", "--out", name])
    assert isinstance(refused.exception, ValueError) and not vars(group)["asked"]
    assert f"--out {name}: " in str(refused.exception) and BUDGET_FILE not in str(refused.exception)
    assert not Path("photos", "work").exists() and [entry.name for entry in Path("cache").iterdir()] == ["zarr.json"]


def test_a_wrong_source_leaves_no_folder(group: click.Group) -> None:
    """The folder is made once all that was typed has been looked at."""
    assert CliRunner().invoke(group, ["distill", "fotos", "--out", "work"]).exit_code
    assert not Path("work").exists()


def test_a_first_call_says_nothing_of_earlier_ones(group: click.Group, clock: dict[str, float]) -> None:
    """A line that says what did not happen is noise."""
    assert "earlier" not in run(group, "photos", "--out", "work")[0] and clock["now"] == 210


@pytest.mark.parametrize(("late", "seconds"), [("train-teacher", 900.0), ("train-student", 500.0), ("", 30.0)])
def test_what_took_longer_than_planned_is_named_at_the_end(
    group: click.Group, clock: dict[str, float], late: str, seconds: float
) -> None:
    """A plan is made before the first epoch and kept, as a run is trained in one way; so its error is said."""
    clock[late or "report"] = seconds
    last = run(group, "photos", "--out", "work")[0].partition("this took ")[2].partition("\n")[0]
    assert (f"as {late} took " in last and "planned " in last) if late else "more" not in last
    clock.update(dict.fromkeys(COMMANDS, 0.1))
    again = run(group, "photos", "--out", "work")[0]
    assert not late or f"as {late} took " in again, "the plan of the first call is what counts"
    assert "without a stop" not in again, "it found everything finished"


@pytest.mark.parametrize(("seconds", "late"), [(3.0, False), (200.0, True)])
def test_a_plan_that_is_longer_than_the_budget_is_the_reason_at_the_end(
    group: click.Group, clock: dict[str, float], seconds: float, late: bool
) -> None:
    """A command 35 seconds behind its plan was blamed for ten minutes that the plan had announced."""
    clock.update(dict.fromkeys(COMMANDS, 3.0) | {"train-teacher": seconds, "train-student": 40.0})
    output = run(group, "photos", "--out", "work", "--budget", "1")[0]
    planned = re.search(r"this takes about (.*?), --budget is", output)
    last = output.partition("this took ")[2].partition("\n")[0]
    assert planned and f"as the shortest plan takes {planned[1]}" in last
    assert ("and train-teacher took " in last) == late


@pytest.mark.parametrize("text", ["{", "[]", '{"spent_s": {"report": -1}}', '{"spent_s": {"report": "long"}}'])
def test_a_damaged_file_of_times_is_refused(group: click.Group, text: str) -> None:
    """It would plan with any number."""
    Path("work").mkdir()
    Path("work", BUDGET_FILE).write_text(text)
    refused = CliRunner().invoke(group, ["distill", "photos", "--out", "work"])
    assert isinstance(refused.exception, RunError) and BUDGET_FILE in str(refused.exception)
    assert "remove it" in str(refused.exception) and not vars(group)["asked"]


def test_what_an_inner_command_advises_is_a_flag_of_distill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--pretrained names the teacher's network: a student was advised to begin with it."""
    advised: dict[str, list[str]] = {}
    for name in ("train-teacher", "cache-teacher", "train-student"):

        def ask(name: str = name) -> None:
            advised[name] = advisable("--pretrained", "--lambda")

        group = click.Group(commands={name: click.Command(name, callback=ask)})
        with click.Context(distill, parent=click.Context(group), info_name="distill") as context:
            _Steps(context, TimeBudget(60.0, tmp_path)).run([name])
    assert advised == {"train-teacher": ["--pretrained"], "cache-teacher": [], "train-student": []}
