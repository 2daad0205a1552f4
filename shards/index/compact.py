"""The rule by which make-shards has made images smaller."""

from dataclasses import dataclass

from shards.values import JsonValue

DEFAULT_QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactRule(JsonValue):
    """Reduce larger images to a longest side, and store all as JPEGs of one quality.

    Attributes:
        max_side: longest side, pixels. quality: of JPEG, 1 to 95.
    """

    KIND = "compact"
    max_side: int
    quality: int = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        """Check the ranges; ValueError naming the field."""
        if self.max_side < 32:
            raise ValueError(f"max_side: expected at least 32 pixels, got {self.max_side}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality: expected 1 to 95 (above, JPEG only grows), got {self.quality}")
