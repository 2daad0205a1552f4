"""Read and write the file of an index: named arrays and a JSON head, mapped into memory, every byte under a checksum.

Layout: 16 bytes of magic; the length of the head (uint32, little-endian) and its crc32c (uint32); the head (JSON,
padded with spaces); then the arrays, each padded with zeros to 64 bytes. The head lists name, dtype, length and crc32c
of each array, in order. Opening maps the file and checks every checksum at memory speed: the arrays stay in the page
cache, shared by all processes of a machine, and nothing is unpickled.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import google_crc32c
import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.atomic import atomic_file
from shards.documents import MOST_BYTES, checked, open_regular, parse_json
from shards.errors import ShardError, system_words, unreadable_now

_Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**50)]


class IndexMeta(msgspec.Struct, forbid_unknown_fields=True):
    """What the head of the file holds, for all shards; `places` is where they were, [] for beside the index.

    `num_classes` is 0 where no sample has a label and nobody has named the classes.
    """

    names: list[str]
    class_names: list[str]
    num_classes: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    places: list[str]
    fingerprint: str
    compact: dict[str, Any] | None = None
    pixels: dict[str, Any] = {}
    num_skipped: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    num_unlabelled: Annotated[int, msgspec.Meta(ge=0, le=2**50)] = 0
    empty_shards: list[str] = []


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    length: _Bytes
    crc32c: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    meta: IndexMeta
    arrays: list[_Entry]
    bytes: _Bytes


WRITE_ANEW = "write it anew with check-shards --overwrite, which keeps its class names where it can"
"""What to do about a damaged index."""

_MAGIC = b"shards.index 1\n\0"
_ALIGN = 64
_HEAD_START = len(_MAGIC) + 8


def write_index_file(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write JSON-able `meta` and one-dimensional little-endian `arrays` to `path`, atomically."""
    entries, offset = [], 0
    padded: list[bytes] = []
    for name, array in arrays.items():
        assert array.ndim == 1 and array.dtype.byteorder in "<=|", f"{name}: {array.dtype} {array.shape}"
        data = array.tobytes()
        data += bytes(-len(data) % _ALIGN)
        checksum = google_crc32c.value(data)
        entries.append({"name": name, "dtype": array.dtype.str, "length": len(array), "crc32c": checksum})
        padded.append(data)
        offset += len(data)
    head = json.dumps({"meta": meta, "arrays": entries, "bytes": offset}, separators=(",", ":")).encode()
    head += b" " * (-(_HEAD_START + len(head)) % _ALIGN)
    with atomic_file(path) as file:
        file.write(_MAGIC)
        file.write(len(head).to_bytes(4, "little") + google_crc32c.value(head).to_bytes(4, "little"))
        file.write(head)
        for data in padded:
            file.write(data)


def read_index_file(path: Path, dtypes: Mapping[str, str]) -> tuple[IndexMeta, dict[str, NDArray[Any]]]:
    """Read meta and arrays (read-only, mapped) of an index file.

    Args:
        dtypes: the arrays that an index has, with their dtypes.

    Errors:
        ShardError when the file is missing, cut, changed in any byte, or not an index.
    """
    mapped = _mapped(path)
    whole = np.frombuffer(mapped, np.uint8)
    described, start = _head(mapped, path)
    if len(whole) != start + described.bytes:
        raise _broken(path, f"expected {start + described.bytes} bytes, got {len(whole)}")
    listed = [(entry.name, entry.dtype) for entry in described.arrays]
    if listed != list(dtypes.items()):
        raise _broken(path, f"arrays: expected {list(dtypes.items())}, got {listed[:20]}")
    arrays = {}
    for entry in described.arrays:
        dtype = np.dtype(entry.dtype)
        stop = start + dtype.itemsize * entry.length
        padded_stop = stop + -(stop - start) % _ALIGN
        if padded_stop > len(whole):
            raise _broken(path, f"array {entry.name}: expected {entry.length} values, the file ends before them")
        checksum = google_crc32c.value(whole[start:padded_stop])
        if checksum != entry.crc32c:
            expected, got = f"{entry.crc32c:08x}", f"{checksum:08x}"
            raise _broken(path, f"array {entry.name}: expected crc32c {expected}, got {got}")
        arrays[entry.name] = whole[start:stop].view(dtype)
        start = padded_stop
    _release(mapped)
    return described.meta, arrays


def stored_class_names(path: Path) -> tuple[str, ...]:
    """Read the class names in the head of an index file, even if its arrays are damaged.

    Errors:
        ShardError when the head is missing, cut or changed in any byte.
    """
    described, _ = _head(_mapped(path), path)
    return tuple(described.meta.class_names)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open_regular(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ShardError(f"{path}: no such index; run check-shards on the shards") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        if (refused := unreadable_now(error)) is not None:
            raise ShardError(system_words(refused, path)) from error
        raise _broken(path, f"the file cannot be mapped: {error}") from error


def _head(mapped: mmap.mmap, path: Path) -> tuple[_Head, int]:
    """The head of an index file, and where its arrays begin."""
    if mapped[: len(_MAGIC)] != _MAGIC:
        raise _broken(path, f"expected it to start with {_MAGIC!r}, got {mapped[: len(_MAGIC)]!r}")
    start = _HEAD_START + int.from_bytes(mapped[len(_MAGIC) : len(_MAGIC) + 4], "little")
    if start > MOST_BYTES:
        raise _broken(path, f"expected a head of at most {MOST_BYTES} bytes, got {start}")
    checksum = int.from_bytes(mapped[len(_MAGIC) + 4 : _HEAD_START], "little")
    head = mapped[_HEAD_START:start]
    if _HEAD_START + len(head) != start or google_crc32c.value(head) != checksum:
        raise _broken(path, "the checksum of its head does not fit")
    parsed = parse_json(head, path, error=ShardError, advice=_ADVICE)
    _refuse_newer(parsed, path)
    return checked(parsed, _Head, path, error=ShardError, advice=_ADVICE), start


def _refuse_newer(head: Any, path: Path) -> None:
    """ShardError for fields that a newer version wrote: the file is whole, and this version cannot read it."""
    meta = head.get("meta") if isinstance(head, dict) else None
    known = {field.name for field in msgspec.structs.fields(IndexMeta)}
    unknown = sorted(set(meta) - known) if isinstance(meta, dict) else []
    if unknown:
        raise ShardError(f"{path}: made by a newer version: unknown fields {unknown}; update this project to read it")


def _release(mapped: mmap.mmap) -> None:
    """Give the pages the checksums touched back to the page cache, so that an open index costs what is used of it."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


_ADVICE = f"the index is damaged or not one: {WRITE_ANEW}"


def _broken(path: Path, problem: str) -> ShardError:
    return ShardError(f"{path}: the index is damaged: {problem}; {WRITE_ANEW}")
