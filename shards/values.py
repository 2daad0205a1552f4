"""Frozen values as JSON: checked by their types when they are read, and free to grow.

A field that a later version adds is declared with `later(default)`, where the default means "as it was before". It is
left out of the JSON, and so of every fingerprint, at that value; a file without it was written before it existed. A
field or a member of an open set that is not known here comes from a newer version, and is refused as such.

A value with a property `packages` depends on packages that add to an open set ("NAME==VERSION"). They are part of its
JSON, and so of every fingerprint, where there are any.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, ClassVar, Literal, Self, TypeVar, get_origin, get_type_hints

import msgspec

from shards.errors import OtherVersionError, UnknownMemberError
from shards.names import require_packages

T = TypeVar("T")
_LATER = "later"
_WORDS = "words"
_WITHIN = "within"
PACKAGES = "packages"
_PACKAGE = re.compile(r"[\w.-]+==[\w.+!-]+")


def setting(default: Any, unit: str, meaning: str, *, within: tuple[float, float] | None = None) -> Any:
    """A dataclass field with what a command that lists the fields says of it, and the range of its numbers."""
    return field(default=default, metadata={_WORDS: (unit, meaning), _WITHIN: within})


def later(default: Any, *, words: tuple[str, str] | None = None, within: tuple[float, float] | None = None) -> Any:
    """A dataclass field added after the first release; `default` means "as it was before".

    Args:
        words: unit and meaning, as of `setting`. within: the range of its numbers.
    """
    return field(default=default, metadata={_LATER: True, _WORDS: words, _WITHIN: within})


def words_of(cls: Any) -> dict[str, tuple[str, str]]:
    """Unit and meaning of the fields of a dataclass that say them, by name."""
    return {item.name: words for item in fields(cls) if (words := item.metadata.get(_WORDS))}


def ranges_of(cls: Any) -> dict[str, tuple[float, float]]:
    """The range of the numbers in the fields of a dataclass that say it, by name."""
    return {item.name: within for item in fields(cls) if (within := item.metadata.get(_WITHIN))}


def to_json(value: Any) -> dict[str, Any]:
    """The fields of a flat dataclass as JSON types, without later fields that are as before; with its packages."""
    packages = getattr(value, PACKAGES, ())
    return ({PACKAGES: list(packages)} if packages else {}) | {
        item.name: _plain(getattr(value, item.name))
        for item in fields(value)
        if not (_is_later(item) and getattr(value, item.name) == item.default)
    }


def from_json(cls: type[T], data: Any, what: str) -> T:
    """The value that `to_json` wrote.

    Args:
        what: what messages call it.

    Errors:
        ValueError for something other than an object, missing fields, a field of another type, and whatever the value
        itself refuses; OtherVersionError for fields and members of open sets that are not known here.
    """
    require_fields(cls, data, what)
    data = dict(data)
    packages = _package_names(data.pop(PACKAGES, []), what)
    try:
        msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UnknownMemberError):
            raise _unknown_here(error.__cause__, what, packages) from None
        raise ValueError(f"{what}: {validation_words(error)}") from None
    except OverflowError:
        raise ValueError(f"{what}: a number is too large") from None
    # Numbers stay as they were written: 1 and 1.0 are different bytes of a fingerprint.
    return cls(**{name: _frozen(value) for name, value in data.items()})


class JsonValue:
    """A base of frozen dataclasses that go through JSON; `KIND` is what messages call them."""

    __slots__ = ()
    KIND: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; later ones only where they are not as before."""
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The inverse of `to_json`; ValueError for other fields, types and packages."""
        value = from_json(cls, data, cls.KIND)
        require_packages(data.get(PACKAGES, ()), getattr(value, PACKAGES, ()), cls.KIND)
        return value


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested objects under dotted names."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _package_names(packages: Any, what: str) -> list[str]:
    names = [name for name in packages if isinstance(name, str)] if isinstance(packages, list) else []
    if names != packages or not all(map(_PACKAGE.fullmatch, names)):
        raise ValueError(f"{what}.{PACKAGES}: expected a list of NAME==VERSION, got {packages!r:.80}")
    return names


def _unknown_here(error: UnknownMemberError, what: str, packages: list[str]) -> OtherVersionError:
    """The error of a stored name that is not known here: a package is missing, or this project is older."""
    if packages:
        return OtherVersionError(f"{what}: {error}; it comes with a package: pip install {' '.join(packages)}")
    return OtherVersionError(f"{what}: made by a newer version: {error}; update this project to read it")


def check_fields(cls: type, values: Mapping[str, Any], what: str) -> None:
    """ValueError unless the values, of some fields of a dataclass, are of the types of those fields."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        if get_origin(hints[name]) is Literal:
            continue  # the value itself says what there is
        try:
            msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"{what}.{name}: {validation_words(error)}: {value!r}") from None


def require_fields(cls: type, data: Any, what: str) -> None:
    """ValueError unless `data` is an object with the fields of `cls`, of which only later ones may be absent."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}: expected an object, got {type(data).__name__}")
    known = {item.name: item for item in fields(cls)}
    unknown = sorted(map(str, set(data) - set(known) - ({PACKAGES} if hasattr(cls, PACKAGES) else set())))
    missing = sorted(name for name, item in known.items() if name not in data and not _is_later(item))
    if missing:
        also = f", unknown fields {unknown}" if unknown else ""
        raise ValueError(f"{what}: missing fields {missing}{also}; the file is damaged or not what it should be")
    if unknown:
        advice = "update this project to read it"
        raise OtherVersionError(f"{what}: made by a newer version: unknown fields {unknown}; {advice}")


def _is_later(item: "Field[Any]") -> bool:
    assert not (_LATER in item.metadata and item.default is MISSING), "`later` has a default"
    return _LATER in item.metadata


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def validation_words(error: msgspec.ValidationError) -> str:
    """msgspec's message with the field in front instead of a path behind."""
    text, _, path = str(error).partition(" - at `$")
    name = path.strip(".`")
    text = text[0].lower() + text[1:]
    return f"{name}: {text}" if name else text
