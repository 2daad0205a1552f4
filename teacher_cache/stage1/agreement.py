"""Check that shards, views and teacher fit each other: before the first forward, and by how often they agree after it.

Importing this module does not import torch: commands call the checks before anything heavy.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.index.classes import Classes, ClassMatch, classes_of, match_classes
from shards.index.index_checks import require_classes
from shards.index.shard_index import ShardIndex
from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe
from teacher_cache.store.header import require_whole_units

if TYPE_CHECKING:
    from teacher_cache.network.teacher import Teacher
    from teacher_cache.store.spec import TeacherSpec

_SUBSET = (
    "if they are among the teacher's, folders named as it names them: make-shards --class-names FILE, all its classes "
    "one a line in its order (ImageNet: the 1,000 wnids, sorted; docs/own-data.md)"
)
_OTHER_NAMES = (
    "if they are the teacher's under other names: --teacher-classes FILE, all its classes one a line in its order, as "
    "the shards call them"
)
_NAME_TEACHER = "--teacher-classes FILE (or imagenet-1k) gives those of the teacher"
_NAME_SHARDS = "check-shards --class-names FILE gives those of the shards"

_LEAST = 0.05
"""Views of DeiT's recipe that a teacher of the right classes names at least, however heavily they are augmented."""
_TIMES_CHANCE = 1.25
_VIEWS_OF_CLASS, _FEWEST_VIEWS = 128, 16
"""Views of each class that are kept to see which class they are answered as; with fewer nothing is said of a class."""
_SIGMAS = 2.5
_FEW_CLASSES = 0.4  # chance of a first class being the label, above which agreement says nothing


def match_teacher(
    index: ShardIndex, class_lists: Sequence[Sequence[str]], num_classes: int, teacher: str
) -> ClassMatch:
    """Find the classes of the shards among those of a teacher; ValueError, with the ways to a teacher, where it fails.

    Shards without classes of their own take those of the teacher.

    Args:
        class_lists: the names of the teacher's classes in its order, in each naming that is known; () where none is.
        num_classes: of the teacher. teacher: its name, for messages.
    """
    if not index.num_classes:
        return ClassMatch()
    here = classes_of(index)
    matches = [match_classes(here, Classes("the teacher", names, num_classes)) for names in class_lists or ((),)]
    match = next((match for match in matches if not match.difference), matches[0])
    if not match.difference:
        return match
    named, as_many = bool(index.class_names and class_lists), index.num_classes == num_classes
    counts = "" if as_many else f" answers in {count(num_classes, 'class')}, the shards have {index.num_classes}"
    why = f": {match.difference}" if named else ""
    ways = [
        "fine-tune one on these classes: train-teacher --pretrained NAME, then --teacher-weights",
        _OTHER_NAMES if named and index.num_classes <= num_classes else _SUBSET,
        f"take another teacher of exactly these {count(index.num_classes, 'class')}",
    ]
    raise ValueError(f"teacher: {teacher}{counts}{why}. Three ways:\n- " + "\n- ".join(ways))


class FittedTeacher(NamedTuple):
    """A teacher that answers for the classes of the shards, and what to say of it; "" where there is nothing to say."""

    teacher: "Teacher"
    words: str


def fit_classes(teacher: "Teacher", index: ShardIndex, existing: "TeacherSpec | None" = None) -> FittedTeacher:
    """Let a teacher answer for the classes of the shards in their order, found by name.

    Args:
        existing: as an existing cache has it: a teacher that has no class names answers in the same order.

    Errors:
        ValueError where the classes are not those of the shards.
    """
    if existing is not None and existing.class_order and not (index.class_names and teacher.class_lists):
        if teacher.spec.class_order == existing.class_order:
            return FittedTeacher(teacher, "")
        return FittedTeacher(teacher.in_order(existing.class_order), "classes: in the order that the cache has")
    match = match_teacher(index, teacher.class_lists, teacher.num_classes, teacher.spec.name)
    if match.order:
        return FittedTeacher(
            teacher.in_order(match.order),
            f"classes: {match.words}; the teacher's answers are put in the order of the shards",
        )
    missing = _NAME_SHARDS if not index.class_names else _NAME_TEACHER
    return FittedTeacher(teacher, f"classes: {match.words}; {missing}" if match.words else "")


def require_fitted(teacher: "Teacher", index: ShardIndex) -> bool:
    """Tell whether names prove that a teacher answers for the classes of the shards; ValueError for other classes."""
    match = match_teacher(index, teacher.class_lists, teacher.num_classes, teacher.spec.name)
    if match.order:
        raise ValueError(f"teacher: {teacher.spec.name}: {match.words}; give fit_classes(teacher, index).teacher")
    return match.proven


def answer_names(teacher: "Teacher", index: ShardIndex) -> tuple[str, ...]:
    """Return the class names of a cache's answers: proven on both sides, or the teacher's where shards have none."""
    if not index.num_classes:
        return tuple(teacher.class_lists[0]) if teacher.class_lists else ()
    return index.class_names if require_fitted(teacher, index) else ()


