"""Define a record format: the user's dial (kind, bytes) and the arrays that it becomes on disk.

`num_bytes` is the budget of one view *on disk*, everything included: the arrays named by `fields()`, the pixel digest,
and the amortised rest of the store (`STORE_BYTES`). Kinds without a budget take what they need.
"""

import math
from dataclasses import dataclass, replace
from numbers import Real

from shards.text.figures import count
from shards.values import JsonValue, later
from teacher_cache.record.kinds.record_kind import Field, RecordKind, RecordShape
from teacher_cache.record.kinds.table import KINDS

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
"""Up to this many classes all logits in 8 bits cost no more than the low-rank record."""


def require_temperature(temperature: float) -> None:
    """Raise ValueError for a τ that is no finite number above 0."""
    number = isinstance(temperature, Real) and not isinstance(temperature, bool) and math.isfinite(temperature)
    if not number or temperature <= 0:
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature!r:.60}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFormat(JsonValue):
    """How one teacher output is kept; `chosen` makes one from a kind and what the user says.

    Args:
        kind: a name of `kinds.table.KINDS`.
        num_classes: C.
        k: classes kept by name; 1 for kinds without a budget.
        num_bytes: bytes of one view on disk, digest and overheads included.
        fidelity_floor: views of each view block at least that keep their full logits, so that a small cache can be
            measured too; see `fitted_to`.

    Raises:
        ValueError: naming the field, what it must be and what it is.
    """

    KIND = "record"
    kind: str
    num_classes: int
    k: int
    num_bytes: int
    fidelity_floor: int = later(FIDELITY_FLOOR)

    def __post_init__(self) -> None:
        """Check the fields, and that the bytes hold what the kind keeps."""
        _require_classes(self.num_classes)
        if self.fidelity_floor < 1:
            raise ValueError(f"record fidelity_floor: expected at least 1, got {self.fidelity_floor}")
        budget = self.entry.budget
        if budget is None:
            for name, fixed, why in (
                ("k", 1, "one class is kept by name"),
                ("num_bytes", _fixed_bytes(self.entry, self.num_classes), "the kind decides it"),
            ):
                if (got := getattr(self, name)) != fixed:
                    raise ValueError(f"record {name}: {fixed} for kind {self.kind!r} ({why}), got {got}")
            return
        _require_bytes(self.num_bytes)
        if not 1 <= self.k < self.num_classes:
            raise ValueError(f"record k: expected 1 ≤ k < num_classes = {self.num_classes}, got {self.k}")
        if self.record_bits < budget.least_bits(self.num_classes, self.k):
            raise ValueError(
                f"record num_bytes: {self.num_bytes} bytes per view on disk do not hold k = {self.k} of "
                f"{count(self.num_classes, 'class')} ({self.kind}); give more bytes, a smaller k, or kind 'hard'"
            )

    @classmethod
    def automatic(cls, num_classes: int) -> "RecordFormat":
        """The format that suits the number of classes: all logits in 8 bits for few, else the low-rank record."""
        return cls.chosen("auto", num_classes)

    @classmethod
    def chosen(
        cls, kind: str, num_classes: int, *, k: int | None = None, num_bytes: int | None = None
    ) -> "RecordFormat":
        """The format of a kind by name, or of the one that suits the number of classes for "auto".

        Args:
            k: classes kept by name; None lets the budget choose.
            num_bytes: budget of one view on disk; None takes the kind's own.

        Raises:
            ValueError: as the format itself.
        """
        if kind == "auto":
            kind = "dense8" if num_classes <= DENSE_CLASSES else "lowrank"
        entry = KINDS.named(kind)
        _require_classes(num_classes)
        if entry.budget is None:
            fixed = _fixed_bytes(entry, num_classes)
            return cls(
                kind=kind, num_classes=num_classes, k=1 if k is None else k,
                num_bytes=fixed if num_bytes is None else num_bytes,
            )  # fmt: skip
        num_bytes = entry.budget.default_bytes if num_bytes is None else num_bytes
        _require_bytes(num_bytes)
        k = entry.budget.k(num_classes, _bits_of(num_bytes)) if k is None else k
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
        return KINDS.named(self.kind)

    @property
    def packages(self) -> tuple[str, ...]:
        """The package that adds the kind, as NAME==VERSION; it is part of the fingerprint."""
        return KINDS.packages([self.kind])

    @property
    def record_bits(self) -> int:
        """Bits that the budget leaves for the record itself."""
        return _bits_of(self.num_bytes)

    @property
    def shape(self) -> RecordShape:
        """The sizes that fields and codec depend on."""
        budget = self.entry.budget
        tail_bytes = budget.tail_bytes(self.num_classes, self.k, self.record_bits) if budget else 0
        return RecordShape(num_classes=self.num_classes, k=self.k, tail_bytes=tail_bytes)

    @property
    def tail_bytes(self) -> int:
        """Bytes of the code of the classes that are not kept by name; 0 for kinds without one."""
        return self.shape.tail_bytes

    @property
    def needs_basis(self) -> bool:
        """Whether records of this kind are coded against a `TailBasis`."""
        return self.entry.needs_basis

    def fields(self) -> tuple[Field, ...]:
        """The arrays that the store makes for this record, in the order in which they are written."""
        return self.entry.fields(self.shape)


def _bits_of(num_bytes: int) -> int:
    return 8 * (num_bytes - DIGEST_BYTES - STORE_BYTES)


def _fixed_bytes(kind: RecordKind, num_classes: int) -> int:
    """Bytes of one view on disk of a kind without a budget."""
    index_bytes = 2 if num_classes < 2**16 else 4
    return index_bytes + kind.logit_bytes(num_classes) + DIGEST_BYTES + STORE_BYTES


def _require_classes(num_classes: int) -> None:
    if not 2 <= num_classes < 2**31:
        raise ValueError(f"record num_classes: expected at least 2, got {num_classes}")


def _require_bytes(num_bytes: int) -> None:
    if not 0 <= num_bytes <= _MOST_BYTES:
        raise ValueError(f"record num_bytes: expected 0 to {_MOST_BYTES} bytes per view, got {num_bytes}")
