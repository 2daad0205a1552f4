"""Views that are nearly, not exactly, what the teacher saw (`--pixels near`): what is proven of them, and the bounds.

Strict is the default: one pixel of another value ends a run. Near is for a machine that rounds otherwise. No byte is
kept for it, since the parameters of a view follow from what is proven already:

- the sample: the index is the cache's by fingerprint, and the reader compares every image with its crc32c in the index;
- the place: the digest of its unit says that the record is of this view, shard and row, under this spec;
- the parameters and the mixing: pure functions of the spec's recipe and that place, drawn by code whose results, for
  hundreds of views and mixings, have the digest that the cache's maker recorded (its part "draw").

So a view that differs was rendered from the same image with the same parameters. How far it can be off is bounded
twice: each part that this machine renders otherwise is compared with shipped pixels of its probes, and must be within
half a level on average; and no more views may differ than such parts are drawn in.
"""

import math
from dataclasses import dataclass

from shards.errors import CacheError
from shards.rng import stream
from shards.views.behaviour import behaviour_difference, behaviour_like, has_parts
from shards.views.reference import suspects_here
from shards.views.sketch import NEAR_LEVELS, levels_off
from shards.views.view import draw
from shards.views.view_recipe import ViewRecipe
from teacher_cache.store.cache import TeacherCache

STRICT, NEAR = "strict", "near"
POLICIES = (STRICT, NEAR)
_EVERY_VIEW = {"decode", "crop"}
_SAMPLED = 2000
_SIGMAS = 6.0
_ROUNDING = 10_000
"""One view in so many may differ in a part whose probes are alike: a rounding that they did not meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What may differ of the views of a cache.

    Attributes:
        parts: what this machine renders otherwise, by name.
        share: of the views, those that have such a part.
    """

    parts: tuple[str, ...]
    share: float

    def allowed(self, checked: int) -> int:
        """How many of so many views may differ: those of the share, six standard deviations, and rare roundings."""
        spread = _SIGMAS * math.sqrt(self.share * (1.0 - self.share) * checked)
        return min(checked, int(self.share * checked + spread) + 1 + checked // _ROUNDING)


def tolerance_of(cache: TeacherCache) -> Tolerance:
    """What near accepts of a cache on this machine.

    Errors:
        CacheError when the parameters are not proven equal, or a part is too far off to be a rounding.
    """
    spec = cache.spec
    parts = behaviour_difference(spec.behaviour, behaviour_like(spec.behaviour, spec.recipe))
    if "draw" in parts:
        raise CacheError(
            f"{cache.url}: this machine draws other parameters than the one that made it, so its views are other crops "
            f"and operations, not nearly the same; use the library versions that it was made with ({cache.made_with})"
        )
    if not has_parts(spec.behaviour):
        if parts:
            raise CacheError(
                f"{cache.url}: its digest, of version 0.1, does not say what differs on this machine, so nothing "
                "proves that it is rendering alone; train where it was made, or make it anew"
            )
        parts = suspects_here(spec.recipe)
    far = {part: off for part in parts if (off := levels_off(part)) > NEAR_LEVELS}
    if far:
        said = ", ".join(f"{part} by {off:.2f}" if math.isfinite(off) else f"{part} (no pixels to compare with)"
                         for part, off in far.items())  # fmt: skip
        raise CacheError(
            f"{cache.url}: more than rounding differs on this machine: expected at most {NEAR_LEVELS} levels on "
            f"average, got {said}; install the library versions the cache was made with ({cache.made_with}), or make "
            "it here"
        )
    return Tolerance(parts=parts, share=share_of(spec.recipe, parts))


def share_of(recipe: ViewRecipe, parts: tuple[str, ...]) -> float:
    """The share of a recipe's views that one of the parts renders, from a sample of 2,000 views; in [0, 1]."""
    if not parts or _EVERY_VIEW & set(parts):
        return float(bool(parts))
    having = 0
    for number in range(_SAMPLED):
        params = draw(recipe, (375, 500), stream(recipe.seed, "share", number))
        has = {operation.name for operation in params.operations}
        has |= {"flip"} if params.flip else set()
        has |= {"erase"} if params.erased is not None else set()
        having += bool(has & set(parts))
    return having / _SAMPLED
