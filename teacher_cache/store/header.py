"""Read and write the root of a cache, without importing zarr; refuse roots that are damaged, unfinished or foreign."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.documents import below, checked, parse_json
from shards.errors import CacheError, OtherVersionError
from shards.locks import FOR_EVER, locked
from shards.own_folder import (
    CACHE_KIND,
    FolderKind,
    is_cache_folder,
    is_run_folder,
    is_shards_folder,
    suggestion,
    what_is,
)
from shards.text.figures import count
from shards.views.view_recipe import ViewRecipe
from teacher_cache.store.digest import IndexLike, array_digest
from teacher_cache.store.libraries import library_versions
from teacher_cache.store.place import Place, read_file
from teacher_cache.store.spec import CacheSpec, canonical_json

if TYPE_CHECKING:
    from teacher_cache.store.zarr_objects import Objects

LOCK_NAME = ".creating.lock"
"""Held in the folder of a cache while it is made."""
_RESTORE = "restore the file from a copy"
_ADVICE = f"the root of the cache is damaged or was not made by cache-teacher: {_RESTORE}"
_MOST_UNITS = 1 << 24
_MOST_UNIT_BYTES = 1 << 33
_MOST_BASIS_BYTES = 1 << 30

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _Group(msgspec.Struct, forbid_unknown_fields=True):
    """A group of Zarr v3."""

    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, Any] = {}
    consolidated_metadata: Any = None


class _Root(msgspec.Struct, forbid_unknown_fields=True):
    """The attributes of the root, without their digest."""

    kind: str
    spec: dict[str, Any]
    spec_fingerprint: str
    num_views: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    shard_names: Annotated[list[str], msgspec.Meta(min_length=1, max_length=10**6)]
    shard_rows: list[Annotated[int, msgspec.Meta(ge=1, le=10**9)]]
    tail_basis: dict[str, tuple[Literal["<f4", "<f8", "<i4", "<i8", "|u1", "|i1", "<u2"], list[_Size]]]
    tail_basis_digest: str
    made_with: dict[str, str]
    packed: bool = False
    class_names: list[str] = []
    num_skipped: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the root attributes hold.

    Attributes:
        spec: decides the content.
        num_views: views the cache has room for, a multiple of V.
        shard_names, rows_S: the shards and their rows.
        basis_layout: name → (dtype, shape) of each array of the tail basis; empty without one.
        basis_digest: hex digest of those arrays; "" without one.
        made_with: versions of the libraries, as provenance.
        packed: all units of a shard in one object of each array, by Zarr's sharding codec; such a cache is read only.
        class_names: of the answers in their order, where the teacher and the shards both said them when the cache was
            made, so that names prove the order; those of the teacher where the shards have no classes; () otherwise. No
            part of the fingerprint.
        num_skipped: images that were left out when the shards were made, as the card says; no part of the fingerprint.
    """

    spec: CacheSpec
    num_views: int
    shard_names: tuple[str, ...]
    rows_S: NDArray[np.int64]
    basis_layout: dict[str, tuple[str, tuple[int, ...]]]
    basis_digest: str
    made_with: dict[str, str]
    packed: bool = False
    class_names: tuple[str, ...] = ()
    num_skipped: int = 0

    @property
    def identity(self) -> str:
        """Fingerprint of spec and basis: what every unit digest starts from."""
        return hashlib.sha256(canonical_json([self.spec.fingerprint, self.basis_digest])).hexdigest()

    @property
    def num_view_blocks(self) -> int:
        """Units along the view axis."""
        return self.num_views // self.spec.recipe.block_views


