"""The sizes that the arrays and the codec of a record depend on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordShape:
    """The sizes of a record.

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


def index_bits(num_classes: int) -> int:
    """Bits of a class index that carry information: ⌈log2 C⌉."""
    return (num_classes - 1).bit_length()
