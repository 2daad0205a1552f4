"""Look up names: in tables that other packages may add to, and with suggestions for misspelt ones.

A package adds a member to an `OpenSet` by an entry point, in its pyproject.toml:

    [project.entry-points."deit_teacher_cache.losses"]
    squared = "my_package.losses:SQUARED"

The name of the entry point is the name of the member. Built-in members win; nothing is imported before it is named.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shards.errors import OtherVersionError, UnknownMemberError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
_PREFIX = "deit_teacher_cache"
_NEAR = 0.6
_SHOWN = 3
_LIST_CHARS = 160
_NAME_BYTES, _PATH_BYTES = 255, 4095  # what Linux takes


class OpenSet(MutableMapping[str, T]):
    """The members of one kind by name: built-in ones in their order, then those of other packages that were named.

    Args:
        group: of the entry points, "losses" for `deit_teacher_cache.losses`.
        what: what messages call a member.
        member_type: the class of a member.
        members: built-in members, each with its `name`.
        places: name → "module:ATTRIBUTE" of built-in members that are imported when they are used.
    """

    def __init__(
        self, group: str, what: str, member_type: type[T], members: Iterable[T] = (), *, places: Mapping[str, str] = {}
    ) -> None:
        """Keep the members; look for nothing yet."""
        self._group, self._what, self._type = f"{_PREFIX}.{group}", what, member_type
        self._places: dict[str, str] = dict(places)
        self._members: dict[str, T | None] = dict.fromkeys(places)
        self._members |= {_name_of(member): member for member in members}
        self._packages: dict[str, str] = {}

    def __getitem__(self, name: str) -> T:
        """The member, imported now if it was not; KeyError for an unknown name, ValueError if it cannot be loaded."""
        if name not in self:
            raise KeyError(name)
        member = self._members[name]
        if member is None:
            member = self._members[name] = self._load(name)
        return member

    def __setitem__(self, name: str, member: T) -> None:
        self._members[name] = member

    def __delitem__(self, name: str) -> None:
        del self._members[name]

    def __iter__(self) -> Iterator[str]:
        """The built-in names, then those of other packages that were asked for."""
        return iter(tuple(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a member, here or in an installed package; imports nothing."""
        if name in self._members or not isinstance(name, str):
            return name in self._members
        points = [point for point in _installed(self._group) if point.name == name]
        if len({point.value for point in points}) > 1:
            places = ", ".join(f"{point.value} of {_package(point)}" for point in points)
            raise ValueError(f"{self._what} {name!r}: two packages add it: {places}; uninstall one of them")
        if points:
            self._members[name], self._places[name] = None, points[0].value
            self._packages[name] = _package(points[0])
        return bool(points)

    def named(self, name: str, field: str = "") -> T:
        """The member of that name; UnknownMemberError (a ValueError) that lists all names.

        Args:
            field: what the message calls the setting; default: what a member is called.
        """
        self.require(name, field)
        return self[name]

    def require(self, name: str, field: str = "", *, also: Iterable[str] = ()) -> None:
        """UnknownMemberError (a ValueError) that lists all names, unless there is such a member; imports nothing.

        Args:
            field: what the message calls the setting. also: other values of the setting, for the message.
        """
        if name not in self:
            installed = sorted({point.name for point in _installed(self._group)} - set(self._members))
            names = ", ".join([*also, *self, *installed])
            raise UnknownMemberError(f"{field or self._what}: expected one of {names}, got {name!r}")

    def packages(self, names: Iterable[str]) -> tuple[str, ...]:
        """The packages that add these members, as "NAME==VERSION", sorted; none for built-in ones."""
        return tuple(sorted({self._packages[name] for name in names if name in self and name in self._packages}))

    def _load(self, name: str) -> T:
        module, _, attribute = self._places[name].partition(":")
        origin = f"{self._what} {name!r}: {self._places[name]} of {self._packages.get(name, 'this project')}"
        try:
            member = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{origin} cannot be loaded: {error}; reinstall that package") from error
        if not isinstance(member, self._type) or _name_of(member) != name:
            raise ValueError(f"{origin}: expected a {self._type.__name__} named {name!r}, got {member!r:.200}")
        return member


def require_packages(stored: Iterable[str], installed: tuple[str, ...], what: str) -> None:
    """OtherVersionError unless the packages that an artefact was made with are those installed here."""
    made_with = tuple(stored)
    if made_with != installed:
        command = f"pip install {' '.join(made_with)}" if made_with else f"pip uninstall {' '.join(installed)}"
        expected, got = (", ".join(names) or "none" for names in (made_with, installed))
        raise OtherVersionError(f"{what}: made with other packages: expected {expected}, found {got}; {command}")