@contextmanager
def making(folder: Path | None, *, wait_s: float = FOR_EVER) -> Iterator[None]:
    """Hold the lock under which a cache is made, so that two processes make one cache; a remote place has no lock.

    Errors:
        CacheError when another process holds it longer than `wait_s`.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK_NAME, wait_s=wait_s, remove=True) as free:
        if not free:
            raise CacheError(
                f"{folder}: another process has been making this cache for more than {wait_s:.0f} s "
                f"(it holds {LOCK_NAME}); see what keeps it, then start again"
            )
        yield


def make_header(
    spec: CacheSpec,
    index: IndexLike,
    num_views: int,
    basis_arrays: Mapping[str, NDArray[Any]],
    made_with: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
) -> Header:
    """The header of a new cache; ValueError when the views are not whole view blocks or the index is another.

    `made_with` is the provenance of a copy; None takes the libraries installed here. `class_names` as of `Header`.
    """
    require_whole_units(spec.recipe, num_views, len(index.names))
    if index.fingerprint != spec.index_fingerprint:
        raise ValueError(
            f"spec.index_fingerprint: expected that of the given index, {index.fingerprint}, "
            f"got {spec.index_fingerprint}"
        )
    return Header(
        spec=spec,
        num_views=num_views,
        shard_names=tuple(index.names),
        rows_S=np.asarray(index.rows_S, np.int64),
        basis_layout={name: (array.dtype.str, array.shape) for name, array in sorted(basis_arrays.items())},
        basis_digest=array_digest(basis_arrays, "basis").hex() if basis_arrays else "",
        made_with=library_versions() if made_with is None else dict(made_with),
        class_names=tuple(class_names),
        num_skipped=index.num_skipped,
    )


def require_index(made_of: Header, index: IndexLike, where: str) -> None:
    """CacheError saying what differs, unless a cache was made from the shards of that index.

    Args:
        made_of: the header of the cache. where: what the message calls the cache.
    """
    if made_of.spec.index_fingerprint != index.fingerprint:
        step = "use the shards that the cache was made from, or make a new cache for these"
        raise CacheError(f"{where}: made from other shards: {_shards_differ(made_of, index)}; {step}")


def _shards_differ(made_of: Header, index: IndexLike) -> str:
    """Describe how the shards of an index differ from those of a cache, as far as names and counts tell."""
    rows = dict(zip(made_of.shard_names, made_of.rows_S.tolist(), strict=True))
    rows_here = dict(zip(index.names, index.rows_S.tolist(), strict=True))
    total, total_here = sum(rows.values()), sum(rows_here.values())
    if total != total_here:
        gone = [name for name in rows if name not in rows_here]
        question = "perhaps another set, such as the validation set"
        if gone and len(gone) < len(rows) and all(rows.get(name) == num_rows for name, num_rows in rows_here.items()):
            question = f"{', '.join(gone[:3])}{' …' if len(gone) > 3 else ''} missing"
        here = f"these hold {count(total_here, 'sample')} (shards: {len(rows_here)})"
        return f"{here}, the cache has {total} (shards: {len(rows)}): {question}"
    if list(rows) != list(rows_here):
        other = next(name for name in rows_here if name not in rows or len(rows) == len(rows_here))
        return f"as many samples, in other shards or another order: {other} here, {next(iter(rows))} first in the cache"
    differing = [name for name in rows if rows[name] != rows_here[name]]
    if differing:
        name, how_many = differing[0], f"{len(differing)} of {count(len(rows), 'shard')} differ"
        return f"{how_many}: {name} has {count(rows_here[name], 'sample')}, {rows[name]} in the cache"
    return (
        f"the same {count(len(rows), 'shard')} and {count(total, 'sample')} by name and number, but other images, "
        "labels, keys or class names: an image was replaced, or the shards were written again with other class names "
        "or in another order"
    )


def require_whole_units(recipe: ViewRecipe, num_views: int, num_shards: int = 1) -> None:
    """ValueError unless the views are a positive number of whole view blocks, in no more units than can be opened."""
    per_unit = recipe.block_views
    if num_views // per_unit * num_shards > _MOST_UNITS:
        most = max(_MOST_UNITS // num_shards, 1) * per_unit
        raise ValueError(
            f"num_views: expected at most {count(most, 'view')} of each image, in chunks of {per_unit} and "
            f"{count(num_shards, 'shard')}; got {num_views:,}"
        )
    if num_views < 1 or num_views % per_unit:
        below = num_views // per_unit * per_unit
        near = f"{below} or {below + per_unit}" if below > 0 else str(per_unit)
        raise ValueError(
            f"num_views: expected a multiple of recipe.block_views = {per_unit}, got {num_views}; use {near}"
        )


def header_to_attributes(header: Header) -> dict[str, Any]:
    """The root attributes, with a digest over all of them: JSON has no checksum of its own."""
    attributes: dict[str, Any] = {
        "kind": CACHE_KIND,
        "spec": header.spec.to_json(),
        "spec_fingerprint": header.spec.fingerprint,
        "num_views": header.num_views,
        "shard_names": list(header.shard_names),
        "shard_rows": [int(rows) for rows in header.rows_S],
        "tail_basis": {name: [dtype, list(shape)] for name, (dtype, shape) in header.basis_layout.items()},
        "tail_basis_digest": header.basis_digest,
        "made_with": header.made_with,
        **({"packed": True} if header.packed else {}),
        **({"class_names": list(header.class_names)} if header.class_names else {}),
        **({"num_skipped": header.num_skipped} if header.num_skipped else {}),
    }
    return {**attributes, "attributes_digest": _attributes_digest(attributes)}


def is_cache(attributes: Mapping[str, Any] | None) -> bool:
    """Whether the attributes of a root group, or their absence, are those of a finished cache."""
    return attributes is not None and attributes.get("kind") == CACHE_KIND


def header_from_attributes(attributes: Mapping[str, Any], where: str) -> Header:
    """The inverse of `header_to_attributes`; CacheError: no cache, unfinished, damaged, other version."""
    if not is_cache(attributes):
        raise CacheError(
            f"{where}: expected a teacher cache, got a Zarr group without its attributes; "
            "if creating it was interrupted, run cache-teacher again"
        )
    stored = {name: value for name, value in attributes.items() if name != "attributes_digest"}
    got = _attributes_digest(stored)
    if attributes.get("attributes_digest") != got:
        raise CacheError(
            f"{where}/zarr.json: the attributes are damaged: expected digest {attributes.get('attributes_digest')}, "
            f"got {got}; restore the file from a copy"
        )
    root = checked(stored, _Root, f"{where}/zarr.json", error=CacheError, advice=_ADVICE)
    try:
        spec = CacheSpec.from_json(root.spec)
        require_whole_units(spec.recipe, root.num_views)
    except OtherVersionError as error:
        raise CacheError(f"{where}/zarr.json: {error}") from error
    except ValueError as error:
        raise CacheError(f"{where}/zarr.json: {error}; {_ADVICE}") from error
    header = Header(
        spec=spec,
        num_views=root.num_views,
        shard_names=tuple(root.shard_names),
        rows_S=np.array(root.shard_rows, np.int64),
        basis_layout={name: (dtype, tuple(shape)) for name, (dtype, shape) in root.tail_basis.items()},
        basis_digest=root.tail_basis_digest,
        made_with=root.made_with,
        packed=root.packed,
        class_names=tuple(root.class_names),
        num_skipped=root.num_skipped,
    )
    _require_possible(header, f"{where}/zarr.json")
    return header


def _require_possible(header: Header, where: str) -> None:
    """CacheError for sizes that no cache has: they decide what is allocated, before a byte of it is read."""
    num_shards, rows = len(header.shard_names), int(header.rows_S.max())
    width = sum(np.dtype(dtype).itemsize * (width or 1) for _, dtype, width, _ in header.spec.record.fields())
    basis = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in header.basis_layout.values())
    for what, got, most in (
        ("shard_rows: one for each shard", len(header.rows_S), num_shards),
        ("units", header.num_view_blocks * num_shards, _MOST_UNITS),
        ("bytes of a unit", header.spec.recipe.block_views * rows * width, _MOST_UNIT_BYTES),
        ("bytes of the tail basis", basis, _MOST_BASIS_BYTES),
    ):
        if got > most:
            raise CacheError(f"{where}: {what}: expected at most {most}, got {got}; {_ADVICE}")
    if len(header.rows_S) < num_shards:
        raise CacheError(f"{where}: shard_rows: expected {num_shards} numbers, got {len(header.rows_S)}; {_ADVICE}")


def write_root(objects: "Objects", header: Header) -> None:
    """Write the root group: the last step of creating and of growing."""
    root = {"zarr_format": 3, "node_type": "group", "attributes": header_to_attributes(header)}
    objects.write("zarr.json", json.dumps(root, indent=1).encode())


def read_root(objects: "Objects", key: str = "zarr.json") -> dict[str, Any] | None:
    """The attributes of the root (or another) group; None when there is no such object."""
    return _attributes_in(objects.read([key])[0], f"{objects.place.url}/{key}")


def _attributes_in(data: bytes | None, where: str) -> dict[str, Any] | None:
    if data is None:
        return None
    root = parse_json(data, where, error=CacheError, advice=_RESTORE)
    return checked(root, _Group, where, error=CacheError, advice=f"expected a Zarr v3 group; {_RESTORE}").attributes


def header_at(url: str | Path) -> Header | None:
    """Read a cache's header, of a remote place with one request; None where there is no cache.

    Errors:
        ValueError for a place that cannot be one; CacheError for a root that is damaged or not of a cache, or a server
        that cannot be reached.
    """
    place = Place.parse(url, writable=False)
    if place.folder is not None:
        attributes = _attributes_in(read_file(place.folder / "zarr.json"), f"{place.url}/zarr.json")
    else:
        from teacher_cache.store.zarr_objects import Objects

        objects = Objects.at(place, writable=False)
        try:
            attributes = read_root(objects)
        finally:
            objects.close_session()
    return None if attributes is None else header_from_attributes(attributes, place.url)


def local_header(url: str | Path) -> Header | None:
    """Read a local cache's header; None for a remote place; CacheError where there is no cache."""
    place = Place.parse(url, writable=False)
    header = None if place.folder is None else header_at(url)
    if header is None and place.folder is not None:
        raise no_cache(place)
    return header


