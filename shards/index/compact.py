"""How the images of shards were made smaller, once, when the shards were written."""

from dataclasses import dataclass
from typing import Any

from shards.values import from_json, to_json

DEFAULT_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactRule:
    """Larger images are reduced to a longest side, and all are JPEGs of one quality.

    Attributes:
        max_side: longest side, pixels. quality: of JPEG, 1 to 95.
    """

    max_side: int
    quality: int = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        """Check the ranges; ValueError naming the field."""
        if self.max_side < 32:
            raise ValueError(f"max_side: expected at least 32 pixels, got {self.max_side}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality: expected 1 to 95 (above, JPEG only grows), got {self.quality}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> "CompactRule":
        """The inverse of `to_json`; ValueError for other fields and types."""
        return from_json(cls, data, "compact")
