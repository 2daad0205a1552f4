"""What was chosen automatically for a run, a sweep or a cache stays when its surroundings change; a flag does not."""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch

from shards.data_defaults import SMALL_VIEW, DataDefaults
from shards.views.view_recipe import recipe_named
from student.commands.ablate import ablate
from student.commands.train_student import train_student
from student.commands.train_teacher import train_teacher
from student.learn.trainer import Trainer
from teacher_cache.commands.extending import extending
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.store.header import Header
from tests.command_line import done, run

VALUES: Mapping[str, tuple[Any, Any]] = {
    "view": (SMALL_VIEW, "deit"),
    "view_fields": ({"flip": 0.0}, {}),
    "num_views": (6, 18),
    "size": (32, 48),
    "model": ("test_resnet", "small_cnn"),
    "epochs": (2, 5),
}
"""What is chosen for a small set when a run begins, and what would be chosen later."""
THREADS = (3, 1)
"""Of torch that the workers leave when a run begins, and later, with more workers; the machine has enough for both."""
_NAMES = {field.name for field in dataclasses.fields(DataDefaults)} - {"reasons"}


def _defaults(number: int) -> DataDefaults:
    assert VALUES.keys() == _NAMES, "each automatic setting has two values here"
    values = {name: pair[number] for name, pair in VALUES.items()}
    return DataDefaults(**values, reasons=dict.fromkeys(VALUES, "chosen by a test"))


def _surroundings(patch: pytest.MonkeyPatch, number: int) -> None:
    """Choose the first values, or the later ones, another precision and another number of threads."""
    for module in ("teacher_cache.commands.view_flags", "student.recipe.choice"):
        patch.setattr(f"{module}.data_defaults", lambda *_, **__: _defaults(number))
    precision = ("fp32", "bf16")[number]
    patch.setattr("teacher_cache.network.arithmetic.default_precision", lambda *_: (precision, "chosen by a test"))
    patch.setattr("teacher_cache.network.device.network_threads", lambda *_, **__: THREADS[number])
    patch.setattr("teacher_cache.network.device.rank_cpus", lambda _: max(THREADS))


@pytest.fixture(scope="module", autouse=True)
def as_many_threads_as_a_machine_has() -> Iterator[None]:
    """Tests run with one, which hides who chooses how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(THREADS))
    yield
    torch.set_num_threads(before)


class Work:
    """Shards, and the commands that make a teacher, a cache, a run and a sweep of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = ["--shards", folder / "train"]
        val = ["--val-shards", folder / "train"]
        self.teacher = ["train-teacher", *data, *val, "--model", "test_resnet", "--out", folder / "teacher"]
        self.cache = ["cache-teacher", *data, "--teacher-weights", folder / "teacher", "--cache", folder / "t.zarr"]
        cached = ["--cache", folder / "t.zarr"]
        self.student = ["train-student", *data, *val, *cached, "--out", folder / "run"]
        self.sweep = ["ablate", *data, *val, *cached, "--lambda", "0.5", "--tau", "2", "--distill", "soft"]
        self.sweep += ["--out", folder / "sweep"]

    def runs(self) -> list[Path]:
        """The directories of all students."""
        return [self.folder / "teacher", self.folder / "run", *(self.folder / "sweep" / "cells").iterdir()]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """Everything is begun as in the first column, then the cache grows and everything else changes."""
    folder = tmp_path_factory.mktemp("kept")
    draws = np.random.default_rng(0)
    for n in range(48):
        photo = folder / "photos" / ("cat", "dog")[n % 2] / f"{n}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(photo), draws.integers(0, 256, (40, 44, 3), dtype=np.uint8))
    work = Work(folder)
    with pytest.MonkeyPatch.context() as patch:
        _surroundings(patch, 0)
        done("make-shards", folder / "photos", folder / "train")
        for words in (work.teacher, work.cache, work.student, work.sweep):
            done(*words, "--workers", "0")
        _surroundings(patch, 1)
        done(*work.cache, "--workers", "0", "--views", "12")
        yield work


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher", "cache", "student", "sweep"])
def test_a_finished_one_is_finished_whatever_would_be_chosen_now(work: Work, name: str) -> None:
    """The same line after the cache has grown, on a machine with another default."""
    assert "already finished" in done(*getattr(work, name), "--workers", "0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher", "student", "sweep"])
