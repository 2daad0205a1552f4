"""RandAugment settings from timm's strings: "rand-m9-mstd0.5-inc1" is DeiT's.

Sections, in any order: m mean magnitude (10), n operations (2), p probability of each (0.5), mstd standard deviation of
the magnitude (0; above 100 uniform in [0, m]), mmax upper clip of the magnitude (10), inc1 the variants whose effect
grows with the magnitude. timm skips sections that it cannot read; here they are errors.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

FULL_MAGNITUDE = 10.0  # the magnitude that means "all of it"
_SECTION = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)")
# name: lowest, highest, whether whole
_RANGES = {
    "m": (0.0, 30.0, True),
    "n": (1.0, 32.0, True),
    "p": (0.0, 1.0, False),
    "mstd": (0.0, math.inf, False),
    "mmax": (1.0, 30.0, True),
    "inc": (0.0, 1.0, True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment:
    """The settings: magnitude m, num_operations n, prob p, magnitude_std mstd, magnitude_max mmax, increasing inc."""

    magnitude: float
    num_operations: int
    prob: float
    magnitude_std: float
    magnitude_max: float
    increasing: bool


@lru_cache(maxsize=64)
def parse_rand_augment(text: str) -> RandAugment:
    """The settings that a string such as "rand-m9-mstd0.5-inc1" names.

    Errors:
        ValueError naming the section: unknown (timm's transform sets t… are), given twice, or out of range.
    """
    first, *sections = text.split("-")
    if first != "rand":
        raise ValueError(f"recipe.rand_augment: expected a string such as 'rand-m9-mstd0.5-inc1', got {text!r}")
    value: dict[str, float] = {}
    for section in sections:
        name, number = _read_section(section, text)
        if name in value:
            raise ValueError(f"recipe.rand_augment: {text!r} gives {name} twice")
        value[name] = number
    std = value.get("mstd", 0.0)
    return RandAugment(
        magnitude=value.get("m", FULL_MAGNITUDE),
        num_operations=int(value.get("n", 2)),
        prob=value.get("p", 0.5),
        magnitude_std=math.inf if std > 100 else std,
        magnitude_max=value.get("mmax", FULL_MAGNITUDE),
        increasing=value.get("inc", 0.0) == 1.0,
    )


def _read_section(section: str, text: str) -> tuple[str, float]:
    match = _SECTION.fullmatch(section)
    if match is None:
        raise ValueError(
            f"recipe.rand_augment: cannot read the section {section!r} of {text!r};"
            f" sections are one of {', '.join(_RANGES)} and a number"
        )
    name, number = match[1], float(match[2])
    low, high, whole = _RANGES[name]
    if not low <= number <= high or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise ValueError(
            f"recipe.rand_augment: {name} of {text!r}: expected {kind} in [{low:g}, {high:g}], got {number:g}"
        )
    return name, number
