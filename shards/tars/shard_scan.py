"""Scan one shard from the first byte to the last: which samples it holds, where, and with which checksums.

Refused is what is no sample (`shards.tars.sample_rule`), and what would make another reader see other samples than this
one: duplicate, split or incomplete samples.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.documents import open_regular
from shards.errors import Problem, ShardError, summary, system_words, unreadable_now
from shards.names import short
from shards.tars.sample_rule import Row, SampleMembers, SampleRule, Stray, refused, split_name, stray_problems
from shards.tars.tar import Member, read_members

_BUFFER_BYTES = 1 << 20

# N samples of the shard.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardScan:
    """What the strict scan of one shard found.

    Attributes:
        name: base name of the tar. tar_bytes: its size.
        key_bytes: the keys, UTF-8, one after the other. key_end_N: where each ends.
        key_hash_N: 64-bit hashes of the keys, to find duplicates between shards.
        offset_N, size_N: the image's bytes in the tar. crc32c_N: their checksum.
        label_N, suffix_N: the label, -1 for none; the index into SUFFIXES.
        ignored: how many members were passed over, by suffix; no part of the digest.
        problems: images that do not decode, where the rule asks for it; no part of the digest.
    """

    name: str
    tar_bytes: int
    key_bytes: bytes
    key_end_N: NDArray[np.uint32]
    key_hash_N: NDArray[np.uint64]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    crc32c_N: NDArray[np.uint32]
    label_N: NDArray[np.int32]
    suffix_N: NDArray[np.uint8]
    ignored: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def digest(self) -> bytes:
        """sha256 over everything: the shard's share of the fingerprint of an index."""
        head = json.dumps([self.name, self.tar_bytes, len(self.key_end_N), len(self.key_bytes)])
        sha = hashlib.sha256(head.encode() + b"\n" + self.key_bytes)
        for array, dtype in (
            (self.key_end_N, "<u4"),
            (self.offset_N, "<i8"),
            (self.size_N, "<i8"),
            (self.crc32c_N, "<u4"),
            (self.label_N, "<i4"),
            (self.suffix_N, "u1"),
        ):
            sha.update(np.ascontiguousarray(array, dtype).tobytes())
        return sha.digest()


def scan_shard(path: Path, name: str, rule: SampleRule, where: str = "") -> ShardScan:
    """Scan the tar at `path` strictly; `where` is what errors call it (default: the path).

    Errors:
        ShardError naming the shard, the offset and the member, for anything that is not as it must be.
    """
    where = where or str(path)
    try:
        with open_regular(path, buffering=_BUFFER_BYTES) as file:
            return scan_file(file, name, rule, where)
    except OSError as error:
        if unreadable_now(error):
            raise ShardError(system_words(error, where)) from error
        raise ShardError(f"{where}: cannot be read: {error}. Check the path, permissions and the disk") from error


def scan_file(file: BinaryIO, name: str, rule: SampleRule, where: str) -> ShardScan:
    """Scan an open tar from its first byte to its last; errors as of `scan_shard`."""
    strays: list[Stray] = []
    try:
        scan = _scan_members(file, name, rule, where, strays)
    except ShardError:
        if not strays:
            raise
    if strays:
        first = strays[0].member
        what = f"{len(strays)} members are of no sample, the first {short(repr(first.name))} at offset {first.offset}"
        problem = summary(where, stray_problems(strays), what=what)
        raise ShardError(problem.text, problem.advice)
    return scan


def _scan_members(file: BinaryIO, name: str, rule: SampleRule, where: str, strays: list[Stray]) -> ShardScan:
    """The scan of all members; those of no sample are added to `strays`."""
    rows: list[Row] = []
    seen: set[str] = set()
    ignored: Counter[str] = Counter()
    undecodable: list[Problem] = []
    sample: SampleMembers | None = None
    members = read_members(file, where)
    for member, data in members:
        split = split_name(member, rule.foreign, ignored, strays)
        if split is None:
            continue
        key, suffix = split
        if sample is None or key != sample.key:
            if sample is not None:
                rows.append(_finished(sample, [member], members, rule, where))
            if key in seen:
                raise _unsorted(member, key, where)
            seen.add(key)
            sample = SampleMembers(key, member.offset, rule, where, undecodable)
        sample.add(member, suffix, data)
    if sample is None and rule.foreign.skip_empty and not ignored and not strays:
        return _pack([], name, file.seek(0, 2))
    if sample is None:
        counts = ", ".join(f"{count} × {suffix}" for suffix, count in sorted(ignored.items()))
        passed = f" (passed over: {counts})" if counts else ""
        advice = "Remove the shard or make it again" + ("" if counts else "; check-shards --skip-empty passes over it")
        raise ShardError(f"{where}: holds no samples{passed}; expected at least one. {advice}")
    rows.append(sample.row())
    return replace(_pack(rows, name, file.seek(0, 2)), ignored=dict(ignored), problems=tuple(undecodable))


def _finished(
    sample: SampleMembers, after: list[Member], rest: Iterator[tuple[Member, bytes]], rule: SampleRule, where: str
) -> Row:
    """The finished sample; where a part is missing, the rest of the shard says whether it only comes later."""
    try:
        return sample.row()
    except ShardError:
        for member in chain(after, (member for member, _ in rest)):
            split = split_name(member, rule.foreign, Counter(), [])
            if split is not None and split[0] == sample.key:
                raise _unsorted(member, sample.key, where) from None
        raise


def _unsorted(member: Member, key: str, where: str) -> ShardError:
    advice = "the shard is not sorted by name: make it again with sorted names (tar --sort=name)"
    return refused(member, where, f"the members of {key!r} side by side", advice, "others between them")


def _pack(rows: list[Row], name: str, tar_bytes: int) -> ShardScan:
    keys = [row.key.encode() for row in rows]
    hashes = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return ShardScan(
        name=name,
        tar_bytes=tar_bytes,
        key_bytes=b"".join(keys),
        key_end_N=np.cumsum([len(key) for key in keys]).astype(np.uint32),
        key_hash_N=np.frombuffer(hashes, "<u8"),
        offset_N=np.array([row.offset for row in rows], np.int64),
        size_N=np.array([row.size for row in rows], np.int64),
        crc32c_N=np.array([row.crc32c for row in rows], np.uint32),
        label_N=np.array([row.label for row in rows], np.int32),
        suffix_N=np.array([row.suffix for row in rows], np.uint8),
    )
