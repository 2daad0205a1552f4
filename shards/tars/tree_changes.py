"""Say how a tree of images differs from the shards that were made of it."""

import errno
from pathlib import Path

import google_crc32c

from shards.errors import ShardError, unreadable_now
from shards.formats.image_list import ImageList, SourceImage
from shards.index.pixel_rule import PixelRule
from shards.index.shard_index import ShardIndex
from shards.own_folder import INDEX_NAME
from shards.tars.journal import settings_of
from shards.tars.tar import MOST_MEMBER_BYTES
from shards.text.figures import count

_MOST_READ = 2_000


def tree_changes(index_path: Path, source: ImageList) -> str:
    """Compare a tree with an index of its shards: "1 of 160 images changed: cat/07".

    Files whose size is as indexed are read, at most 2,000 of them. Of shards that hold other bytes than the files,
    compact ones for example, only the keys are compared.

    Returns:
        what differs; "" where nothing does, as far as was read, or where there is no index that says so.
    """
    try:
        index = ShardIndex.load(index_path)
    except ShardError as error:
        if unreadable_now(error):
            raise
        return ""  # an index that is missing or damaged has nothing to compare with: the caller says the rest
    if index.class_names != source.class_names:
        ours, theirs = source.class_names, index.class_names
        lists = [
            _count([name for name in ours if name not in theirs], len(ours), "new", "class"),
            _count([name for name in theirs if name not in ours], len(theirs), "gone", "class"),
        ]
        return ", ".join(text for text in lists if text) or "the classes have another order"
    rows = {
        index.key(shard, row): index.row_number(shard, row)
        for shard in range(index.num_shards)
        for row in range(index.num_rows(shard))
    }
    images = {image.key: image for image in source.images}
    new, gone = [key for key in images if key not in rows], [key for key in rows if key not in images]
    if len(new) == index.num_skipped:
        new = []  # they were left out
    lists = [_count(new, len(images), "new"), _count(gone, len(rows), "gone")]
    if index.compact is None and index.pixels == PixelRule():
        lists.append(_count(_changed(index, rows, source, images), len(images), "changed"))
    return ", ".join(text for text in lists if text)


def is_begun_with(dest: Path, source: ImageList) -> bool:
    """Whether a folder of shards was begun with a list of images, or holds them, as far as is known."""
    settings, index = settings_of(dest), dest / INDEX_NAME
    return bool(settings) and (
        settings.get("source_digest") == source.digest() or (index.is_file() and not tree_changes(index, source))
    )


def _changed(index: ShardIndex, rows: dict[str, int], source: ImageList, images: dict[str, SourceImage]) -> list[str]:
    """The keys of images whose size or bytes are not those in the shards."""
    both = [key for key in images if key in rows]
    sizes = [key for key in both if images[key].size not in (-1, int(index.size_N[rows[key]]))]
    equal = set(both) - set(sizes)
    newest = sorted(equal, key=lambda key: (-images[key].mtime_ns, key))[:_MOST_READ]
    return sizes + [key for key in newest if _checksum(source, images[key]) != int(index.crc32c_N[rows[key]])]


def _checksum(source: ImageList, image: SourceImage) -> int:
    """crc32c of an image; -1 where it is gone or damaged, OSError where nobody knows."""
    try:
        return int(google_crc32c.value(source.read(image, MOST_MEMBER_BYTES)))
    except OSError as error:
        if error.errno in (None, errno.ENOENT, errno.ENOTDIR):
            return -1
        raise


def _count(keys: list[str], total: int, word: str, noun: str = "image") -> str:
    return f"{len(keys)} of {count(total, noun)} {word}: {', '.join(sorted(keys)[:3])}" if keys else ""
