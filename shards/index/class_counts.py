"""Say how many samples each class of an index has."""

from collections.abc import Iterator

import numpy as np

from shards.index.shard_index import ShardIndex
from shards.text.escapes import one_line
from shards.text.figures import count

_MOST_LISTED = 20
_ENDS = 3
_UNEVEN = 1.5


def class_table(index: ShardIndex) -> Iterator[str]:
    """The classes with their samples, a line each: all of up to 20, else the largest and the smallest three."""
    num_C = np.bincount(index.label_N, minlength=index.num_classes)
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


def majority(index: ShardIndex) -> float:
    """The accuracy of always naming the largest class, percent."""
    return 100.0 * float(np.bincount(index.label_N).max()) / index.num_samples
