"""Stage 2: students from shards and a teacher cache, any λ, any τ, one or many on a pass.

    recipe    which students there are and how each is trained
    feed      the door: views, labels and the teacher's answers in any training loop
    learn     network, losses, optimiser, trainer, process group, evaluation
    run       the loop; a run with its directory, exact resume, export
    sweep     maps of λ × τ;  report: what came of it;  cost: what it costs

The names of `__all__` are what other code may import; they are loaded when they are asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student.feed.feed import Feed

__all__ = ["Feed"]

_DOORS = {"Feed": "student.feed.feed"}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: importing the package imports no torch."""
    from importlib import import_module

    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
