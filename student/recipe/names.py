"""Names that do not exist, and the nearest one that does."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1, cutoff=0.0)
    return f"unknown {what} {got!r}: the nearest is {near[0]!r}; there are {', '.join(names)}"
