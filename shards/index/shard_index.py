"""Load, save and query the index of a set of shards: key, place, checksum and label of every sample, in their order.

It is what both stages agree on: the cache's spec carries its fingerprint, every read is checked against it. The file
lies beside the shards and knows them by name, so a folder of shards can be moved or copied with its index.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.data_defaults import ImageSet
from shards.errors import Problem, ShardError, problems_text
from shards.index.class_names import write_copy
from shards.index.index_checks import require_sound, without_empty
from shards.index.index_file import WRITE_ANEW, read_index_file, write_index_file
from shards.index.pixel_rule import CompactRule, PixelRule
from shards.index.remote import cached_path, local_shard
from shards.index.sources import base_name, expand_shards, is_remote, named_twice
from shards.own_folder import INDEX_NAME
from shards.text.figures import count

_Rule = TypeVar("_Rule", CompactRule, PixelRule)
_SIMILAR = 3  # keys that a message names
ARRAYS = {
    "tar_bytes_S": "<i8",
    "first_S": "<i8",
    "offset_N": "<i8",
    "size_N": "<i8",
    "crc32c_N": "<u4",
    "label_N": "<i4",
    "suffix_N": "|u1",
    "key_bytes": "|u1",
    "key_first_S": "<i8",
    "key_end_N": "<u4",
    "shard_digest_S32": "|u1",
}

# S shards, N samples of all shards, 32 bytes of a sha256.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardIndex:
    """The samples of a set of shards, as a strict scan has found them.

    The rows of shard s are first_S[s] … first_S[s + 1] of the _N arrays.

    Attributes:
        urls: where each shard is; not part of the fingerprint. names: base names, unique.
        tar_bytes_S: size of each tar. first_S: (S + 1,) first row of each shard.
        offset_N, size_N: the image's bytes in its tar. crc32c_N: their checksum.
        label_N: in [0, num_classes); -1 for a sample without a label. suffix_N: index into SUFFIXES.
        key_bytes, key_first_S (S + 1,), key_end_N: all keys as one UTF-8 blob; where each shard's part starts;
            where each key ends in that part.
        shard_digest_S32: sha256 of each shard's scan, flat.
        class_names: () when unknown. num_classes: C; 0 where no sample has a label and nobody has named the classes.
        compact: how make-shards made the images smaller; None when it did not, or nobody knows. No part of the
            fingerprint, which is of the bytes that came of it.
        pixels: what make-shards did to the pixels; no part of the fingerprint either.
        num_skipped: images that could not be taken and were left out.
        empty_shards: tars beside them without any sample, passed over: base names; no part of the fingerprint.
        classes_of_teacher: the classes are those of a teacher (`taught`), and no part of the fingerprint.
        join_words: what joining several sets changed in names and classes; "" for nothing.
        path: the file it was loaded from; pickling sends the path instead of the arrays.
    """

    urls: tuple[str, ...]
    names: tuple[str, ...]
    tar_bytes_S: NDArray[np.int64]
    first_S: NDArray[np.int64]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    crc32c_N: NDArray[np.uint32]
    label_N: NDArray[np.int32]
    suffix_N: NDArray[np.uint8]
    key_bytes: NDArray[np.uint8]
    key_first_S: NDArray[np.int64]
    key_end_N: NDArray[np.uint32]
    shard_digest_S32: NDArray[np.uint8]
    class_names: tuple[str, ...]
    num_classes: int
    compact: CompactRule | None = field(default=None)
    pixels: PixelRule = field(default=PixelRule())
    num_skipped: int = field(default=0)
    empty_shards: tuple[str, ...] = field(default=())
    classes_of_teacher: bool = field(default=False)
    join_words: str = field(default="")
    path: Path | None = field(default=None)

    @property
    def num_shards(self) -> int:
        """The number of shards, S."""
        return len(self.names)

    @property
    def num_samples(self) -> int:
        """The number of samples, N."""
        return len(self.label_N)

    @property
    def num_unlabelled(self) -> int:
        """Samples without a label."""
        return int((self.label_N < 0).sum())

    @property
    def image_set(self) -> ImageSet:
        """The numbers of images by which settings are chosen."""
        return ImageSet(num_images=self.num_samples, num_unlabelled=self.num_unlabelled)

    @property
    def rows_S(self) -> NDArray[np.int64]:  # noqa: N802 - the shape is part of the name
        """Samples of each shard."""
        return np.diff(self.first_S)

    def num_rows(self, shard: int) -> int:
        """Samples of one shard."""
        return int(self.first_S[shard + 1] - self.first_S[shard])

    def row_number(self, shard: int, row: int) -> int:
        """Return the place of (shard, row) in the _N arrays; IndexError outside the shard, also for negative rows."""
        if not (0 <= shard < self.num_shards and 0 <= row < self.num_rows(shard)):
            raise IndexError(f"index: no row {row} of shard {shard} among {count(self.num_shards, 'shard')}")
        return int(self.first_S[shard]) + row

    def key(self, shard: int, row: int) -> str:
        """Return the key of a sample."""
        n = self.row_number(shard, row)
        base = int(self.key_first_S[shard])
        start = base + (int(self.key_end_N[n - 1]) if row else 0)
        return self.key_bytes[start : base + int(self.key_end_N[n])].tobytes().decode()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything but the urls: names, sizes, classes and the digest of each shard's scan."""
        sha = hashlib.sha256(json.dumps(self._meta(), sort_keys=True).encode())
        sha.update(self.shard_digest_S32.tobytes())
        return sha.hexdigest()

    def taught(self, num_classes: int, class_names: Sequence[str] = ()) -> "ShardIndex":
        """Return the same samples with the classes of a teacher, where the index has none; the fingerprint stays."""
        if self.num_classes:
            return self
        return replace(self, num_classes=num_classes, class_names=tuple(class_names), classes_of_teacher=True)

    def num_in(self, other: "ShardIndex") -> int:
        """Count the samples whose image is in another index as well, under any key: of the same size and crc32c."""
        own_N, other_N = (
            index.crc32c_N.astype(np.uint64) << np.uint64(32) | index.size_N.astype(np.uint32)
            for index in (self, other)
        )
        return int(np.isin(own_N, other_N).sum())

    def find(self, key: str) -> tuple[int, int]:
        """Find (shard, row) of a key; ShardError, naming similar keys, when it is not there.

        It compares key ends byte by byte over all keys of the right length (tens of milliseconds for ImageNet) and
        keeps no table.
        """
        wanted = np.frombuffer(key.encode(), np.uint8)
        for shard in range(self.num_shards if len(wanted) else 0):
            base, rows = int(self.key_first_S[shard]), slice(int(self.first_S[shard]), int(self.first_S[shard + 1]))
            ends = self.key_end_N[rows].astype(np.int64)
            rows_left = np.flatnonzero(np.diff(ends, prepend=0) == len(wanted))
            for back in range(1, len(wanted) + 1):
                if not len(rows_left):
                    break
                rows_left = rows_left[self.key_bytes[base + ends[rows_left] - back] == wanted[-back]]
            if len(rows_left):
                return shard, int(rows_left[0])
        raise ShardError(f"index: no sample has the key {key!r}; similar: {', '.join(self._similar(key)) or 'none'}")

    def _similar(self, key: str) -> list[str]:
        """Some keys that hold the longest prefix of `key` that any key holds."""
        blob, wanted = self.key_bytes.tobytes(), key.encode()
        for length in range(len(wanted), 0, -1):
            similar: list[str] = []
            at = blob.find(wanted[:length])
            while at >= 0 and len(similar) < _SIMILAR:
                shard = int(np.searchsorted(self.key_first_S, at, "right")) - 1
                ends = self.key_end_N[int(self.first_S[shard]) : int(self.first_S[shard + 1])]
                row = int(np.searchsorted(ends, at - int(self.key_first_S[shard]), "right"))
                similar.append(repr(self.key(shard, row)))
                at = blob.find(wanted[:length], int(self.key_first_S[shard]) + int(ends[row]))
            if similar:
                return similar
        return []

    def save(self, path: Path) -> None:
        """Write the index as one file, atomically, and a copy of its class names beside it."""
        folder = str(Path(path).absolute().parent)
        beside = [os.path.dirname(os.path.abspath(url)) == folder if "://" not in url else False for url in self.urls]
        places = [name if near else url for name, url, near in zip(self.names, self.urls, beside, strict=True)]
        meta = self._meta() | {"places": [] if all(beside) else places, "fingerprint": self.fingerprint}
        meta |= {"compact": self.compact.to_json()} if self.compact else {}
        meta |= {"pixels": self.pixels.to_json()} if self.pixels != PixelRule() else {}
        meta |= {"num_skipped": self.num_skipped} if self.num_skipped else {}
        meta |= {"empty_shards": self.empty_shards} if self.empty_shards else {}
        meta |= {"num_unlabelled": self.num_unlabelled} if self.num_unlabelled else {}
        arrays = {name: np.ascontiguousarray(getattr(self, name), dtype) for name, dtype in ARRAYS.items()}
        try:
            write_copy(Path(path), meta["class_names"])
            write_index_file(Path(path), meta, arrays)
        except OSError as error:
            raise ShardError(
                f"{path}: the index cannot be written: {error}. It lies beside the shards: make room, or link "
                "read-only shards into a folder you can write to"
            ) from error

    @classmethod
    def load(cls, path: Path, *, follow_places: bool = False) -> "ShardIndex":
        """Read the index in a file, its arrays mapped read-only; ShardError when it is missing or damaged in any byte.

        Its shards are those of its names in the folder of the file. Where else they were when it was made is followed
        only when asked for: a file from a stranger would choose what is read or fetched. `open_index` asks the user.
        """
        path = Path(path)
        meta, arrays = read_index_file(path, ARRAYS)
        require_sound(meta, arrays, path)
        places = (follow_places and meta.places) or meta.names
        index = cls(
            urls=tuple(place if "://" in place else str(path.parent / place) for place in places),
            names=tuple(meta.names),
            class_names=tuple(meta.class_names),
            num_classes=meta.num_classes,
            compact=_rule(CompactRule, meta.compact, path) if meta.compact is not None else None,
            pixels=_rule(PixelRule, meta.pixels, path),
            num_skipped=meta.num_skipped,
            empty_shards=tuple(meta.empty_shards),
            path=path.absolute(),
            **dict[str, Any](arrays),
        )
        if index.fingerprint != meta.fingerprint:
            raise ShardError(
                f"{path}: expected fingerprint {meta.fingerprint}, got {index.fingerprint}; run check-shards again"
            )
        return index

    def _meta(self) -> dict[str, Any]:
        own = not self.classes_of_teacher
        return {
            "names": self.names,
            "class_names": self.class_names if own else (),
            "num_classes": self.num_classes if own else 0,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as (path, fingerprint, urls) when there is a file: a worker maps it, too, instead of copying."""
        if self.path is not None:
            taught = (self.num_classes, self.class_names) if self.classes_of_teacher else (0, ())
            return _reload, (self.path, self.fingerprint, self.urls, taught)
        return partial(ShardIndex, **{name: getattr(self, name) for name in self.__slots__}), ()


def _rule(kind: type[_Rule], stored: dict[str, Any], path: Path) -> _Rule:
    """Parse what was done to the images; ShardError naming the file when it is damaged."""
    try:
        return kind.from_json(stored)
    except ValueError as error:
        raise ShardError(f"{path}: {error}; the index is damaged: {WRITE_ANEW}") from error


def _reload(path: Path, fingerprint: str, urls: tuple[str, ...], taught: tuple[int, tuple[str, ...]]) -> ShardIndex:
    index = ShardIndex.load(path)
    if index.fingerprint != fingerprint:
        raise ShardError(
            f"{path}: the index was replaced while it was in use: expected fingerprint {fingerprint}, "
            f"got {index.fingerprint}; start again"
        )
    return replace(index, urls=urls).taught(*taught)


def index_path(pattern: str, cache_dir: Path | None = None) -> Path:
    """Return the path of the index of a pattern's shards: beside local ones, in the cache folder for remote ones.

    It is `shards.index` for a directory. Train and validation shards often share a folder, so for anything else the
    name is what the shards' names have in common: `train-{0000..1023}.tar` has `train.index`.
    """
    urls = expand_shards(pattern)
    stems = [base_name(url).removesuffix(".tar") for url in urls]
    prefix = os.path.commonprefix(stems)  # noqa: RUF071 - names, not paths
    if len(stems) > 1:
        prefix = prefix.rstrip("0123456789").rstrip("-_.")
    if not is_remote(urls[0]):
        whole = Path(pattern.removeprefix("file://")).expanduser().is_dir()
        return Path(urls[0]).parent / f"{'shards' if whole else prefix or 'shards'}.index"
    return cached_path(f"{os.path.dirname(urls[0])}/{prefix or 'shards'}.index", cache_dir)


def open_index(pattern: str, cache_dir: Path | None = None) -> ShardIndex:
    """Open the index of exactly the shards that a pattern names, as make-shards or check-shards left it.

    Local shards must have the sizes in the index; remote ones are compared when they are fetched. Where "::" joins sets
    of which no index covers all, each set's own index is read, and they become one (`shards.index.joining`).

    Errors:
        ShardError when there is no index, it is damaged, it covers other shards, or a size differs.
    """
    parts = pattern.split("::")
    urls = expand_shards(pattern, one_index=len(parts) == 1)
    if len(parts) > 1 and (named_twice(urls) or not _covers(index_path(pattern, cache_dir), urls)):
        from shards.index.joining import joined

        return joined([open_index(part, cache_dir) for part in parts], parts)
    path = index_path(pattern, cache_dir)
    if not path.exists() and not is_remote(urls[0]) and (whole := path.with_name(INDEX_NAME)).exists():
        path = whole  # made for the whole folder; good when it covers exactly these shards
    if is_remote(urls[0]) and not path.exists():
        path = _fetch_index(f"{os.path.dirname(urls[0])}/{path.name.partition('-')[2]}", cache_dir)
    index = ShardIndex.load(path)
    urls = without_empty(urls, index.empty_shards, path)
    names = tuple(base_name(url) for url in urls)
    if index.names != names:
        _require_all_here(index, names, path)
        missing, extra = sorted(set(names) - set(index.names)), sorted(set(index.names) - set(names))
        raise ShardError(
            f"{path}: the index covers other shards than {pattern}: expected {len(names)}, got {len(index.names)}; "
            f"not in the index: {missing[:3] or 'none'}; only in the index: {extra[:3] or 'none'}. "
            f"Run check-shards {pattern}"
        )
    for url, expected in zip(urls, index.tar_bytes_S, strict=True):
        if not is_remote(url) and (got := os.stat(url).st_size) != expected:
            raise ShardError(
                f"{url}: expected {int(expected)} bytes as in {path}, got {got}; restore the shard, or run "
                "check-shards again if it was changed on purpose"
            )
    return replace(index, urls=tuple(urls))


def _covers(path: Path, urls: Sequence[str]) -> bool:
    """Whether the index in a file is that of these shards, in this order, beside ones that it passes over."""
    if not path.exists():
        return False
    index = ShardIndex.load(path)
    names = [base_name(url) for url in urls]
    return list(index.names) == [name for name in names if name not in index.empty_shards]


def _require_all_here(index: ShardIndex, names: tuple[str, ...], path: Path) -> None:
    """ShardError when shards of the index are not named by a pattern because they are not there."""
    gone = [
        Problem(f"{name} ({count(index.num_rows(shard), 'sample')}): in the index, but missing here", "missing shard")
        for shard, name in enumerate(index.names)
        if name not in names and not is_remote(index.urls[shard]) and not os.path.exists(index.urls[shard])
    ]
    if gone:
        advice = f"copy missing shards again: all {index.num_shards} of the index belong to the set"
        raise ShardError(problems_text(str(path), [gone[0]._replace(advice=advice), *gone[1:]]))


def _is_missing(error: BaseException | None) -> bool:
    """Whether a server has said that a file is not there; one that fails or refuses has not."""
    while error is not None and not isinstance(error, FileNotFoundError):
        error = error.__cause__
    return error is not None


def _fetch_index(url: str, cache_dir: Path | None) -> Path:
    """The index that somebody has put beside the remote shards, fetched."""
    try:
        return local_shard(url, None, cache_dir)
    except ShardError as error:
        if not _is_missing(error):
            raise ShardError(
                f"{error}. Where no index lies at that address, run check-shards on the pattern"
            ) from error
        raise ShardError(
            f"{url}: no index of these shards here or beside them; run check-shards on the pattern (and upload the "
            f"index to that place to spare other machines the scan). {error}"
        ) from error
