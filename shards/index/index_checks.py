"""Check once, when an index is opened, that its arrays fit each other, whichever program wrote it.

Checksums say that a file is as it was written; these checks say that what was written makes sense: places inside their
shards, labels below the number of classes, keys that end where the next begins.

S shards, N samples of all shards.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.documents import open_regular
from shards.errors import ShardError, advisable
from shards.index.index_file import WRITE_ANEW, IndexMeta
from shards.index.sources import base_name, is_remote
from shards.text.figures import count

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex

SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""The image formats that are taken; the index keeps the place in this tuple."""
UNLABELLED = -1
"""The label of a sample that has none."""

_BLOCK = 512
"""The first header of a tar, in bytes; an empty one begins with its end, zeros."""

Arrays = Mapping[str, NDArray[Any]]


def require_sound(meta: IndexMeta, arrays: Arrays, path: Path) -> None:
    """Raise ShardError naming file, array, expected and got, unless meta and arrays are those of an index."""
    num_shards, num_samples = len(meta.names), len(arrays["label_N"])
    lengths = {"S": num_shards, "S+1": num_shards + 1, "N": num_samples, "S32": 32 * num_shards}
    shapes = {name: "N" for name in arrays if name.endswith("_N")} | {
        "tar_bytes_S": "S", "first_S": "S+1", "key_first_S": "S+1", "shard_digest_S32": "S32"
    }  # fmt: skip
    for name, shape in shapes.items():
        _require(path, name, f"{lengths[shape]} values", lengths[shape] == len(arrays[name]), f"{len(arrays[name])}")
    _require(path, "names", "at least one shard", num_shards > 0, "none")
    _require_names(meta, path)
    _require_steps(path, "first_S", arrays["first_S"], num_samples)
    _require_steps(path, "key_first_S", arrays["key_first_S"], len(arrays["key_bytes"]))
    _require_labels(meta, arrays["label_N"], path)
    _require_range(path, "suffix_N", arrays["suffix_N"], 0, len(SUFFIXES))
    _require_range(path, "tar_bytes_S", arrays["tar_bytes_S"], 1, 2**50)
    _require_range(path, "size_N", arrays["size_N"], 1, 2**50)
    _require_range(path, "offset_N", arrays["offset_N"], 0, 2**50)
    _require_inside(path, arrays)


def without_empty(urls: Sequence[str], empty_shards: Sequence[str], path: Path) -> list[str]:
    """Leave out the shards that the index passes over as empty.

    Errors:
        ShardError when a local one is no longer empty: it was downloaded again, and the index lacks its samples.
    """
    empty = frozenset(empty_shards)
    for url in urls if empty else ():
        if base_name(url) in empty and not is_remote(url):
            with open_regular(Path(url)) as file:
                if any(file.read(_BLOCK)):
                    raise ShardError(
                        f"{url}: expected an empty shard, as in {path}, got one with members; write the index anew: "
                        "check-shards --overwrite --skip-empty"
                    )
    return [url for url in urls if base_name(url) not in empty]


def require_classes(where: object, names: Sequence[str], num_classes: int) -> None:
    """Refuse shards of one class, ShardError: a network that is always right has nothing to learn.

    No classes at all are those of unlabelled images, which a teacher will name.
    """
    if num_classes == 1:
        one = f"one class ({names[0]})" if names else "one class"
        name_all = "; where others are missing on purpose, name all of them with --class-names"
        raise ShardError(
            f"{where}: expected at least two classes, got {one}: there is nothing to learn. Give the folder that holds "
            f"one folder per class{name_all if advisable('--class-names') else ''}"
        )


def require_labels(index: "ShardIndex", where: object, what: str) -> None:
    """Raise ShardError where samples lack the label that something needs.

    Args:
        where: what the message calls the shards. what: needs the labels, such as "evaluation".
    """
    if index.num_unlabelled:
        some = "none" if index.num_unlabelled == index.num_samples else f"{index.num_unlabelled} without one"
        raise ShardError(
            f"{where}: {what} needs the label of every sample, expected {count(index.num_samples, 'label')}, got "
            f"{some}; give shards of labelled images"
        )


def _require(path: Path, name: str, expected: str, holds: bool, got: str) -> None:
    if not holds:
        raise ShardError(
            f"{path}: {name}: expected {expected}, got {got}; the index is damaged or was not made by check-shards: "
            f"{WRITE_ANEW}"
        )


def _require_names(meta: IndexMeta, path: Path) -> None:
    for name in meta.names:
        plain = name and name not in (".", "..") and "/" not in name and "\0" not in name
        _require(path, "names", "base names of shards", bool(plain), repr(name[:80]))
    _require(path, "names", "each once", len(set(meta.names)) == len(meta.names), "some twice")
    known = len(meta.class_names)
    _require(path, "class_names", f"none or {meta.num_classes}", known in (0, meta.num_classes), f"{known}")
    places, shards = len(meta.places), len(meta.names)
    _require(path, "places", f"none or {shards}", places in (0, shards), f"{places}")


def _require_labels(meta: IndexMeta, label_N: NDArray[Any], path: Path) -> None:
    """Labels are below the number of classes; as many samples as the head says have none, which is UNLABELLED."""
    _require_range(path, "label_N", label_N, UNLABELLED if meta.num_unlabelled else 0, meta.num_classes)
    missing = int((label_N < 0).sum())
    _require(path, "num_unlabelled", f"{missing}", meta.num_unlabelled == missing, f"{meta.num_unlabelled}")


def _require_steps(path: Path, name: str, values: NDArray[Any], last: int) -> None:
    ends = bool(values[0] == 0 and values[-1] == last)
    _require(path, name, f"from 0 to {last}", ends, f"from {values[0]} to {values[-1]}")
    _require(path, name, "values that rise", bool((values[1:] >= values[:-1]).all()), "some that fall")


def _require_range(path: Path, name: str, values: NDArray[Any], low: int, high: int) -> None:
    if len(values):
        least, most = int(values.min()), int(values.max())
        _require(path, name, f"values in [{low}, {high})", low <= least and most < high, f"{least} to {most}")


def _require_inside(path: Path, arrays: Arrays) -> None:
    """Images end before their shard does; keys end in order, the last of a shard where the next shard's begin."""
    first_S, ends_N = arrays["first_S"], arrays["offset_N"] + arrays["size_N"]
    rows_S = np.diff(first_S)
    full_S = np.flatnonzero(rows_S)
    if not len(full_S):
        return
    starts = first_S[full_S]
    ends = np.maximum.reduceat(ends_N, starts)
    inside = bool((ends <= arrays["tar_bytes_S"][full_S]).all())
    _require(path, "offset_N", "images inside their shards", inside, "one that ends behind its shard")
    key_end_N = arrays["key_end_N"]
    falls_N = np.flatnonzero(key_end_N[1:] <= key_end_N[:-1]) + 1
    inner = np.setdiff1d(falls_N, starts, assume_unique=True)
    _require(path, "key_end_N", "keys that end in order", not len(inner), f"disorder at sample {inner[:1]}")
    lasts = key_end_N[first_S[full_S + 1] - 1]
    lengths = np.diff(arrays["key_first_S"])[full_S]
    _require(path, "key_end_N", "keys that fill their shard's part", bool((lasts == lengths).all()), "others")
