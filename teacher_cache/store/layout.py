"""The layout of a cache on disk as plain values: its arrays, their chunks and codecs, and the root attributes.

A pure function of spec, shards and number of views: the store writes what stands here, and on opening compares what it
finds with what stands here, so that damaged metadata is an error. docs/dev/cache-format.md describes it for a stranger.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from shards.errors import CacheError
from teacher_cache.store.digest import UnitId, fidelity_count
from teacher_cache.store.header import Header
from teacher_cache.store.ledger import LEDGER, LEDGER_BLOCKS, UNIT_DIGEST, UNKNOWN

PIXEL_DIGEST = "pixel_digest"
FIDELITY_AT = "fidelity_at"
FIDELITY_LOGIT = "fidelity_logit"
BASIS = "tail_basis"
_NAMES = "dimension_names"
Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]


class ArrayLayout(NamedTuple):
    """One array.

    Attributes:
        chunks: what is compressed together: one unit.
        shuffle: Blosc's, "bitshuffle", "shuffle" or "noshuffle"; None is uncompressed.
        shards: in a packed cache, the chunks in one object: all units of a shard; None where each has its own.
    """

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: int | float
    dimensions: tuple[str, ...]
    shuffle: Shuffle | None
    shards: tuple[int, ...] | None = None


def unit_layouts(header: Header) -> list[ArrayLayout]:
    """The arrays that hold units: one chunk of each is one unit, rows of shorter shards padded at the end."""
    layouts = _unit_layouts(header)
    return [item._replace(shards=(item.shape[0], *item.chunks[1:])) for item in layouts] if header.packed else layouts


def _unit_layouts(header: Header) -> list[ArrayLayout]:
    spec, num_shards = header.spec, len(header.rows_S)
    # C-Blosc shuffles no bits of a chunk whose number of items is no multiple of 8: 2 of 12 bytes of class indices.
    per_unit, num_rows = spec.recipe.block_views, -(-int(header.rows_S.max()) // 8) * 8
    layouts = []
    for name, dtype, width, fill in (*spec.record.fields(), (PIXEL_DIGEST, "<u4", None, 0)):
        tail = () if width is None else (width,)
        layouts.append(
            ArrayLayout(
                name,
                (header.num_views, num_shards, num_rows, *tail),
                (per_unit, 1, num_rows, *tail),
                dtype,
                fill,
                ("view", "shard", "row", f"{name}_value")[
                    : 3 + len(tail)
                ],  # of fields that differ in width, for xarray
                _shuffle_of(dtype),
            )
        )
    count = fidelity_count(spec, header.rows_S)
    if count:
        blocks = ("view_block", "shard", "position")
        shape = (header.num_view_blocks, num_shards, count)
        for name, width, dtype, fill, last in (
            (FIDELITY_AT, 2, "<u4", 2**32 - 1, "view_row"),
            (FIDELITY_LOGIT, spec.record.num_classes, "<f2", math.nan, "class"),
        ):
            chunks = (1, 1, count, width)
            layouts.append(ArrayLayout(name, (*shape, width), chunks, dtype, fill, (*blocks, last), _shuffle_of(dtype)))
    return layouts


def ledger_layouts(header: Header) -> list[ArrayLayout]:
    """The ledger: one entry per unit in a chunk of its own, and a snapshot of all entries in few chunks.

    A packed cache has the snapshot alone.
    """
    num_blocks, num_shards = header.num_view_blocks, len(header.rows_S)
    shape, dimensions = (num_blocks, num_shards), ("view_block", "shard")
    snapshot = ArrayLayout(LEDGER, shape, (LEDGER_BLOCKS, num_shards), "<u8", UNKNOWN, dimensions, None)
    return (
        [snapshot] if header.packed else [ArrayLayout(UNIT_DIGEST, shape, (1, 1), "<u8", 0, dimensions, None), snapshot]
    )


def basis_layouts(header: Header) -> list[ArrayLayout]:
    """The arrays of the tail basis, each one chunk."""
    return [
        ArrayLayout(
            f"{BASIS}/{name}",
            shape,
            shape,
            dtype,
            0,
            tuple(f"axis_{n}" for n in range(len(shape))),
            "noshuffle",
        )
        for name, (dtype, shape) in header.basis_layout.items()
    ]


def _shuffle_of(dtype: str) -> Shuffle:
    """Measured on real records: whole bits of class indices are constant, bytes of floats repeat, codes are skewed."""
    if dtype.startswith("|"):
        return "noshuffle"
    return "shuffle" if "f" in dtype else "bitshuffle"


def selection(item: ArrayLayout, unit: UnitId) -> tuple[Any, ...]:
    """Return the place of a unit in an array: exactly one chunk, its axes of length 1 dropped."""
    per_chunk = item.chunks[0]
    if item.dimensions[0] == "view_block":
        return (unit.view_block, unit.shard)
    return (slice(unit.view_block * per_chunk, (unit.view_block + 1) * per_chunk), unit.shard)


def require_same_metadata(expected: Mapping[str, Any], got: Mapping[str, Any], where: str) -> None:
    """CacheError unless an array's metadata is what the layout says; the first axis may be longer."""
    expected, got = (json.loads(json.dumps(dict(value), default=str)) for value in (expected, got))
    if got.get(_NAMES) == _former_names(expected.get(_NAMES)):
        got = {**got, _NAMES: expected.get(_NAMES)}
    shape, room = expected["shape"], got.get("shape", [])
    if len(room) == len(shape) and shape and room[0] >= shape[0]:
        got = {**got, "shape": [shape[0], *room[1:]]}  # a growth that was interrupted leaves room behind
    for name in [*expected, *got]:
        if got.get(name) != expected.get(name):
            raise CacheError(
                f"{where}: {name}: expected {expected.get(name)}, got {got.get(name)}; restore the file from a copy"
            )


def _former_names(names: Sequence[str] | None) -> list[str] | None:
    """The dimension names of a cache made by 0.2 or before, in which the last axis of every field has one name."""
    return [name if not name.endswith("_value") else "value" for name in names] if names else None


def most_object_bytes(item: ArrayLayout) -> int:
    """Bytes of an object at most: its numbers, and what a compressor adds to numbers that do not compress."""
    return math.prod(item.shards or item.chunks) * int(item.dtype[2:]) * 9 // 8 + (1 << 16)


def chunk_key(item: ArrayLayout, unit: UnitId) -> str:
    """The object that holds the chunk of a unit."""
    rest = "/0" * (len(item.shape) - 2)
    return f"{item.name}/c/{0 if item.shards else unit.view_block}/{unit.shard}{rest}"
