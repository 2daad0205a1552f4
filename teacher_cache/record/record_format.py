"""What a record consists of: the user's dial (kind, bytes) and the arrays that it becomes on disk.

`num_bytes` is the budget of one view *on disk*, everything included: the arrays named by `fields()`, the pixel digest,
and the amortised rest of the store (`STORE_BYTES`). Only "topk" and "lowrank" spend a budget; for the other kinds it is
what the kind needs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

KINDS = ("hard", "topk", "lowrank", "dense8", "dense")

DIGEST_BYTES = 4
"""The crc32c of the view's pixels, kept by the store beside every record."""

STORE_BYTES = 2
"""Allowance per view for the rest of the store: kept full logits (1.8 bytes), headers, checksums, the ledger."""

LEVEL_BITS = 6.0
"""Bits set aside for a level code after the store's compression: measured 4.4 to 5.8 of 8, more for peaky teachers."""

DENSE_CLASSES = 64
"""Up to this many classes all logits in 8 bits cost no more than a ranked record."""


class Field(NamedTuple):
    """One array of the store: `width` values of `dtype` per row (None: a scalar), `fill` where nothing was written."""

    name: str
    dtype: str
    width: int | None
    fill: int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFormat:
    """How one teacher output is kept.

    Args:
        kind: "hard" (first class only), "topk" (k classes, class means for the others), "lowrank" (k classes and a
            low-rank code of the others), "dense8" (all logits in 8 bits), "dense" (all logits, float32, lossless).
        num_classes: C.
        k: classes kept by name; 0 lets the budget choose.
        num_bytes: budget of one view on disk, digest and overheads included; 0 lets the kind choose (64 for
            "lowrank", 48 for "topk"). For "hard", "dense8" and "dense" it follows from the kind.

    Raises:
        ValueError: naming the field, what it must be and what it is.
    """

    kind: str
    num_classes: int
    k: int = 0
    num_bytes: int = 0

    def __post_init__(self) -> None:
        """Check the fields and fill in what the kind or the budget decides."""
        if self.kind not in KINDS:
            raise ValueError(f"record kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 2 <= self.num_classes < 2**31:
            raise ValueError(f"record num_classes: expected at least 2, got {self.num_classes}")
        if self.kind in ("hard", "dense8", "dense"):
            self._fix("k", 1, "one class is kept by name")
            self._fix("num_bytes", self._fixed_bytes(), "the kind decides it")
            return
        num_bytes = self.num_bytes or (64 if self.kind == "lowrank" else 48)
        object.__setattr__(self, "num_bytes", num_bytes)
        if self.k == 0:
            object.__setattr__(self, "k", self._budget_k())
        if not 1 <= self.k < self.num_classes:
            raise ValueError(f"record k: expected 1 ≤ k < num_classes = {self.num_classes}, got {self.k}")
        if self._record_bits() < self._ranked_bits() + (8 if self.kind == "lowrank" else 0):
            raise ValueError(
                f"record num_bytes: {num_bytes} bytes per view on disk do not hold k = {self.k} classes of "
                f"{self.num_classes} ({self.kind}); give more bytes, a smaller k, or kind 'hard'"
            )

    @classmethod
    def automatic(cls, num_classes: int, num_bytes: int = 64) -> "RecordFormat":
        """The format for a budget: all logits in 8 bits for few classes, else the low-rank record."""
        if num_classes <= DENSE_CLASSES:
            return cls(kind="dense8", num_classes=num_classes)
        return cls(kind="lowrank", num_classes=num_classes, num_bytes=num_bytes)

    @property
    def index_bits(self) -> int:
        """Bits of a class index that carry information: ⌈log2 C⌉."""
        return (self.num_classes - 1).bit_length()

    @property
    def index_dtype(self) -> str:
        """Little-endian dtype of class indices on disk; its largest value is the fill, so it is never a class."""
        return "<u2" if self.num_classes < 2**16 else "<u4"

    @property
    def tail_bytes(self) -> int:
        """Bytes of the low-rank code of the classes that are not kept by name; 0 unless "lowrank"."""
        return (self._record_bits() - self._ranked_bits()) // 8 if self.kind == "lowrank" else 0

    @property
    def needs_basis(self) -> bool:
        """Whether records of this kind are coded against a `TailBasis`."""
        return self.kind in ("topk", "lowrank")

    def fields(self) -> tuple[Field, ...]:
        """The arrays that the store makes for this record, in the order in which they are written."""
        index = Field("class_index", self.index_dtype, self.k, (1 << (16 if self.index_dtype == "<u2" else 32)) - 1)
        if self.kind == "hard":
            return (index,)
        if self.kind == "dense":
            return (index, Field("logit", "<f4", self.num_classes, math.nan))
        if self.kind == "dense8":
            return (index, Field("logit_range", "<f4", None, math.nan), Field("logit", "|u1", self.num_classes, 255))
        fields = (index, Field("logit", "|u1", self.k + 1, 255))
        return (*fields, Field("tail", "|u1", self.tail_bytes, 255)) if self.tail_bytes else fields

    def to_json(self) -> dict[str, Any]:
        """The format as plain JSON values."""
        return {"kind": self.kind, "num_classes": self.num_classes, "k": self.k, "num_bytes": self.num_bytes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RecordFormat":
        """The format that `to_json` wrote."""
        return cls(**dict(value))

    def _fix(self, name: str, fixed: int, why: str) -> None:
        if getattr(self, name) not in (0, fixed):
            raise ValueError(f"record {name}: {fixed} for kind {self.kind!r} ({why}), got {getattr(self, name)}")
        object.__setattr__(self, name, fixed)

    def _fixed_bytes(self) -> int:
        index = 2 if self.num_classes < 2**16 else 4
        logits = {"hard": 0, "dense8": self.num_classes + 4, "dense": 4 * self.num_classes}[self.kind]
        return index + logits + DIGEST_BYTES + STORE_BYTES

    def _record_bits(self) -> int:
        return 8 * (self.num_bytes - DIGEST_BYTES - STORE_BYTES)

    def _ranked_bits(self, k: int = 0) -> int:
        k = k or self.k
        # Index planes that are always zero cost nothing after bit-shuffled compression.
        return math.ceil(k * self.index_bits + LEVEL_BITS * (k + 1))

    def _budget_k(self) -> int:
        per_class = self.index_bits + LEVEL_BITS
        if self.kind == "topk":
            return max(1, min(self.num_classes - 1, int((self._record_bits() - LEVEL_BITS) / per_class)))
        # About a third of the bits for the peaks, measured best at 48 and 64 bytes; beyond 16 classes it is all tail.
        return max(1, min(self.num_classes // 4, 16, round(self._record_bits() / (2.65 * per_class))))