def require_known_labels(index: ShardIndex, num_classes: int, teacher: str) -> None:
    """Refuse labels that are merely said to be of so many classes, ValueError: 0 … 7 of 1,000 are ImageNet's first."""
    used = np.unique(index.label_N[index.label_N >= 0])
    if len(used) and not index.class_names and len(used) == used[-1] + 1 and 2 * len(used) <= num_classes:
        raise ValueError(
            f"shards: their labels are 0 to {used[-1]} of {count(num_classes, 'class')} without names: nothing says "
            f"that they are the first classes of {teacher}. Two ways:\n"
            "- fine-tune a teacher on these classes: train-teacher on shards indexed with their own number of classes\n"
            f"- {_SUBSET}"
        )


def require_new_cache(index: ShardIndex, recipe: ViewRecipe, num_views: int) -> None:
    """Refuse views of which no cache of these shards can be made.

    Errors:
        ShardError for shards of one class; ValueError for blocks that no shard fills and for parts of a unit.
    """
    require_classes(index.path or "shards", index.class_names, index.num_classes)
    largest = int(max(index.rows_S))
    if largest < recipe.block_size:
        raise ValueError(
            f"--set block_size={recipe.block_size}: no shard holds so many samples (the largest has {largest}), so no "
            f"student could be trained from the cache; give at most {largest}, or leave it out"
        )
    require_whole_units(recipe, num_views, index.num_shards)


class Renumbered(NamedTuple):
    """A class of the shards that the teacher answers as another class, and the share of its views so answered."""

    label: int
    answered_as: int
    share: float


class ClassAgreement:
    """Count how often the teacher's first class is the label, class by class, on a few views of each.

    The mean over classes cannot tell a weak teacher from one that knows 2 of 11 classes by the right number.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._seen_C = np.zeros(num_classes, np.int64)
        self._codes: list[NDArray[np.int64]] = []  # label · C + first class

    def add(self, label_N: NDArray[np.int64], first_N: NDArray[np.int64]) -> None:
        """Count views by their labels and the teacher's first classes, up to `_VIEWS_OF_CLASS` of each class."""
        by_label_N = np.argsort(label_N, kind="stable")
        label_N, first_N = label_N[by_label_N], first_N[by_label_N]
        labels, starts, counts = np.unique(label_N, return_index=True, return_counts=True)
        rank_N = np.arange(len(label_N)) - np.repeat(starts, counts)
        kept_N = self._seen_C[label_N] + rank_N < _VIEWS_OF_CLASS
        self._seen_C[labels] += counts
        self._codes.append(label_N[kept_N] * self._num_classes + first_N[kept_N])

    def renumbered(self) -> tuple[Renumbered, ...]:
        """List the classes that the teacher seems to know by another number; () where fewer than two do.

        Such a class is answered as one other class, significantly oftener than as itself; no other one is answered as
        that one; and that one is not answered as itself. A weak teacher answers several classes as one.
        """
        codes, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *self._codes]), return_counts=True)
        label_M, first_M = codes // self._num_classes, codes % self._num_classes
        own_C = np.zeros(self._num_classes, np.int64)
        own_C[label_M[label_M == first_M]] = counts[label_M == first_M]
        other = label_M != first_M
        label_M, first_M, counts_M = label_M[other], first_M[other], counts[other]
        order_M = np.lexsort((counts_M, label_M))
        last_M = np.append(np.diff(label_M[order_M]) > 0, True)[: len(order_M)]
        label_M, first_M, counts_M = (values[order_M][last_M] for values in (label_M, first_M, counts_M))
        most_C = np.zeros(self._num_classes, np.int64)
        most_C[label_M] = counts_M
        enough_M = np.minimum(self._seen_C, _VIEWS_OF_CLASS)[label_M] >= _FEWEST_VIEWS
        own_M = own_C[label_M]
        clear_M = enough_M & (counts_M - own_M >= _SIGMAS * np.sqrt(counts_M + own_M))
        taken_C = np.bincount(first_M[clear_M], minlength=self._num_classes)
        moved_M = clear_M & (taken_C[first_M] == 1) & (most_C[first_M] >= own_C[first_M])
        views_M = np.minimum(self._seen_C, _VIEWS_OF_CLASS)[label_M]
        moved = zip(label_M[moved_M], first_M[moved_M], (counts_M / views_M)[moved_M], strict=True)
        renumbered = tuple(Renumbered(int(label), int(first), float(share)) for label, first, share in moved)
        return renumbered if len(renumbered) > 1 else ()


def mean_agreement(shares: Sequence[float]) -> float:
    """Average over units the share of views that agree; NaN when no unit has any that count."""
    known = [share for share in shares if not math.isnan(share)]
    return sum(known) / len(known) if known else math.nan


def disagrees(agreement: float, num_classes: int) -> bool:
    """Tell whether so small an agreement means that the teacher does not know these classes, or numbers them otherwise.

    A teacher of a thousand classes on eight of one's own, numbered 0 to 7, agrees with .3 % of the labels, three times
    chance; one of eight classes that knows them a little with 20 %, not twice chance.
    """
    chance = 1 / num_classes
    return agreement < max(_LEAST, _TIMES_CHANCE * chance) and chance < _FEW_CLASSES