def _name_of(member: object) -> str:
    return str(getattr(member, "name", ""))


@cache
def _installed(group: str) -> "tuple[EntryPoint, ...]":
    from importlib.metadata import entry_points  # 20 ms to import, and only names that are not built in need it

    return tuple(entry_points(group=group))


def _package(point: "EntryPoint") -> str:
    return f"{point.dist.name}=={point.dist.version}" if point.dist else "an unknown package"


def unknown(what: str, got: str, known: Iterable[str], *, others: str = "", synonyms: Mapping[str, str] = {}) -> str:
    """The message for a name that does not exist: those that are near, else all of them if they are few.

    Args:
        what: what it would be the name of.
        others: where all of them are listed, for the reader: "see `models`".
        synonyms: what other programs call things that are known here.
    """
    names = sorted(known)
    near = nearest(got, names, synonyms=synonyms)
    listed = f"there are {', '.join(names)}"
    if near:
        suggestion = f"the nearest is {near[0]!r}" + "".join(f", then {name!r}" for name in near[1:])
    else:
        suggestion = "no name is like it" if len(listed) > _LIST_CHARS else ""
    parts = [suggestion, listed if len(listed) <= _LIST_CHARS else others]
    return f"unknown {what} {short(got)!r}: " + "; ".join(part for part in parts if part)


def nearest(got: str, known: Iterable[str], *, synonyms: Mapping[str, str] = {}) -> list[str]:
    """The at most three names that are near, the nearest first: as a whole, or as far as they were typed."""
    word = got.lower().replace("-", "_")
    names = list(known)
    if (meant := synonyms.get(word)) in names:
        return [str(meant)]
    scored = [(max(_alike(word, name), 0.98 * _alike(word, name[: len(word)])), name) for name in names]
    near = [(score, _shared(word, name), name) for score, name in scored if score >= _NEAR]
    return [name for _, _, name in sorted(near, key=lambda entry: (-entry[0], -entry[1], entry[2]))][:_SHOWN]


def similar_words(names: Iterable[str]) -> list[str]:
    """Name the classes that may be one: their names differ in case, blanks, - and _, or Unicode form alone."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        words = re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold())
        groups.setdefault(" ".join(word for word in words if word), []).append(name)
    alike = [" and ".join(map(repr, group)) for same, group in groups.items() if same and len(group) > 1]
    if not alike:
        return []
    more = f"; and {len(alike) - _SHOWN} more such groups" if len(alike) > _SHOWN else ""
    return [f"classes with similar names: {'; '.join(alike[:_SHOWN])}{more}. If they are one class, rename one"]


def short(text: str, chars: int = 60) -> str:
    """A text that a message can quote, whatever somebody typed."""
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


def _shared(word: str, name: str) -> int:
    """Letters that both begin with."""
    return next((n for n, (a, b) in enumerate(zip(word, name, strict=False)) if a != b), min(len(word), len(name)))


def _alike(word: str, name: str) -> float:
    """In [0, 1]; the bound that costs little first, as there may be thousands of names."""
    matcher = SequenceMatcher(None, word, name)
    return matcher.ratio() if matcher.real_quick_ratio() >= _NEAR and matcher.quick_ratio() >= _NEAR else 0.0


def as_path(where: str, text: str) -> Path:
    """Return the path that a text is; ValueError, naming the flag or field, where it can be none: see `no_path`."""
    if words := no_path(text):
        raise ValueError(f"{where}: {words}")
    return Path(text)


def no_path(path: str) -> str:
    """Say why a text can be no path on the file systems of Linux, such as its length; "" for one that they take."""
    if "\0" in path:
        return f"expected a path, got one with a NUL character: {short(path)}"
    longest = max(path.split("/"), key=lambda name: len(os.fsencode(name)))
    if (num_bytes := len(os.fsencode(longest))) > _NAME_BYTES:
        return f"expected names of at most {_NAME_BYTES} bytes in a path, got {num_bytes} bytes: {short(longest)}"
    if (num_bytes := len(os.fsencode(path))) > _PATH_BYTES:
        return f"expected a path of at most {_PATH_BYTES:,} bytes, got {num_bytes:,}: {short(path)}"
    return ""
