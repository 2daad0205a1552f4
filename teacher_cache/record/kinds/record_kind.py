"""Define a kind of record: what others must know of it, how it spends bytes, and how its codec is made.

Nothing here or below knows the table of kinds: a kind and its codec are told a `RecordShape`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from teacher_cache.record.tail_basis import TailBasis


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordShape:
    """The sizes that the arrays and the codec of a record depend on.

    Attributes:
        num_classes: C.
        k: classes kept by name.
        tail_bytes: of the code of the other classes; 0 without one.
    """

    num_classes: int
    k: int
    tail_bytes: int = 0

    @property
    def index_dtype(self) -> str:
        """Little-endian dtype of class indices on disk; its largest value is the fill, so it is never a class."""
        return "<u2" if self.num_classes < 2**16 else "<u4"


class Field(NamedTuple):
    """One array of the store: `width` values of `dtype` per row (None: a scalar), `fill` where nothing was written."""

    name: str
    dtype: str
    width: int | None
    fill: int | float


class KindCodec(Protocol):
    """Encodes (B, C) float32 logits into the fields of a format, and decodes them for any τ.

    A codec that clamps values to calibrated ranges counts the rows in `num_clamped`.
    """

    num_clamped: int

    def encode(self, logit_BC: "NDArray[np.float32]") -> "dict[str, NDArray[np.generic]]":
        """The arrays of the fields, each with B rows."""

    def log_prob(self, record: "Mapping[str, Tensor]", temperature: float) -> "Tensor":
        """Log softmax at τ, (B, C) float32; ValueError where the kind has no soft labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How a kind spends the bits that its user gives it.

    Attributes:
        default_bytes: of a view on disk when no number is given.
        k: (C, bits) → classes kept by name.
        least_bits: (C, k) → bits that the record needs at least.
        tail_bytes: (C, k, bits) → bytes of the code of the other classes.
    """

    default_bytes: int
    k: Callable[[int, int], int]
    least_bits: Callable[[int, int], int]
    tail_bytes: Callable[[int, int, int], int] = lambda num_classes, k, bits: 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind:
    """One way of keeping a teacher's output.

    Attributes:
        name: as on the command line and in a cache's spec.
        summary: what is kept, in a few words.
        fields: the arrays of a record of this kind, `class_index` first, in the order in which they are written.
        codec: shape and basis (None unless `needs_basis`) to a codec.
        soft: whether it holds probabilities; without, it serves losses of first classes only.
        exact: whether they are the teacher's to the bit, so that there is no error to measure.
        needs_basis: whether it is coded against a `TailBasis`.
        budget: how it spends a number of bytes; None where the kind decides them by itself and keeps one class by name.
        logit_bytes: bytes of the logits of a view, for kinds without a budget, from C.
        logits: the teacher's logits to the bit, from the fields of a batch; None for kinds that do not hold them.
    """

    name: str
    summary: str
    fields: Callable[[RecordShape], tuple[Field, ...]]
    codec: "Callable[[RecordShape, TailBasis | None], KindCodec]"
    soft: bool = True
    exact: bool = False
    needs_basis: bool = False
    budget: Budget | None = None
    logit_bytes: Callable[[int], int] = lambda num_classes: 0
    logits: "Callable[[Mapping[str, Tensor]], Tensor] | None" = None

    @property
    def measurable(self) -> bool:
        """Whether its error can be measured against full logits: it has probabilities, and they are not exact."""
        return self.soft and not self.exact


def index_field(shape: RecordShape) -> Field:
    """The classes kept by name, likeliest first; the largest value of the dtype is the fill, so it is never a class."""
    fill = (1 << (16 if shape.index_dtype == "<u2" else 32)) - 1
    return Field("class_index", shape.index_dtype, shape.k, fill)
