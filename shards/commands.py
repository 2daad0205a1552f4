"""The commands that make and check shards."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.console import Bar, result, say
from shards.errors import ShardError
from shards.flags import PATH, SEED, TEXT, bundled, workers_option
from shards.own_folder import require_own
from shards.text.figures import byte_size, count

if TYPE_CHECKING:
    from shards.formats.image_list import ImageList
    from shards.index.shard_index import ShardIndex
    from shards.tars.scan import ScanEvent
    from shards.tars.writer import WriteEvent

_class_names = click.option(
    "--class-names", type=PATH,
    help="A UTF-8 file with one class a line, in the order of the labels, no comments or columns; default: the "
    "folders, sorted.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFlags:
    """What the user says of SOURCE: its format, classes and labels."""

    format_name: str | None
    labels: Path | None
    first_label: int | None
    class_names: Path | None
    ignore_unknown: bool

    def sets(self, path: Path) -> "Mapping[str, ImageList]":
        """The sets of SOURCE by name, "" for one set; says how SOURCE was understood.

        Errors:
            ValueError for wrong flags; ShardError counting everything that is wrong with SOURCE.
        """
        from shards.formats.input_format import Source
        from shards.formats.table import format_of
        from shards.index.class_names import read_class_names

        source = Source(
            path=path,
            class_names=read_class_names(self.class_names) if self.class_names else (),
            labels=self.labels,
            first_label=self.first_label,
            ignore_unknown=self.ignore_unknown,
        )
        found, source = format_of(source, self.format_name)
        if not found.takes_labels:
            _require_use(self.labels is not None, f"--labels: format {found.name} takes no list; drop one of the two")
            _require_use(self.first_label is not None, "--first-label: only with --labels, where the list has numbers")
        say(f"{path}: {found.summary}")
        return found.read(source)


_source_flags = bundled(
    SourceFlags,
    "flags",
    click.option(
        "--format", "format_name", type=TEXT, help="What SOURCE is: folders, labels, splits; default: found out."
    ),
    click.option("--labels", type=PATH, help="CSV, TSV or text: a line for each image, with its path and class."),
    click.option("--first-label", type=click.IntRange(0, 1), help="The number of the first class in --labels."),
    _class_names,
    click.option(
        "--ignore-unknown", is_flag=True, help="Pass over every file that is no JPEG, PNG or WebP image, counted."
    ),
)


@click.command("make-shards")
@click.argument("source", type=PATH)
@click.argument("dest", type=PATH)
@_source_flags
@click.option(
    "--samples-per-shard",
    type=click.IntRange(1),
    help="At most; default: 1000, less below 8,000 images, all in one shard up to 2,000.",
)
@click.option(
    "--order-seed", "--seed", "seed", default=0, show_default=True, type=SEED, help="Of the order of the samples."
)
@click.option("--max-side", type=int, help="Compact shards: reduce larger images to this longest side, pixels.")
@click.option("--quality", type=int, help="Of the JPEGs of compact shards; default 90. Only with --max-side.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    help="Refuse larger images; default and most: 89,478,485 (2 GB to decode).",
)
@workers_option("Processes; the bytes do not depend on it.")
def make_shards(
    source: Path,
    dest: Path,
    flags: SourceFlags,
    samples_per_shard: int | None,
    seed: int,
    max_side: int | None,
    quality: int | None,
    max_pixels: int | None,
    workers: int,
) -> None:
    """Write the images of SOURCE as WebDataset shards and an index in DEST.

    SOURCE is a folder with a folder for each class, a folder of images with --labels FILE, a folder that holds train/
    and val/ (both are written, to DEST/train and DEST/val), ImageNet's ILSVRC2012_img_train.tar, or a zip or tar of any
    of these. Run it again to go on where it was stopped; finished shards are kept. The bytes of the images are kept as
    they are, unless --max-side makes them smaller, for good.
    """
    from shards.index.compact import DEFAULT_QUALITY, CompactRule
    from shards.tars.journal import SHARDS_FOLDER
    from shards.tars.writer import write_shards
    from shards.views.decode import MAX_PIXELS

    _require_apart(source, dest)
    if quality is not None and max_side is None:
        raise ValueError("--quality: only with --max-side, which makes compact shards")
    quality = DEFAULT_QUALITY if quality is None else quality
    compact = None if max_side is None else CompactRule(max_side=max_side, quality=quality)
    sets = flags.sets(source)
    for split in sets:
        require_own("DEST", dest / split, SHARDS_FOLDER)
    for split, images in sets.items():
        _show_writing(
            f"make-shards {split}".rstrip(),
            images,
            write_shards(
                images,
                dest / split,
                samples_per_shard=samples_per_shard,
                seed=seed,
                workers=max(1, workers),
                compact=compact,
                max_pixels=max_pixels or MAX_PIXELS,
            ),
        )


@click.command("check-shards")
@click.argument("shards")
@click.option("--num-classes", type=click.IntRange(2), help="Labels must lie below it; default: the largest label + 1.")
@_class_names
@click.option("--label-key", help="Take the label from this key of each sample's .json (img2dataset).")
@click.option(
    "--ignore-suffix", "ignored", multiple=True, metavar="SUFFIX", help="Pass over members NAME.SUFFIX, counted."
)
@click.option("--ignore-unknown", is_flag=True, help="Pass over every member that is no image and no label, counted.")
@click.option("--key-dots", is_flag=True, help="Keys have dots: a key ends at the last dot of the name, not the first.")
@click.option("--overwrite", is_flag=True, help="Write the index anew instead of checking against the one there.")
@click.option("--allow-fewer", is_flag=True, help="With --overwrite: also where the new index has fewer samples.")
@click.option("--decode", is_flag=True, help="Also decode every image, and name all that cannot be decoded.")
@click.option("--max-pixels", type=click.IntRange(1), help="With --decode: refuse larger images; default 89,478,485.")
@click.option("--shard-cache", type=PATH, help="Where remote shards are kept locally.")
@workers_option("Processes.")
def check_shards(
    shards: str,
    num_classes: int | None,
    class_names: Path | None,
    label_key: str | None,
    ignored: tuple[str, ...],
    ignore_unknown: bool,
    key_dots: bool,
    overwrite: bool,
    allow_fewer: bool,
    decode: bool,
    max_pixels: int | None,
    shard_cache: Path | None,
    workers: int,
) -> None:
    """Scan SHARDS strictly, ours or anyone's, and write their index; with an index, check them against it.

    An index that is written anew keeps the class names of the one before, unless others are given.
    """
    from shards.index.class_names import read_class_names
    from shards.index.shard_index import ShardIndex, index_path
    from shards.index.sources import expand_shards
    from shards.tars.scan import scan_shards
    from shards.tars.shard_scan import Foreign

    _require_use(allow_fewer and not overwrite, "--allow-fewer: only with --overwrite, which writes an index anew")
    _require_use(max_pixels is not None and not decode, "--max-pixels: only with --decode, which looks at the pixels")
    path = index_path(shards, shard_cache)
    expected = ShardIndex.load(path) if path.exists() and not overwrite else None
    kept = () if class_names else expected.class_names if expected else _names_before(path, num_classes)
    names = read_class_names(class_names) if class_names else kept
    foreign = Foreign(tuple(suffix.lower().lstrip(".") for suffix in ignored), ignore_unknown, key_dots)
    urls = expand_shards(shards)
    events = scan_shards(
        urls,
        num_classes=num_classes or (expected.num_classes if expected else None),
        class_names=names,
        label_key=label_key,
        foreign=foreign,
        expected=expected,
        decode=decode,
        max_pixels=max_pixels,
        workers=max(1, workers),
        cache_dir=shard_cache,
    )
    index = _show_scan(events, len(urls))
    if expected is None:
        _require_no_fewer(path, index, allow_fewer)
        index.save(path)
    result(
        f"{count(index.num_samples, 'sample')} of {count(index.num_classes, 'class')} in "
        f"{count(index.num_shards, 'shard')}: "
        f"all as they must be\n{'checked against' if expected else 'index'} {path}\nfingerprint {index.fingerprint}"
    )


def _require_apart(source: Path, dest: Path) -> None:
    """ValueError where one of the folders is in the other: shards are no images of a tree, and images are no shards."""
    one, other = source.resolve(), dest.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"DEST {dest}: expected a folder apart from SOURCE {source}, got one in the other")


def _show_scan(events: Iterable["ScanEvent"], num_shards: int) -> "ShardIndex":
    """Show a scan as it goes, every problem in a line, and return its index; the only one is what the error says."""
    with Bar("check-shards", num_shards, "shard") as bar:
        for event in events:
            bar.to(event.shards_done)
            lines = event.problem.splitlines()
            for line in lines if num_shards > 1 or len(lines) > 1 else ():
                bar.say(f"  {line}")
    _say_ignored(event.ignored)
    assert event.index is not None, "a scan ends with an index, or an error"
    return event.index


def _require_use(ignored: bool, words: str) -> None:
    """ValueError where a flag would be ignored."""
    if ignored:
        raise ValueError(words)


def _require_no_fewer(path: Path, index: "ShardIndex", allow_fewer: bool) -> None:
    """ShardError where the index that is to be written anew has more samples than the new one, unless that is meant."""
    from shards.index.shard_index import ShardIndex

    if not path.exists():
        return
    try:
        before = ShardIndex.load(path)
    except ShardError:
        return  # damaged, as was said when its class names were looked for: nobody knows how many it had
    if allow_fewer or index.num_samples >= before.num_samples:
        return
    missing = [name for name in before.names if name not in index.names]
    of_shards = f"; missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}" if missing else ""
    raise ShardError(
        f"{path}: expected at least {count(before.num_samples, 'sample')} in "
        f"{count(before.num_shards, 'shard')}, as the index has now, "
        f"got {index.num_samples} in {index.num_shards}{of_shards}. Copy the shards again; to leave samples "
        "out, which makes caches of these shards useless, add --allow-fewer"
    )


def _say_ignored(ignored: Mapping[str, int]) -> None:
    """How many members were passed over."""
    if ignored:
        counts = ", ".join(f"{count} × {suffix}" for suffix, count in sorted(ignored.items()))
        say(f"passed over: {counts}")


def _show_writing(label: str, images: "ImageList", events: Iterable["WriteEvent"]) -> None:
    """Show how a set is written as it goes, and what came of it."""
    _say_ignored(images.ignored)
    _say_without_images(images.without_images, len(images.class_names))
    for remark in images.remarks:
        say(remark)
    bar = None
    for event in events:
        bar = bar or Bar(label, event.num_shards, "shard")
        bar.to(event.shards_done)
    assert event.index is not None, "writing ends with an index, or an error"
    _show_made(event.index, event.num_bytes)


def _show_made(index: "ShardIndex", num_bytes: int) -> None:
    """What make-shards has made: its classes with their counts."""
    from shards.index.class_counts import class_table

    for line in class_table(index):
        result(line)
    result(
        f"{count(index.num_samples, 'sample')} of {count(index.num_classes, 'class')} in "
        f"{count(index.num_shards, 'shard')}, "
        f"{byte_size(num_bytes)}; index {index.path}"
    )
    if index.compact:
        result(f"compact: longest side {index.compact.max_side}, JPEG quality {index.compact.quality}")


def _say_without_images(names: Sequence[str], num_names: int) -> None:
    """Which class names given have no image: it may be meant, or a misspelt name."""
    if names:
        first = ", ".join(map(repr, names[:3]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(f"{len(names)} of {num_names} class names have no image here: {first}{more}; their labels stay unused")


def _names_before(path: Path, num_classes: int | None) -> tuple[str, ...]:
    """The class names of an index that is to be written anew, from it or from the copy beside it; () for none."""
    from shards.index.class_names import names_path, read_copy
    from shards.index.index_file import stored_class_names

    names: tuple[str, ...] = ()
    source = path
    try:
        names = stored_class_names(path) if path.exists() else ()
    except ShardError as error:
        say(f"warning: {error}")
        if not names_path(path).exists():
            say("warning: class names that it may have held are lost; give them with --class-names")
    if not path.exists() or not names:
        source = names_path(path)
        names = read_copy(path)
    if num_classes not in (None, len(names)) and names:
        say(f"warning: {source} had {len(names)} class names; they are dropped for --num-classes {num_classes}")
        return ()
    if names and source != path:
        say(f"class names from {source}")
    return names
