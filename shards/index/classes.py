"""Count the samples of each class of an index, and find its classes among those of a teacher or another set.

Names are compared as bytes: "Cat" is not "cat", and an é in one piece is not an e with an accent behind it. Messages
show such differences.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shards.index.shard_index import ShardIndex
from shards.names import short
from shards.text.escapes import one_line
from shards.text.figures import count

_MOST_LISTED = 20
_ENDS = 3
_UNEVEN = 1.5


def samples_words(index: ShardIndex) -> str:
    """Count samples and classes in words: "90 samples of 3 classes, 30 of them without a label,"."""
    samples, classes = count(index.num_samples, "sample"), count(index.num_classes, "class")
    if not index.num_unlabelled:
        return f"{samples} of {classes}"
    if index.num_unlabelled == index.num_samples:
        return f"{samples} without labels" + (f", of {classes}," if index.num_classes else "")
    return f"{samples} of {classes}, {index.num_unlabelled} of them without a label,"


def class_table(index: ShardIndex) -> Iterator[str]:
    """List the classes with their samples, a line each: all of up to 20, else the largest and the smallest three.

    Nothing where no sample has a label.
    """
    if index.num_unlabelled == index.num_samples:
        return
    num_C = np.bincount(index.label_N[index.label_N >= 0], minlength=index.num_classes)
    names = [one_line(name) for name in index.class_names] or [f"class {c}" for c in range(index.num_classes)]
    present = np.flatnonzero(num_C)
    largest_first = present[np.argsort(-num_C[present], kind="stable")]
    listed = list(range(index.num_classes))
    if index.num_classes > _MOST_LISTED:
        listed = [*largest_first[:_ENDS], *largest_first[max(_ENDS, len(present) - _ENDS) :]]
    width = max(len(names[c]) for c in listed)
    for place, c in enumerate(listed):
        if place == _ENDS and index.num_classes > _MOST_LISTED:
            yield f"  … {count(len(present) - len(listed), 'class')} between"
        yield f"  {names[c]:{width}}  {num_C[c]:>9,}"
    most, least = int(num_C.max()), int(num_C[present].min())
    if most >= _UNEVEN * least:
        yield f"  the largest class has {most / least:.1f} times as many samples as the smallest"


class Classes(NamedTuple):
    """Classes that are compared: of an index, a teacher or a file of weights.

    Attributes:
        whose: what messages call the side: "the shards".
        names: in the order of the labels; () where nobody knows them.
        num_classes: C.
    """

    whose: str
    names: Sequence[str]
    num_classes: int


def classes_of(index: ShardIndex, whose: str = "the shards") -> Classes:
    """The classes of an index."""
    return Classes(whose, index.class_names, index.num_classes)


class ClassMatch(NamedTuple):
    """The result of a comparison: each class of one side as a class of the other.

    Attributes:
        order: for each class here its number there; () where the numbers are the same.
        proven: whether both sides have names, so that nothing is assumed.
        words: one line that says what is assumed, or what has to be reordered; "" for the same names in one order.
        difference: why the classes do not fit each other; "" where they do.
    """

    order: tuple[int, ...] = ()
    proven: bool = False
    words: str = ""
    difference: str = ""


def match_classes(here: Classes, other: Classes) -> ClassMatch:
    """Find each class of one side among those of the other by its name; without names, by its number.

    Both sides may have the same classes, in one order or in two, or those here may be some of those there.
    """
    if not (here.names and other.names):
        return _by_number(here, other)
    if list(here.names) == list(other.names):
        return ClassMatch(proven=True)
    place = {name: number for number, name in enumerate(other.names)}
    if len(place) < len(other.names) or len(set(here.names)) < len(here.names):
        return ClassMatch(difference=f"{_first_difference(here, other)}; a name stands there twice")
    common = sum(name in place for name in here.names)
    if common < len(here.names):
        return ClassMatch(
            difference=f"{_first_difference(here, other)}; {common} of {count(len(here.names), 'name')} are in both"
        )
    if len(here.names) == len(other.names):
        words = f"the same {count(len(place), 'class')} in another order: {_first_difference(here, other)}"
    else:
        words = f"the {count(len(here.names), 'class')} of {here.whose} are among the {len(place):,} of {other.whose}"
    return ClassMatch(order=tuple(place[name] for name in here.names), proven=True, words=words)


def _by_number(here: Classes, other: Classes) -> ClassMatch:
    if here.num_classes != other.num_classes:
        classes = count(here.num_classes, "class")
        return ClassMatch(difference=f"{classes} in {here.whose}, {other.num_classes:,} in {other.whose}")
    nameless = " and in ".join(side.whose for side in (here, other) if not side.names)
    return ClassMatch(words=f"no class names in {nameless}: nothing shows that both sides number the classes alike")


def _first_difference(ours: Classes, theirs: Classes) -> str:
    """The first class that has another name there, both names as they can be told apart."""
    if len(ours.names) != len(theirs.names):
        number, name = next(((n, name) for n, name in enumerate(ours.names) if name not in theirs.names), (0, ""))
        twin = next((other for other in theirs.names if _folded(other) == _folded(name)), "")
        like = f" ({_quoted(twin, name)} there{_kind_of_twin(name, twin)})" if twin else ""
        classes = count(len(theirs.names), "class")
        return (
            f"class {number} of {ours.whose}, {_quoted(name, twin)}, is none of the {classes} of {theirs.whose}{like}"
        )
    number = next(n for n, pair in enumerate(zip(ours.names, theirs.names, strict=True)) if pair[0] != pair[1])
    name, other = ours.names[number], theirs.names[number]
    return (
        f"class {number} is {_quoted(name, other)} in {ours.whose}, {_quoted(other, name)} in {theirs.whose}"
        f"{_kind_of_twin(name, other)}"
    )


def _quoted(name: str, other: str) -> str:
    """A name in quotes; in ASCII where it would look like the other one."""
    alike = name != other and unicodedata.normalize("NFKC", name) == unicodedata.normalize("NFKC", other)
    return short(ascii(name) if alike else f"'{one_line(name)}'")


def _kind_of_twin(name: str, other: str) -> str:
    """Name the difference of two names that are nearly the same; "" for others."""
    if name == other or _folded(name) != _folded(other):
        return ""
    return " (lower and upper case)" if name.casefold() == other.casefold() else " (two Unicode forms of the same name)"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def majority(index: ShardIndex) -> float:
    """Compute the accuracy of always naming the largest class, percent; NaN where no sample has a label."""
    label_N = index.label_N[index.label_N >= 0]
    return 100.0 * float(np.bincount(label_N).max()) / len(label_N) if len(label_N) else math.nan
