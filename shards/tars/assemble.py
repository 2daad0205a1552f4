"""Join the scans of single shards into one index: classes settled, keys unique over all shards."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.errors import Problem, ShardError, problems_text
from shards.index.shard_index import ShardIndex
from shards.index.sources import base_name
from shards.tars.shard_scan import ShardScan


def settled_classes(num_classes: int | None, class_names: Sequence[str]) -> int | None:
    """The number of classes that the user gave, in either way; ValueError when the two contradict each other."""
    if class_names and num_classes not in (None, len(class_names)):
        raise ValueError(
            f"--num-classes: expected {len(class_names)}, one for each name in --class-names, got {num_classes}"
        )
    return len(class_names) or num_classes


def assemble(
    urls: Sequence[str], scans: Sequence[ShardScan], *, num_classes: int | None = None, class_names: Sequence[str] = ()
) -> ShardIndex:
    """The index of scanned shards, in their order; `num_classes` defaults to the class names, then to the labels.

    Where no sample has a label and no classes are given, it is 0.

    Errors:
        ValueError when `num_classes` and `class_names` contradict each other; ShardError when a label is out of range
        or two samples have one key.
    """
    names = [base_name(url) for url in urls]
    assert names == [scan.name for scan in scans], "urls and scans must be in one order"
    rows = np.cumsum([0] + [len(scan.label_N) for scan in scans]).astype(np.int64)
    label_N = np.concatenate([scan.label_N for scan in scans])
    top = int(label_N.max())
    limit = settled_classes(num_classes, class_names) or top + 1
    if top >= limit:
        shard = int(np.searchsorted(rows, int(label_N.argmax()), "right")) - 1
        raise ShardError(
            f"{urls[shard]}: expected labels in [0, {limit}), got {top}; check --num-classes or --class-names"
        )
    index = ShardIndex(
        urls=tuple(urls),
        names=tuple(names),
        tar_bytes_S=np.array([scan.tar_bytes for scan in scans], np.int64),
        first_S=rows,
        key_bytes=np.frombuffer(b"".join(scan.key_bytes for scan in scans), np.uint8),
        key_first_S=np.cumsum([0] + [len(scan.key_bytes) for scan in scans]).astype(np.int64),
        shard_digest_S32=np.frombuffer(b"".join(scan.digest() for scan in scans), np.uint8),
        class_names=tuple(class_names),
        num_classes=limit,
        offset_N=np.concatenate([scan.offset_N for scan in scans]),
        size_N=np.concatenate([scan.size_N for scan in scans]),
        crc32c_N=np.concatenate([scan.crc32c_N for scan in scans]),
        label_N=label_N,
        suffix_N=np.concatenate([scan.suffix_N for scan in scans]),
        key_end_N=np.concatenate([scan.key_end_N for scan in scans]),
    )
    _require_unique_keys(index, np.concatenate([scan.key_hash_N for scan in scans]))
    return index


def _require_unique_keys(index: ShardIndex, hash_N: NDArray[np.uint64]) -> None:
    """Equal keys have equal hashes; the few equal hashes of different keys are told apart by the keys themselves."""
    order_N = np.argsort(hash_N, kind="stable")
    same = np.flatnonzero(np.diff(hash_N[order_N]) == 0)
    seen: dict[str, int] = {}
    problems = []
    for n in np.unique(np.concatenate([order_N[same], order_N[same + 1]])):
        shard = int(np.searchsorted(index.first_S, n, "right")) - 1
        key = index.key(shard, int(n - index.first_S[shard]))
        other = seen.setdefault(key, shard)
        if other != shard:
            advice = (
                "expected unique keys over all shards, as a view is drawn from the key: rename one, or check that no "
                "shard is given twice"
            )
            problems.append(Problem(f"{index.urls[shard]}: key {key!r} is also in {index.urls[other]}", "", advice))
    if problems:
        raise ShardError(problems_text("", problems, what=f"{len(problems)} keys are in two shards"))
