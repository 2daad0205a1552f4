"""The rules by which make-shards has changed images: their size, and their pixels.

The same is done to the pixels of the pictures that a student of these shards is asked about.
"""

from dataclasses import dataclass

from shards.values import JsonValue, later

DEFAULT_QUALITY = 90
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelRule(JsonValue):
    """Turn images upright and fill transparent ones; by default neither, as torchvision and timm do it.

    Attributes:
        upright: images are turned as their EXIF orientation says; otherwise it is ignored.
        background: what is seen through transparent pixels, R, G, B; () ignores transparency: the stored colours stay.
    """

    KIND = "pixels"
    upright: bool = later(False)
    background: tuple[int, ...] = later(())

    def __post_init__(self) -> None:
        """Check the colour; ValueError naming the field."""
        if self.background and (len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background)):
            raise ValueError(f"background: expected three numbers from 0 to 255, got {self.background}")

    def words(self) -> str:
        """Describe the rule; "" for the default."""
        turned = ["turned upright"] if self.upright else []
        colour = next((name for name, value in COLOURS.items() if value == self.background), None)
        seen = [f"on {colour or ','.join(map(str, self.background))}"] if self.background else []
        return ", ".join(turned + seen)


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


def other_pixels(trained: PixelRule, here: PixelRule) -> str:
    """Describe shards whose pixels were made otherwise than those that weights were trained on; "" for the same."""
    before, now = (rule.words() or "as they are stored" for rule in (trained, here))
    return "" if trained == here else f"trained on images {before}, those of the shards are {now}"


def background_of(text: str) -> tuple[int, ...]:
    """Parse a colour: white, black or R,G,B; ValueError for others."""
    if text.lower() in COLOURS:
        return COLOURS[text.lower()]
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) <= 255 for part in parts):
        raise ValueError(f"--background: expected white, black or R,G,B of 0 to 255, got {text!r}")
    return tuple(int(part) for part in parts)
