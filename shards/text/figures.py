"""Write counts, shares, durations and sizes in one way, wherever people read them."""

import math

_ENDINGS = ("s", "x", "z", "tch", "sh")


def plural(number: float, noun: str) -> str:
    """The noun for so many: 1 class, 2 classes, 0 views. It is given in the singular; its last word changes."""
    if number == 1:
        return noun
    return f"{noun}es" if noun.endswith(_ENDINGS) else f"{noun}s"


def count(number: int, noun: str) -> str:
    """A number and its noun: "1 shard", "1,024 shards"."""
    return f"{number:,} {plural(number, noun)}"


def has(number: int) -> str:
    """The verb for so many: 1 image has, 2 images have."""
    return "has" if number == 1 else "have"


def was(number: int) -> str:
    """The verb for so many: 1 image was, 2 images were."""
    return "was" if number == 1 else "were"


def percent(part: float, whole: float) -> str:
    """A share in percent; 100 and 0 are said of all and of none only: 9,999 of 10,000 are 99.9 %."""
    if not whole or not math.isfinite(part / whole):
        return "– %"
    value = round(100 * part / whole, 1)
    if 0 < part < whole:
        value = min(max(value, 0.1), 99.9)
    return f"{value:.1f} %"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds: "2 h 05 min", "4 min 00 s", "12.3 s"; "?" when unknown."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 1:
        return "under 1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def byte_size(num_bytes: float) -> str:
    """A size on disk or in memory in decimal units: "64 bytes", "1.5 MB", "2.3 TB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= 0.9995 * unit:
            return f"{num_bytes / unit:,.1f} {name}"
    return f"{num_bytes:,.0f} {plural(num_bytes, 'byte')}"


def accuracy(value: float, num_images: int) -> str:
    """Format an accuracy (percent) with the digits that mean something: "26 %" of 100 images, "26.1 %" of 1,000."""
    if not math.isfinite(value):
        return "– %"
    return f"{value:.{0 if num_images <= 100 else 1 if num_images <= 10_000 else 2}f} %"


def noise(value: float, num_images: int) -> float:
    """Return half the width of an accuracy's 95 % confidence interval (normal approximation), percentage points."""
    least = 1 / (2 * num_images)  # of an interval that is never empty
    share = min(max(value / 100, least), 1 - least)
    return 196 * math.sqrt(share * (1 - share) / num_images)
