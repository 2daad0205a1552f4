"""Which units are to be copied: ranges of views and shards as typed, in whole units."""

from typing import NamedTuple

from shards.text.figures import count
from teacher_cache.store.cache import TeacherCache


class Selection(NamedTuple):
    """View blocks and shards, both ascending; the units are their product."""

    view_blocks: tuple[int, ...]
    shards: tuple[int, ...]

    @property
    def num_units(self) -> int:
        """Units selected."""
        return len(self.view_blocks) * len(self.shards)

    def num_first_views(self, cache: TeacherCache, views: str) -> int:
        """Count the selected views from view 0 on; ValueError where they do not begin at 0 or leave some out."""
        if self.view_blocks != tuple(range(len(self.view_blocks))):
            raise ValueError(
                f"--views {views} with --pack: expected views from 0 on, such as 0-{cache.views_per_unit - 1}"
            )
        return len(self.view_blocks) * cache.views_per_unit


def select(cache: TeacherCache, *, views: str = "", shards: str = "") -> Selection:
    """Parse what `--views 0-47` and `--shards 0-99,200` select of a cache; "" is everything.

    Errors:
        ValueError for what is no range, lies outside, or cuts through a view block, naming the nearest that does not.
    """
    views_of = numbers("--views", views, cache.num_views)
    per_unit = cache.views_per_unit
    blocks = sorted({view // per_unit for view in views_of})
    if len(blocks) * per_unit != len(views_of):
        whole = ",".join(_spans([block * per_unit + n for block in blocks for n in range(per_unit)]))
        raise ValueError(
            f"--views {views}: a chunk holds {count(per_unit, 'view')} and is copied whole; expected whole chunks, "
            f"such as {whole}"
        )
    return Selection(tuple(blocks), tuple(numbers("--shards", shards, cache.num_shards)))


def numbers(option: str, text: str, count: int) -> list[int]:
    """The numbers that a text such as "0-99,200" names, ascending; all of [0, count) for "".

    Errors:
        ValueError naming the part that is no number or range, or lies outside [0, count).
    """
    if not text:
        return list(range(count))
    selected: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{option} {text!r}: expected numbers and ranges such as 0-49,60, got {part!r}")
        start, stop = int(first), int(last or first)
        if not start <= stop < count:
            raise ValueError(f"{option} {text!r}: expected ranges inside 0-{count - 1}, got {part!r}")
        selected.update(range(start, stop + 1))
    return sorted(selected)


def _spans(values: list[int]) -> list[str]:
    """Ascending numbers as ranges."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return [f"{first}-{last}" if first < last else str(first) for first, last in spans]