def no_cache(place: Place) -> CacheError:
    """The error for a place without a cache; it names the cache that the user may have meant."""
    if place.folder is not None and is_run_folder(place.folder):
        return CacheError(
            f"{place.url}: a run, not a teacher cache: give the cache that it was trained with; to let its network "
            f"teach, make a cache with cache-teacher --teacher-weights {place.url} --cache NEW"
        )
    if place.folder is not None and is_shards_folder(place.folder):
        return CacheError(
            f"{place.url}: shards, not a teacher cache: they are given by --shards; make a cache of them with "
            f"cache-teacher --shards {place.url} --cache NEW"
        )
    meant = suggestion(place.folder, is_cache_folder) if place.folder is not None else ""
    what = what_is(place.folder) if place.folder is not None else ""
    got = f", but {what}" if what else " (no zarr.json)"
    return CacheError(f"{place.url}: no cache here{got}; {meant or 'make one with cache-teacher'}")


def _is_unfinished(entry: Path) -> bool:
    """Whether an entry of a folder is an array without a root: metadata, and at most its chunks."""
    if not entry.is_dir():
        return entry.name == LOCK_NAME
    files = (path.relative_to(entry) for path in below(entry))
    return all(file.name.startswith(("zarr.json", ".zarr.json.")) or "c" in file.parts for file in files)


CACHE_FOLDER = FolderKind(what="a cache", command="cache-teacher", is_ours=is_cache_folder, begun=_is_unfinished)
"""A folder that a command may write a cache into; whether the cache in it fits is checked elsewhere."""


def check_basis(header: Header, arrays: Mapping[str, NDArray[Any]], url: str) -> None:
    """CacheError unless the arrays of the tail basis are those that the cache was made with."""
    if (got := array_digest(arrays, "basis").hex()) != header.basis_digest:
        raise CacheError(f"{url}/tail_basis: expected digest {header.basis_digest}, got {got}; restore it from a copy")


def _attributes_digest(attributes: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(attributes))).hexdigest()
