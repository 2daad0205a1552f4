"""Frozen values, with fingerprints, that decide the content of a cache, and the refusal of everything else.

A cache is usable by a reader or writer only if every field of their specs agrees; `require_equal` names each field that
does not, with what was expected and what was found. λ and τ are not here: a cache knows nothing of them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shards.errors import CacheError, OtherVersionError
from shards.names import short
from shards.values import JsonValue, flat, later, require_fields
from shards.views.view_recipe import ViewRecipe
from teacher_cache.record.record_format import RecordFormat

FORMAT_VERSION = 1
_SHOWN = 3
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

# What a reader should do about a field that differs, by the first part of its name.
_NEXT_STEP = {
    "index_fingerprint": "use the shards that the cache was made from, or make a new cache for these",
    "teacher": "use the teacher that the cache was made with, or make a new cache",
    "recipe": "take the recipe from the cache, or make a new cache with yours",
    "record": "take the record format from the cache, or make a new cache with yours",
    "behaviour": "these library versions render other pixels: install those listed under made_with in the cache",
    "format_version": "use the version of this project that made the cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec(JsonValue):
    """The network that answers, and how it is fed and run.

    Attributes:
        name: model name, with its tag.
        weights_sha256: hex digest of the weights.
        precision: "fp32", "tf32", "bf16" or "fp16", of the forward pass.
        input_size: side of the square input, pixels.
        num_classes: C, of the answers.
        mean, std: normalisation of the input, in [0, 1] units.
        class_order: for each class of the answers its number in the network; () where the network's are answered as
            they are.
    """

    KIND = "teacher"
    name: str
    weights_sha256: str
    precision: str
    input_size: int
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    class_order: tuple[int, ...] = later(())

    def __post_init__(self) -> None:
        """Check every field; ValueError names field, value and range."""
        if not self.name:
            raise ValueError("teacher.name: expected a model name, got ''")
        if len(self.weights_sha256) != 64 or set(self.weights_sha256) - set("0123456789abcdef"):
            raise ValueError(f"teacher.weights_sha256: expected 64 hex digits, got {self.weights_sha256!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"teacher.precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, low in (("input_size", 1), ("num_classes", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"teacher.{name}: expected an integer of at least {low}, got {value!r}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"teacher.{name}: expected three numbers, got {getattr(self, name)!r}")
        order = self.class_order
        if order and (len(order) != self.num_classes or len(set(order)) < len(order) or min(order) < 0):
            raise ValueError(
                f"teacher.class_order: expected () or {self.num_classes} numbers, each once, got {short(repr(order))}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """Everything that decides the content of a cache.

    The number of views is not part of it (a cache may grow), nor are library versions: what they do to the pixels is in
    `behaviour`, the versions themselves are kept as provenance.

    Attributes:
        index_fingerprint: of the shard index.
        teacher, recipe, record: see their types.
        behaviour: what the installed libraries render for fixed images and seeds (`shards.views.behaviour`).
        format_version: of the layout on disk.
    """

    index_fingerprint: str
    teacher: TeacherSpec
    recipe: ViewRecipe
    record: RecordFormat
    behaviour: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check that the parts fit each other; ValueError names both fields."""
        if self.teacher.num_classes != self.record.num_classes:
            raise ValueError(
                f"spec: teacher.num_classes is {self.teacher.num_classes} but record.num_classes is "
                f"{self.record.num_classes}; they must agree"
            )
        if self.teacher.input_size != self.recipe.size:
            raise ValueError(
                f"spec: teacher.input_size is {self.teacher.input_size} but recipe.size is {self.recipe.size}; "
                "the teacher must see the student's pixels, so they must agree"
            )
        for name in ("mean", "std"):
            teacher, recipe = getattr(self.teacher, name), getattr(self.recipe, name)
            if tuple(teacher) != tuple(recipe):
                raise ValueError(f"spec: teacher.{name} is {teacher} but recipe.{name} is {recipe}; they must agree")

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical JSON of every field but the recipe's name."""
        data = self.to_json()
        del data["recipe"]["name"]
        return hashlib.sha256(canonical_json(data)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "format_version": self.format_version,
            "index_fingerprint": self.index_fingerprint,
            "teacher": self.teacher.to_json(),
            "recipe": self.recipe.to_json(),
            "record": self.record.to_json(),
            "behaviour": self.behaviour,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CacheSpec":
        """The inverse of `to_json`; ValueError for missing or unknown fields and for another format version."""
        if not isinstance(data, Mapping):
            raise ValueError(f"spec: expected an object, got {type(data).__name__}")
        if (version := data.get("format_version")) != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise (OtherVersionError if newer else ValueError)(
                f"format_version: expected {FORMAT_VERSION}, got {version!r}; " + _NEXT_STEP["format_version"]
            )
        require_fields(cls, data, "spec")
        for name in ("index_fingerprint", "behaviour"):
            if not isinstance(data[name], str):
                raise ValueError(f"spec.{name}: expected a text, got {type(data[name]).__name__}")
        return cls(
            format_version=data["format_version"],
            index_fingerprint=data["index_fingerprint"],
            teacher=TeacherSpec.from_json(data["teacher"]),
            recipe=ViewRecipe.from_json(data["recipe"]),
            record=RecordFormat.from_json(data["record"]),
            behaviour=data["behaviour"],
        )

    def difference(self, other: "CacheSpec") -> list[tuple[str, Any, Any]]:
        """The fields in which `other` differs, as (dotted name, own value, other's); the recipe's name is none."""
        mine, theirs = dict(flat(self.to_json())), dict(flat(other.to_json()))
        names = [*mine, *(name for name in theirs if name not in mine)]
        return [
            (name, mine.get(name), theirs.get(name))
            for name in names
            if name != "recipe.name" and mine.get(name) != theirs.get(name)
        ]


def require_equal(requested: CacheSpec, existing: CacheSpec, where: str) -> None:
    """Refuse a cache of another spec.

    Args:
        requested: what this reader or writer would make.
        existing: what the cache was made with.
        where: the cache's url, for the message.

    Errors:
        CacheError naming the fields that differ, their existing and requested values, and what to do.
    """
    differences = existing.difference(requested)
    if not differences:
        return
    parts = dict.fromkeys(name.split(".")[0] for name, _, _ in differences)
    if "recipe" in parts:
        # Other settings render other pixels: that says nothing about this machine.
        parts.pop("behaviour", None)
    lines = [_line(*item) for item in differences if item[0].split(".")[0] in parts]
    if len(lines) > _SHOWN:
        names = [name for name, _, _ in differences if name.split(".")[0] in parts][_SHOWN:]
        lines[_SHOWN:] = [f"  and {len(names)} more: {short(', '.join(names), 60)}"]
    one = _NEXT_STEP[next(iter(parts))]
    many = f"take {', '.join(parts)} as they are in the cache, or make a new cache with yours"
    step = one if len(parts) == 1 else many
    raise CacheError("\n".join([f"{where}: this cache was made for something else", *lines, step]))


def _line(name: str, existing: Any, requested: Any) -> str:
    if name == "behaviour":
        # Renders, so it imports torch; a spec alone is read without.
        from shards.views.behaviour import behaviour_difference

        names = ", ".join(behaviour_difference(existing, requested))
        return f"  behaviour: this machine renders differently: {short(names, 90)}"
    if name == "teacher.class_order":
        return f"  {name}: by class names the answers belong in another order than they have in the cache"
    return f"  {name}: expected {short(repr(existing), 28)} as there, got {short(repr(requested), 28)}"


def canonical_json(data: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, no white space."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
