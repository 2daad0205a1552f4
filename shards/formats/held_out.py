"""Hold out a part of a set for validation: which images it is depends on the keys of each class alone."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from shards.errors import ShardError
from shards.formats.class_folders import missing_classes
from shards.formats.image_list import ImageList
from shards.text.figures import count


def held_out(listed: ImageList, share: float) -> Mapping[str, ImageList]:
    """Cut a list into "train" and "val".

    Of each class the share of the images whose keys have the smallest hashes is held out, to the nearest image, and of
    at least two images one stays on each side. So every class is cut alike, and an image that is added or taken away
    moves at most one other.

    Errors:
        ShardError where nothing is left for one of the two.
    """
    ranked: dict[int, list[tuple[int, int]]] = {}
    for place, image in enumerate(listed.images):
        number = int.from_bytes(hashlib.blake2b(image.key.encode(), digest_size=8).digest(), "little")
        ranked.setdefault(image.label, []).append((number, place))
    val: set[int] = set()
    for of_class in ranked.values():
        of_class.sort()
        least, most = min(1, len(of_class) - 1), max(1, len(of_class) - 1)
        num_held = min(max(round(share * len(of_class)), least), most)
        val.update(place for _, place in of_class[:num_held])
    if not 0 < len(val) < len(listed.images):
        raise ShardError(
            f"{listed.tree.name}: expected images for training and validation, got "
            f"{count(len(listed.images), 'image')} in all; leave out --split"
        )
    parts = {"train": set(range(len(listed.images))) - val, "val": val}
    sets = {}
    for name, places in parts.items():
        images = [listed.images[place] for place in sorted(places)]
        without = missing_classes(listed.class_names, images)
        sets[name] = replace(listed, images=images, without_images=without)
    sets["val"] = replace(sets["val"], ignored={}, remarks=())
    return sets
