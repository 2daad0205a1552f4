"""Join the indexes of several sets of shards into one, such as labelled and unlabelled images.

A sample is known by its key, a shard by its name: views are drawn from both. Where two sets have a name in common, that
of the later set gets the set's number: `shard-000000.tar` of the second set is `shard-000000~2.tar`. Other names stay,
and so does the fingerprint of sets without common names.

S shards, N samples of all shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.index.shard_index import ARRAYS, ShardIndex
from shards.text.figures import count


def joined(parts: Sequence[ShardIndex], wheres: Sequence[str]) -> ShardIndex:
    """Return one index of several sets, in their order; its `join_words` say what changed.

    The classes are those of the sets that have any, found by name where they differ.

    Args:
        wheres: how the user calls each set.

    Errors:
        ShardError for sets whose classes differ and have no names, for sets of other pixels, and for an image that
        two of them have under one key.
    """
    _require_same_pixels(parts, wheres)
    class_names, num_classes = _classes(parts, wheres)
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS}
    keys = [list(_keys_of(part)) for part in parts]
    _require_other_images(parts, keys, wheres)
    unique_keys = _unique(keys, "")
    arrays |= _key_arrays(unique_keys, np.concatenate([part.rows_S for part in parts]))
    arrays["label_N"] = np.concatenate([_labels(part, class_names) for part in parts])
    starts = np.cumsum([0] + [part.num_samples for part in parts])
    steps = [part.first_S[:-1] + start for part, start in zip(parts, starts, strict=False)]
    arrays["first_S"] = np.concatenate([*steps, starts[-1:]])
    names = _unique([part.names for part in parts], ".tar")
    renamed = (
        ("shard", [name for part in parts for name in part.names], names),
        ("image", [key for part in keys for key in part], unique_keys),
    )
    return ShardIndex(
        urls=tuple(url for part in parts for url in part.urls),
        names=tuple(names),
        class_names=class_names,
        num_classes=num_classes,
        compact=parts[0].compact if all(part.compact == parts[0].compact for part in parts) else None,
        pixels=parts[0].pixels,
        num_skipped=sum(part.num_skipped for part in parts),
        join_words="; ".join([*_class_words(class_names, parts, wheres), *_name_words(renamed)]),
        **arrays,
    )


def _classes(parts: Sequence[ShardIndex], wheres: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The names and the number of all classes.

    They are those of the first set that has them all; where none has, in the order of `make-shards`: by name. Where a
    set has no names it is joined by number, and the names are the first set's.
    """
    named = [(part, where) for part, where in zip(parts, wheres, strict=True) if part.num_classes]
    if not named:
        return (), 0
    every = {name for part, _ in named for name in part.class_names}
    whole = next((part for part, _ in named if set(part.class_names) == every), None)
    nameless = next(((part, where) for part, where in named if not part.class_names), None)
    if whole is None and nameless is None:
        return tuple(sorted(every)), len(every)
    if whole is None:
        assert nameless is not None
        raise ShardError(
            f"{nameless[1]}: expected names of its classes, since those of the other sets are not alike, got "
            f"{count(nameless[0].num_classes, 'class')} without names; make the set with --class-names"
        )
    for part, where in named:
        if part.num_classes != whole.num_classes and not (part.class_names and whole.class_names):
            raise ShardError(
                f"{where}: expected {count(whole.num_classes, 'class')} as in {named[0][1]}, got {part.num_classes}, "
                "and no names to find them by; make both sets with --class-names"
            )
    if not named[0][0].class_names and all(part.class_names in ((), whole.class_names) for part, _ in named):
        return (), whole.num_classes  # by number, as the first set has no names
    return whole.class_names, whole.num_classes


def _labels(part: ShardIndex, class_names: Sequence[str]) -> NDArray[np.int32]:
    """The labels of a set among the classes of all."""
    if not class_names or part.class_names in ((), tuple(class_names)):
        return part.label_N
    place = {name: number for number, name in enumerate(class_names)}
    label_C = np.array([*(place[name] for name in part.class_names), -1], np.int32)
    return label_C[part.label_N]  # -1, without a label, takes the last


def _key_arrays(keys: Sequence[str], rows_S: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The arrays of an index that hold its keys."""
    key_bytes = [key.encode() for key in keys]
    total_N = np.concatenate([[0], np.cumsum([len(key) for key in key_bytes])])
    key_first_S = np.concatenate([[0], total_N[np.cumsum(rows_S)]])
    return {
        "key_bytes": np.frombuffer(b"".join(key_bytes), np.uint8),
        "key_first_S": key_first_S.astype("<i8"),
        "key_end_N": (total_N[1:] - np.repeat(key_first_S[:-1], rows_S)).astype("<u4"),
    }


def _keys_of(part: ShardIndex) -> Iterator[str]:
    """The keys of a set in their order."""
    blob = part.key_bytes.tobytes()
    for shard in range(part.num_shards):
        base, start = int(part.key_first_S[shard]), 0
        for end in part.key_end_N[int(part.first_S[shard]) : int(part.first_S[shard + 1])].tolist():
            yield blob[base + start : base + end].decode()
            start = end


def _unique(names: Sequence[Iterable[str]], suffix: str) -> list[str]:
    """The names of all sets; one that an earlier set has gets the number of its own set before the suffix."""
    taken = {name for part in names for name in part}
    seen: set[str] = set()
    unique = []
    for number, part in enumerate(names, 1):
        for name in part:
            new = name
            while new in seen or (new != name and new in taken):
                new = f"{new.removesuffix(suffix)}~{number}{suffix}"
            seen.add(new)
            unique.append(new)
    return unique


def _require_other_images(parts: Sequence[ShardIndex], keys: Sequence[Sequence[str]], wheres: Sequence[str]) -> None:
    """ShardError naming an image that two sets have under one key: a set that is given twice."""
    first: dict[tuple[str, int, int], str] = {}
    for part, part_keys, where in zip(parts, keys, wheres, strict=True):
        images = list(zip(part_keys, part.crc32c_N.tolist(), part.size_N.tolist(), strict=True))
        twice = next((image for image in images if image in first), None)
        if twice is not None:
            raise ShardError(
                f"{where}: the image {twice[0]!r} is also in {first[twice]}; expected every image once: leave one of "
                "the two sets out, or make it again without these images"
            )
        first |= dict.fromkeys(images, where)


def _require_same_pixels(parts: Sequence[ShardIndex], wheres: Sequence[str]) -> None:
    for part, where in zip(parts, wheres, strict=True):
        if part.pixels != parts[0].pixels:
            words = " and ".join(repr(one.pixels.words() or "as they are stored") for one in (parts[0], part))
            raise ShardError(f"{where}: expected images treated alike, got {words}; make both sets with the same flags")


def _class_words(class_names: Sequence[str], parts: Sequence[ShardIndex], wheres: Sequence[str]) -> Iterator[str]:
    """That classes were found by name, where that changes the labels of a set."""
    if class_names and any(part.class_names not in ((), tuple(class_names)) for part in parts):
        shares = ", ".join(f"{part.num_classes} in {where}" for part, where in zip(parts, wheres, strict=True))
        yield f"{count(len(class_names), 'class')}, joined by name ({shares})"


def _name_words(renamed: Iterable[tuple[str, Sequence[str], Sequence[str]]]) -> Iterator[str]:
    """How many shards and images are called otherwise, with an example; each is what, its old and its new names."""
    for what, old, new in renamed:
        pairs = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        if pairs:
            example = f"{pairs[0][0]!r} is called {pairs[0][1]!r}"
            yield f"{count(len(pairs), what)} with a name that an earlier set has: {example}"
