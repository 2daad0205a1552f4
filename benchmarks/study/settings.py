"""The settings of a study: one TOML file that names shards, teacher, views, student, caches, sweeps and questions.

Sweeps are run in the order of the file; a sweep makes its cache first. A question compares arms; an arm is a cell of a
sweep without its seed, such as "teaching/soft-l0.9-t1".
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from student.sweep.grid import Grid

Json = bool | int | float | str | list[Any] | dict[str, Any]


class Shards(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the photos become shards.

    Attributes:
        samples_per_shard: at most. photos_per_class: of the training photos, the first by name; 0 is all of them.
        classes: labels are numbered among "imagenet"'s 1,000, or as the "folders".
    """

    samples_per_shard: int
    photos_per_class: int = 0
    classes: str = "imagenet"


class PhotoSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further training set: of each class the photos after the first `skip` by name, `first` of them (0: all).

    Attributes:
        labels: whether the shards say which class a photo is of; without, their folders are not looked at.
    """

    skip: int = 0
    first: int = 0
    labels: bool = True
    samples_per_shard: int = 1000


class TeacherSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A teacher as `cache-teacher` takes it; `weights` is a file, "" the teacher's own; `args` build the network.

    `trained_on` names a set, or "train": the teacher is what `train-teacher` makes of it with the flags of `train`,
    beginning with the published weights of `name` unless they say a `model`.
    """

    name: str
    trained_on: str = ""
    train: dict[str, Json] = {}
    args: dict[str, Json] = {}
    weights: str = ""
    batch_size: int = 64


class Views(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The views of the study: a recipe by name, their size in pixels, and the fields that differ from the recipe."""

    recipe: str
    size: int
    fields: dict[str, Json] = {}


class Cache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cache: made by the teacher, or from the lossless cache named `source` without it.

    Attributes:
        views, views_per_unit: how many, and how many at once; a derived cache has its source's.
        teacher: a name of `teachers`, or "" for the study's own.
        record, num_bytes: what is kept of an answer, and the bytes per view (0: the kind's own).
        source: of a derived cache.
        answers: of a derived cache: to the "same" view, to the "next" view of the same photo, to the same view among
            the classes "present" in the photos, or the name of a cache of one view whose answer stands for every view.
        view: fields of a recipe of its own, its name among them as `recipe`; empty: the views of the study.
        photos: names of `sets` joined by "+"; "train" are the study's own training photos.
    """

    record: str
    views: int = 0
    views_per_unit: int = 1
    num_bytes: int = 0
    teacher: str = ""
    source: str = ""
    answers: str = "same"
    view: dict[str, Json] = {}
    photos: str = "train"


class SweepSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Students of one cache, or of several: the axes of `ablate`; without any, soft at λ = .5 and τ = 1, three seeds.

    Attributes:
        cache: its name; "a+b" learns from the mean of both teachers.
        online: the teacher in the loop instead of the cache, one student a seed. epochs: 0 are the student's own.
        student: fields of the student's recipe that differ in this sweep.
    """

    name: str
    cache: str
    distill: Sequence[str] = ("soft",)
    weights: Sequence[float] = (0.5,)
    temperatures: Sequence[float] = (1.0,)
    seeds: int = 3
    together: int = 1
    views_used: list[int] = []
    epochs: int = 0
    online: bool = False
    student: dict[str, Json] = {}

    @property
    def caches(self) -> list[str]:
        """The names of its caches."""
        return self.cache.split("+")

    @property
    def grid(self) -> Grid:
        """The cells; ValueError as `Grid`."""
        return Grid(
            weights=tuple(self.weights),
            temperatures=tuple(self.temperatures),
            distillations=tuple(self.distill),
            seeds=tuple(range(self.seeds)),
            views_used=tuple(self.views_used) or (None,),
        )


class Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a question compares: a label, and sweep and cell (without its seed) as "SWEEP/CELL"."""

    label: str
    at: str


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question: its arms, of which the first is what the others are compared with; `curves` draws their epochs."""

    name: str
    title: str
    arms: list[Arm]
    curves: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file; `student` holds fields of a student recipe, as `train-student --config` reads them."""

    shards: Shards
    teacher: TeacherSettings
    views: Views
    student: dict[str, Json]
    caches: dict[str, Cache]
    sweeps: list[SweepSettings]
    questions: list[Question]
    teachers: dict[str, TeacherSettings] = {}
    sets: dict[str, PhotoSet] = {}
    eval_every: int = 1

    def __post_init__(self) -> None:
        """Check that names point somewhere; ValueError naming the place, what it may be and what it is."""
        for name, teacher in {"": self.teacher, **self.teachers}.items():
            _known(f"teachers.{name}.trained_on", teacher.trained_on, ["", "train", *self.sets])
        for name, cache in self.caches.items():
            for photos in cache.photos.split("+"):
                _known(f"caches.{name}.photos", photos, ["train", *self.sets])
            _known(f"caches.{name}.teacher", cache.teacher, ["", *self.teachers])
            _known(f"caches.{name}.source", cache.source, ["", *self.caches])
            _known(f"caches.{name}.answers", cache.answers, ["same", "next", "present", *self.caches])
            if cache.source and self.caches[cache.source].record != "dense":
                raise ValueError(f"caches.{name}.source: expected a cache of record dense, got {cache.source}")
            if cache.answers != "same" and cache.record != "dense":
                raise ValueError(
                    f"caches.{name}.record: expected dense with answers {cache.answers}, got {cache.record}"
                )
            if bool(cache.source) == bool(cache.views):
                raise ValueError(
                    f"caches.{name}: expected views or a source, got views {cache.views}, {cache.source!r}"
                )
        for sweep in self.sweeps:
            for name in sweep.caches:
                _known(f"sweeps.{sweep.name}.cache", name, list(self.caches))
            if sweep.online and len(sweep.caches) > 1:
                raise ValueError(f"sweeps.{sweep.name}: online has one teacher, got {sweep.cache}")
            if sweep.online and len(sweep.grid.cells()) != sweep.seeds:
                raise ValueError(f"sweeps.{sweep.name}: online trains one cell a seed, got {len(sweep.grid.cells())}")
        cells = [f"{sweep.name}/{cell.name}" for sweep in self.sweeps for cell in sweep.grid.cells()]
        arms = sorted({cell.rpartition("-s")[0] for cell in cells})
        for question in self.questions:
            for arm in question.arms:
                _known(f"questions.{question.name}: {arm.label}", arm.at, arms)


def read_settings(path: Path) -> Settings:
    """The settings of a file; ValueError naming the file and what is wrong in it."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Settings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


def _known(where: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"{where}: expected one of {', '.join(repr(known) for known in names)}, got {name!r}")
