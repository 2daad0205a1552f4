"""Names that do not exist, and those near them that do."""

from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher

_NEAR = 0.6
_SHOWN = 3
_LIST_CHARS = 160


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
        said = f"the nearest is {near[0]!r}" + "".join(f", then {name!r}" for name in near[1:])
    else:
        said = "no name is like it" if len(listed) > _LIST_CHARS else ""
    parts = [said, listed if len(listed) <= _LIST_CHARS else others]
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
