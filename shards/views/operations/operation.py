"""Define an operation on the pixels of a view: how it is drawn, and what it does.

An operation is a name and one number. Those that treat every pixel alike and look at nothing else are tables of 256
values; where several meet they are composed before the image is touched, which is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.rng import Stream

# H, W of a view; C = 3; L = 256 levels.

Image = NDArray[np.uint8]
Table = NDArray[np.uint8]
Fill = tuple[int, int, int]
LEVEL_L = np.arange(256)
GREY_C = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow."""


class Operation(NamedTuple):
    """What is done to the pixels: a name of the table of operations, and its one number, in that operation's unit."""

    name: str
    value: float = 0.0


class Draw(NamedTuple):
    """What RandAugment draws an operation's number from.

    Attributes:
        level: magnitude as a share of the full one, usually in [0, 1].
        increasing: whether more magnitude is to mean more effect ("inc1").
        size: side of the view, pixels.
        rng: for signs.
    """

    level: float
    increasing: bool
    size: int
    rng: Stream

    def signed(self, value: float) -> float:
        """The value or its negative, with equal chances."""
        return -value if self.rng.uniform() < 0.5 else value


def no_number(_: Draw) -> float:
    """Of an operation that has no number."""
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationKind:
    """One operation.

    Attributes:
        name: as in view parameters; never reused for other pixels: a changed operation is a new one
            (shards.views.operations.operation_names).
        unit: what its number is.
        drawn: its number in RandAugment.
        table: number → table of 256 levels, where every pixel is treated alike.
        kernel: image, number, fill → image; `fill` is the colour where there is no source pixel. Beside a table it
            gives the same pixels faster, for when the operation stands alone.
    """

    name: str
    unit: str
    drawn: Callable[[Draw], float] = no_number
    table: Callable[[float], Table] | None = None
    kernel: Callable[[Image, float, Fill], Image] | None = None

    def __post_init__(self) -> None:
        """Check that there is a table or a kernel."""
        if self.table is None and self.kernel is None:
            raise ValueError(f"operation {self.name}: expected a table or a kernel, got none")


def to_table(value_L: NDArray[np.floating] | NDArray[np.integer]) -> Table:
    """Clipped to 0 … 255 and truncated, as Pillow does."""
    return value_L.clip(0, 255).astype(np.uint8)


def blend_with(level: int, factor: float) -> Table:
    """level + factor · (pixel − level): ImageEnhance with a uniform degenerate, in float32 like Pillow's blend."""
    delta_L = (LEVEL_L - level).astype(np.float32) * np.float32(factor)
    return to_table(delta_L + np.float32(level))


def drawn_factor(draw: Draw) -> float:
    """The factor of ImageEnhance's operations, 1 = unchanged."""
    if draw.increasing:
        return max(0.1, 1.0 + draw.signed(0.9 * draw.level))
    return 1.8 * draw.level + 0.1