def test_an_unfinished_one_goes_on_whatever_would_be_chosen_now(
    work: Work, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with the numbers of views, epochs and threads, the size and the model with which it began."""
    seen = _threads_of_steps(monkeypatch)
    for path in work.runs():
        (path / "summary.json").unlink()
        last = max((path / "checkpoints").glob("step-*.json"))
        last.unlink()
    said = done(*getattr(work, name), "--workers", "0")
    assert "resumed after step" in said
    assert seen == {THREADS[0]} and "the run was begun with" not in said
    assert name == "teacher" or "6 views" in said, "the views that are left aside are named"
    for words in (work.teacher, work.student, work.sweep):
        done(*words, "--workers", "0")
    for path in work.runs():
        config = json.loads((path / "config.json").read_text())
        recipe = config["recipe"]
        assert (recipe["model"], recipe["epochs"], recipe["image_size"]) == ("test_resnet", 2, 32)
        assert (config["train"]["precision"], config["data"]["num_views"]) in (("fp32", 6), ("fp32", None))
        assert config["train"]["threads"] == THREADS[0]


def _threads_of_steps(patch: pytest.MonkeyPatch) -> set[int]:
    """The numbers of threads in which steps are computed from now on."""
    seen: set[int] = set()
    feed = Trainer.feed

    def noted(self: Trainer, *batch: Any, **where: Any) -> None:
        seen.add(torch.get_num_threads())
        feed(self, *batch, **where)

    patch.setattr(Trainer, "feed", noted)
    return seen


@pytest.mark.slow
def test_a_machine_with_fewer_cpus_than_the_run_began_with_is_said(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in fewer parts round otherwise; back on the larger machine it goes on as it began."""
    run_folder = tmp_path / "run"
    shutil.copytree(work.folder / "run", run_folder)
    (run_folder / "summary.json").unlink()
    max((run_folder / "checkpoints").glob("step-*.json")).unlink()
    monkeypatch.setattr("teacher_cache.network.device.rank_cpus", lambda _: 2)
    seen = _threads_of_steps(monkeypatch)
    said = done(*work.student[:-1], run_folder, "--workers", "0")
    assert seen == {2} and f"torch computes in 2 threads, the run was begun with {THREADS[0]}: last bits" in said
    assert json.loads((run_folder / "config.json").read_text())["train"]["threads"] == THREADS[0]


OTHER: Mapping[str, list[str]] = {
    "--model": ["resnet10t"],
    "--pretrained": ["resnet10t.c3_in1k"],
    "--recipe": ["deit_hard"],
    "--epochs": ["12"],
    "--batch-size": ["32"],
    "--size": ["48"],
    "--set": ["lr=0.3"],
    "--distill": ["soft"],
    "--lambda": ["0.25"],
    "--tau": ["7"],
    "--views-used": ["3"],
    "--init-weights": ["weights.safetensors"],
}
"""Flags that decide other settings as well, with another value than the run has."""
_OF_A_GRID = {"--distill", "--lambda", "--tau", "--views-used"}


def _cases() -> Iterator[Any]:
    commands = {"student": train_student, "teacher": train_teacher, "sweep": ablate}
    for name, command in commands.items():
        for flag in (param.opts[0] for param in command.params if param.opts[0] in OTHER):
            if not (name == "sweep" and flag in _OF_A_GRID):
                yield pytest.param(name, flag, id=f"{name} {flag}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flag"), list(_cases()))
def test_another_flag_is_refused_by_its_own_name(work: Work, name: str, flag: str) -> None:
    """Another number of epochs was called a wrong warm-up."""
    words, value = getattr(work, name), list(OTHER[flag])
    if name == "teacher" and flag in ("--pretrained", "--model"):
        words = [word for word in words if word not in ("--model", "test_resnet")]
    if flag == "--init-weights":
        value = [str(work.folder / "run" / "weights.safetensors")]
    refused = run(*words, "--workers", "0", flag, *value)
    assert refused.exit_code == 1, refused.output
    assert f"error: {flag} {value[0]}: " in refused.output and "another --out" in refused.output


