"""Say how a tree of images differs from the shards that were made of it."""

from pathlib import Path

import google_crc32c

from shards.documents import read_regular
from shards.errors import ShardError
from shards.index.shard_index import ShardIndex
from shards.tars.image_folder import Folder, SourceImage

_MOST_READ = 2_000


def tree_changes(index_path: Path, source: Path, folder: Folder) -> str:
    """Compare a tree with an index of its shards: "1 of 160 images changed: cat/07".

    Files whose size is as indexed are read, at most 2,000 of them. Of compact shards only the keys are compared.

    Returns:
        what differs; "" where there is no index that says so.
    """
    try:
        index = ShardIndex.load(index_path)
    except ShardError:
        return ""  # an index that is missing or damaged has nothing to compare with: the caller says the rest
    if index.class_names != folder.class_names:
        return (
            f"the shards have {len(index.class_names)} classes, the tree has {len(folder.class_names)} or other names"
        )
    rows = {
        index.key(shard, row): index.row_number(shard, row)
        for shard in range(index.num_shards)
        for row in range(index.num_rows(shard))
    }
    images = {image.key: image for image in folder.images}
    new, gone = [key for key in images if key not in rows], [key for key in rows if key not in images]
    lists = [_count(new, len(images), "new"), _count(gone, len(rows), "gone")]
    if index.compact is None:
        lists.append(_count(_changed(index, rows, source, images), len(images), "changed"))
    said = ", ".join(text for text in lists if text)
    return said or f"only the times of change of its files differ, as far as {min(len(images), _MOST_READ)} were read"


def _changed(index: ShardIndex, rows: dict[str, int], source: Path, images: dict[str, SourceImage]) -> list[str]:
    """The keys of images whose size or bytes are not those in the shards."""
    both = [key for key in images if key in rows]
    sizes = [key for key in both if images[key].size != int(index.size_N[rows[key]])]
    equal = set(both) - set(sizes)
    newest = sorted(equal, key=lambda key: (-images[key].mtime_ns, key))[:_MOST_READ]
    return sizes + [key for key in newest if _checksum(source / images[key].path) != int(index.crc32c_N[rows[key]])]


def _checksum(path: Path) -> int:
    """crc32c of a file; -1 where it cannot be read."""
    try:
        return int(google_crc32c.value(read_regular(path)))
    except OSError:
        return -1


def _count(keys: list[str], total: int, word: str) -> str:
    return f"{len(keys)} of {total} images {word}: {', '.join(sorted(keys)[:3])}" if keys else ""
