"""What a record consists of: the user's dial (kind, bytes) and the arrays that it becomes on disk.

`num_bytes` is the budget of one view *on disk*, everything included: the arrays named by `fields()`, the pixel digest,
and the amortised rest of the store (`STORE_BYTES`). Kinds without a budget take what they need.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shards.values import from_json, later, to_json
from teacher_cache.record.kinds.record_kind import Field, RecordKind, ranked_bits
from teacher_cache.record.kinds.table import kind_named

DIGEST_BYTES = 4
"""The crc32c of the view's pixels, kept by the store beside every record."""

STORE_BYTES = 2
"""Allowance per view for the rest of the store: kept full logits (1.8 bytes), headers, checksums, the ledger."""

FIDELITY_FLOOR = 64
"""Views of each view block at least that keep their full logits, where they are cheap."""

_FIDELITY_SHARE = 0.25  # of the budget
_FULL_BYTES = 2  # of a full logit
_MOST_BYTES = 1 << 20

DENSE_CLASSES = 64
"""Up to this many classes all logits in 8 bits cost no more than a ranked record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFormat:
    """How one teacher output is kept.

    Args:
        kind: a name of `kinds.table.KINDS`.
        num_classes: C.
        k: classes kept by name; 0 lets the budget choose.
        num_bytes: budget of one view on disk, digest and overheads included; 0 takes the kind's own. For kinds without
            a budget it follows from the kind.
        fidelity_floor: views of each view block at least that keep their full logits, so that a small cache can be
            measured too; see `fitted_to`.

    Raises:
        ValueError: naming the field, what it must be and what it is.
    """

    kind: str
    num_classes: int
    k: int = 0
    num_bytes: int = 0
    fidelity_floor: int = later(FIDELITY_FLOOR)

    def __post_init__(self) -> None:
        """Check the fields and fill in what the kind or the budget decides."""
        kind = kind_named(self.kind)
        if not 2 <= self.num_classes < 2**31:
            raise ValueError(f"record num_classes: expected at least 2, got {self.num_classes}")
        if self.fidelity_floor < 1:
            raise ValueError(f"record fidelity_floor: expected at least 1, got {self.fidelity_floor}")
        if not kind.default_bytes:
            index_bytes = 2 if self.num_classes < 2**16 else 4
            logit_bytes = kind.logit_bytes(self.num_classes)
            self._fix("k", 1, "one class is kept by name")
            self._fix("num_bytes", index_bytes + logit_bytes + DIGEST_BYTES + STORE_BYTES, "the kind decides it")
            return
        if not 0 <= self.num_bytes <= _MOST_BYTES:
            raise ValueError(f"record num_bytes: expected 0 to {_MOST_BYTES} bytes per view, got {self.num_bytes}")
        object.__setattr__(self, "num_bytes", self.num_bytes or kind.default_bytes)
        if self.k == 0:
            object.__setattr__(self, "k", kind.budget_k(self))
        if not 1 <= self.k < self.num_classes:
            raise ValueError(f"record k: expected 1 ≤ k < num_classes = {self.num_classes}, got {self.k}")
        if self.record_bits < ranked_bits(self.num_classes, self.k) + kind.min_tail_bits:
            raise ValueError(
                f"record num_bytes: {self.num_bytes} bytes per view on disk do not hold k = {self.k} classes of "
                f"{self.num_classes} ({self.kind}); give more bytes, a smaller k, or kind 'hard'"
            )

    @classmethod
    def automatic(cls, num_classes: int, num_bytes: int = 64) -> "RecordFormat":
        """The format for a budget: all logits in 8 bits for few classes, else the low-rank record."""
        if num_classes <= DENSE_CLASSES:
            return cls(kind="dense8", num_classes=num_classes)
        return cls(kind="lowrank", num_classes=num_classes, num_bytes=num_bytes)

    @classmethod
    def chosen(cls, kind: str, num_classes: int, *, k: int = 0, num_bytes: int = 0) -> "RecordFormat":
        """The format of a kind by name, or of the one that suits the number of classes for "auto"."""
        if kind == "auto":
            kind = cls.automatic(num_classes).kind
        return cls(kind=kind, num_classes=num_classes, k=k, num_bytes=num_bytes)

    def fitted_to(self, num_views: int, num_shards: int) -> "RecordFormat":
        """The format for a set with so many views in a view block: full logits cost at most a quarter of the budget.

        64 views at two bytes a class are nothing in a large set, and more than the records of 200 images. Each of the
        `num_shards` units of a view block keeps as many, one at least.
        """
        if not self.entry.measurable:
            return self
        affordable = int(num_views * self.num_bytes * _FIDELITY_SHARE / (_FULL_BYTES * self.num_classes))
        whole = max(1, affordable // num_shards) * num_shards
        return self if affordable >= FIDELITY_FLOOR else replace(self, fidelity_floor=min(FIDELITY_FLOOR, whole))

    @property
    def entry(self) -> RecordKind:
        """The kind's value in the table."""
        return kind_named(self.kind)

    @property
    def record_bits(self) -> int:
        """Bits that the budget leaves for the record itself."""
        return 8 * (self.num_bytes - DIGEST_BYTES - STORE_BYTES)

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
        """Bytes of the code of the classes that are not kept by name; 0 for kinds without one."""
        return (self.record_bits - ranked_bits(self.num_classes, self.k)) // 8 if self.entry.has_tail else 0

    @property
    def needs_basis(self) -> bool:
        """Whether records of this kind are coded against a `TailBasis`."""
        return self.entry.needs_basis

    def fields(self) -> tuple[Field, ...]:
        """The arrays that the store makes for this record, in the order in which they are written."""
        return self.entry.fields(self)

    def to_json(self) -> dict[str, Any]:
        """The format as plain JSON values."""
        return to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RecordFormat":
        """The format that `to_json` wrote; ValueError for other fields and types."""
        return from_json(cls, value, "record")

    def _fix(self, name: str, fixed: int, why: str) -> None:
        if getattr(self, name) not in (0, fixed):
            raise ValueError(f"record {name}: {fixed} for kind {self.kind!r} ({why}), got {getattr(self, name)}")
        object.__setattr__(self, name, fixed)
