"""The names of the operations that recipes draw from, and which operation or crop took the place of which.

An operation whose pixels change is a new one with a name of its own, and a line in `TAKES_PLACE_OF`. A recipe lists the
newer ones that it uses in `versions`; new recipes use the newest. Recipes and caches made before go on with theirs.
"""

from collections.abc import Iterable, Mapping, Sequence

from shards.errors import UnknownMemberError

# What timm calls AutoContrast, Equalize, … TranslateYRel, in its order: RandAugment draws a place in it.
RAND_AUGMENT_OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The choice of a recipe that names no other."""
THREE_AUGMENT_OPERATIONS = ("grey", "solarize", "blur")
COLOR_JITTER_OPERATIONS = ("brightness", "contrast", "color")

WHOLE_CENTER = "center2"
"""The centre crop of the whole picture; "center" of version 0.1 scales a large JPEG while it decodes it."""

TAKES_PLACE_OF: dict[str, str] = {"rotate2": "rotate", WHOLE_CENTER: "center"}
"""Newer operation or crop → the one before."""


def newest_versions(drawn: Iterable[str]) -> tuple[str, ...]:
    """The newest versions that take the place of the operations and crops in `drawn`, sorted; others are left out."""
    after = {old: new for new, old in TAKES_PLACE_OF.items()}
    newest = set()
    for name in drawn:
        last = name
        while last in after:
            last = after[last]
        if last != name:
            newest.add(last)
    return tuple(sorted(newest))


def replaced(versions: Sequence[str]) -> Mapping[str, str]:
    """First operation → the version that a recipe uses instead.

    Errors:
        ValueError for a name that takes no other's place, two for one operation, or another order than sorted.
    """
    version: dict[str, str] = {}
    for name in versions:
        if name not in TAKES_PLACE_OF:
            raise UnknownMemberError(f"expected newer operations out of {', '.join(TAKES_PLACE_OF)}, got {name!r}")
        first = name
        while first in TAKES_PLACE_OF:
            first = TAKES_PLACE_OF[first]
        if first in version:
            raise ValueError(f"expected one version of {first!r}, got {version[first]!r} and {name!r}")
        version[first] = name
    if list(versions) != sorted(versions):
        raise ValueError(f"expected sorted names, got {', '.join(versions)}")
    return version