def _commands(said: str) -> list[list[str]]:
    """The `cache-teacher` commands in what was printed, as a shell reads them."""
    lines = [line.strip() for line in said.splitlines() if " cache-teacher " in line]
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--view-recipe", "deit", "--size", "40", "--view-seed", "3", "--view-set", "flip=0.25", "--record", "dense"],
        [
            "--view-recipe",
            "plain",
            "--view-set",
            "block_size=4",
            "--bytes",
            "48",
            "--record",
            "lowrank",
        ],
    ],
    ids=["automatic", "deit", "plain"],
)
def test_the_command_for_more_views_is_whole(work: Work, flags: list[str], tmp_path: Path) -> None:
    """It is pasted as it is printed, and extends the cache."""
    cache = tmp_path / "t.zarr"
    (tmp_path / "t").symlink_to(work.folder / "teacher")
    words = [str(word).replace(str(work.folder / "t.zarr"), str(cache)) for word in work.cache]
    done(*words, *flags, "--views", "6", "--workers", "0")
    one = ["train-student", *work.student[1:5], "--cache", cache, "--model", "test_resnet", "--workers", "0"]
    said = done(*one, "--epochs", "30", "--out", tmp_path / "run")
    commands = _commands(said)
    assert commands, said
    assert "extended" in done(*commands[0])


@pytest.mark.parametrize("beside", ["nothing", "the cache itself", "an empty folder", "a damaged file", "a file"])
def test_the_command_for_more_views_is_told_whatever_lies_beside_the_cache(beside: str, tmp_path: Path) -> None:
    cache = tmp_path / ("t" if beside == "the cache itself" else "t.zarr")
    cache.mkdir()
    if beside == "a file":
        (tmp_path / "t").write_bytes(b"")
    elif beside in ("an empty folder", "a damaged file"):
        (tmp_path / "t").mkdir()
    if beside == "a damaged file":
        (tmp_path / "t" / "weights.safetensors").write_bytes(b"damaged")
    header = SimpleNamespace(
        spec=SimpleNamespace(
            teacher=SimpleNamespace(name="resnet18"), recipe=recipe_named("deit"), record=RecordFormat.chosen("auto", 5)
        ),
        rows_S=np.array([1_000_000]),
    )
    words = extending(str(cache), cast(Header, header), "S", 12)
    start = ["cache-teacher", "--shards", "S", "--teacher", "resnet18", "--teacher-weights", "WEIGHTS"]
    assert words[:7] == start and words[-4:] == ["--views", 12, "--cache", str(cache)]


def test_the_command_for_more_views_is_there_for_a_recipe_of_any_name() -> None:
    """A cache made from Python may call its recipe as it likes: the command that used it ended in an error."""
    recipe = dataclasses.replace(recipe_named("deit", size=64), name="of my own")
    spec = SimpleNamespace(
        recipe=recipe, record=RecordFormat.chosen("auto", 10), teacher=SimpleNamespace(name="resnet18.a1_in1k")
    )
    header: Any = SimpleNamespace(spec=spec, rows_S=np.array([100]))
    words = extending("s3://bucket/t.zarr", header, "shards", 12)
    assert words[1:7] == ["--shards", "shards", "--teacher", "resnet18.a1_in1k", "--size", 64]


@pytest.mark.slow
def test_what_has_no_effect_on_what_exists_is_said(work: Work) -> None:
    """A time budget chooses the epochs of a new run; a cache never loses views."""
    assert "--budget: " in done(*work.student, "--workers", "0", "--budget", "3")
    said = done(*work.cache, "--workers", "0", "--views", "6")
    assert "--views 6: this cache has 12 views and keeps them" in said and "another --cache" in said


def test_the_values_differ() -> None:
    """Otherwise the tests above show nothing."""
    assert all(first != later for first, later in VALUES.values())
