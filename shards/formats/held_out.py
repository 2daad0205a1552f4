"""Hold out a part of a set for validation: which images it is depends on their keys, and copies stay together."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from shards.errors import ShardError, unreadable_now
from shards.formats.class_folders import missing_classes
from shards.formats.image_list import ImageList, SourceImage
from shards.text.figures import count

_MOST_BYTES = 1 << 29  # of an image: packing refuses larger ones


class _Group(NamedTuple):
    """One image: the smallest hash of its keys, the places of its copies in the list, and how many each class has."""

    rank: tuple[int, int]
    places: Sequence[int]
    num_of: Mapping[int, int]


def places_of_equal_size(listed: ImageList) -> list[int]:
    """Find the images that may be copies, as others have as many bytes: their places in the list, ascending."""
    by_size: dict[int, list[int]] = {}
    for place, image in enumerate(listed.images):
        by_size.setdefault(image.size, []).append(place)
    return sorted(place for places in by_size.values() if len(places) > 1 for place in places)


def copies_of(listed: ImageList) -> list[list[int]]:
    """Find the images whose bytes are equal: the places of each image that is there twice or more, ascending.

    The images of `places_of_equal_size` are read.

    Errors:
        OSError where an image cannot be read now; a damaged one is no copy: packing says what is wrong.
    """
    by_content: dict[bytes, list[int]] = {}
    for place in places_of_equal_size(listed):
        if digest := _digest(listed, listed.images[place]):
            by_content.setdefault(digest, []).append(place)
    return [same for same in by_content.values() if len(same) > 1]


def _digest(listed: ImageList, image: SourceImage) -> bytes:
    """A digest of the bytes of an image; b"" where it is damaged."""
    try:
        return hashlib.blake2b(listed.read(image, _MOST_BYTES), digest_size=16).digest()
    except OSError as error:
        if unreadable_now(error) is not None:
            raise  # the split would be another one when it can be read again
        return b""


def held_out(listed: ImageList, share: float, copies: Sequence[Sequence[int]] = ()) -> Mapping[str, ImageList]:
    """Cut a list into "train" and "val".

    Of each class the share of the images whose keys have the smallest hashes is held out, to the nearest image, and of
    at least two images one stays on each side. So every class is cut alike, and an image that is added or taken away
    moves few others. All copies of an image are held out together, or none: those with the smallest hash first, as
    long as the share has room for all of them. If no image of a class has so few copies, the one with the fewest is.

    Args:
        copies: places of the images that are copies of each other, as of `copies_of`.

    Errors:
        ShardError where nothing is left for one of the two.
    """
    val = _held_places(listed, share, copies)
    if not 0 < len(val) < len(listed.images):
        raise ShardError(
            f"{listed.tree.name}: expected images for training and validation, got "
            f"{count(len(listed.images), 'image')} in all{', which are copies of one' * bool(copies)}; leave out "
            "--split"
        )
    parts = {"train": set(range(len(listed.images))) - val, "val": val}
    sets = {}
    for name, places in parts.items():
        images = [listed.images[place] for place in sorted(places)]
        without = missing_classes(listed.class_names, images)
        sets[name] = replace(listed, images=images, without_images=without)
    sets["val"] = replace(sets["val"], ignored={}, remarks=())
    return sets


def _held_places(listed: ImageList, share: float, copies: Sequence[Sequence[int]]) -> set[int]:
    """The places of the images that are held out: all copies of an image, or none."""
    groups = sorted(_groups(listed, copies))
    num_of = Counter(image.label for image in listed.images)
    most = {label: max(1, num - 1) for label, num in num_of.items()}
    wanted = {label: min(max(round(share * num), min(1, num - 1)), most[label]) for label, num in num_of.items()}
    held: Counter[int] = Counter()
    val: set[int] = set()
    for group in groups:
        if all(held[label] + num <= wanted[label] for label, num in group.num_of.items()):
            held.update(group.num_of)
            val.update(group.places)
    fewest_first = sorted(groups, key=lambda group: len(group.places))
    for label in sorted(label for label in wanted if wanted[label]):
        fitting = (
            group
            for group in fewest_first
            if label in group.num_of and all(held[other] + num <= most[other] for other, num in group.num_of.items())
        )
        if not held[label] and (fewest := next(fitting, None)):
            held.update(fewest.num_of)
            val.update(fewest.places)
    return val


def _groups(listed: ImageList, copies: Sequence[Sequence[int]]) -> Iterator[_Group]:
    copied = {place for places in copies for place in places}
    for places in (*copies, *([place] for place in range(len(listed.images)) if place not in copied)):
        images = [listed.images[place] for place in places]
        digests = [hashlib.blake2b(image.key.encode(), digest_size=8).digest() for image in images]
        numbers = [int.from_bytes(digest, "little") for digest in digests]
        rank = min(zip(numbers, places, strict=True))
        yield _Group(rank, places, Counter(image.label for image in images))
