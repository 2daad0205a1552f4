"""What a kind of record is: what everything around it must know, and how its codec is made."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.record.tail_basis import TailBasis

LEVEL_BITS = 6.0
"""Bits set aside for a level code after the store's compression: measured 4.4 to 5.8 of 8, more for peaky teachers."""


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
class RecordKind:
    """One way of keeping a teacher's output.

    Attributes:
        name: as on the command line and in a cache's spec.
        summary: what is kept, in a few words.
        fields: the arrays of a format of this kind, `class_index` first, in the order in which they are written.
        codec: format and basis (None unless `needs_basis`) to a codec.
        soft: whether it holds probabilities; without, it serves losses of first classes only.
        exact: whether they are the teacher's to the bit, so that there is no error to measure.
        needs_basis: whether it is coded against a `TailBasis`.
        default_bytes: budget of a view on disk when none is given; 0 where the kind decides the bytes by itself.
        logit_bytes: bytes of the logits of a view, for kinds without a budget, from C.
        min_tail_bits: bits that the budget must leave for the tail.
        budget_k: classes kept by name, from the format's budget.
        logits: the teacher's logits to the bit, from the fields of a batch; None for kinds that do not hold them.
    """

    name: str
    summary: str
    fields: "Callable[[RecordFormat], tuple[Field, ...]]"
    codec: "Callable[[RecordFormat, TailBasis | None], KindCodec]"
    soft: bool = True
    exact: bool = False
    needs_basis: bool = False
    default_bytes: int = 0
    logit_bytes: Callable[[int], int] = lambda num_classes: 0
    min_tail_bits: int = 0
    has_tail: bool = False
    budget_k: "Callable[[RecordFormat], int]" = lambda record_format: 1
    logits: "Callable[[Mapping[str, Tensor]], Tensor] | None" = None

    @property
    def measurable(self) -> bool:
        """Whether its error can be measured against full logits: it has probabilities, and they are not exact."""
        return self.soft and not self.exact


def index_field(record_format: "RecordFormat") -> Field:
    """The classes kept by name, likeliest first; the largest value of the dtype is the fill, so it is never a class."""
    fill = (1 << (16 if record_format.index_dtype == "<u2" else 32)) - 1
    return Field("class_index", record_format.index_dtype, record_format.k, fill)


def ranked_bits(num_classes: int, k: int) -> int:
    """Bits of k classes by name with their levels."""
    # Index planes that are always zero cost nothing after bit-shuffled compression.
    return math.ceil(k * (num_classes - 1).bit_length() + LEVEL_BITS * (k + 1))


def ranked_fields(record_format: "RecordFormat") -> tuple[Field, ...]:
    """Classes, their levels and the mass code, and the tail code if there is one."""
    fields = (index_field(record_format), Field("logit", "|u1", record_format.k + 1, 255))
    tail_bytes = record_format.tail_bytes
    return (*fields, Field("tail", "|u1", tail_bytes, 255)) if tail_bytes else fields


def ranked_codec(record_format: "RecordFormat", basis: "TailBasis | None") -> Any:
    """The codec of k classes and a tail model."""
    from teacher_cache.record.ranked import RankedCodec

    assert basis is not None, "the format's kind says that it needs one"
    return RankedCodec(record_format, basis)
