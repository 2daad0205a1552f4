"""`make-shards`: images as people have them become shards and an index."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.atomic import replace_file
from shards.commands.flags import (
    COUNT,
    PATH,
    SEED,
    Number,
    bundled,
    class_names_option,
    flag,
    given_flag,
    require_use,
    say_ignored,
    shared,
    typed_words,
    workers_option,
)
from shards.commands.shard_place import beside
from shards.console import Bar, result, say, say_next
from shards.documents import read_regular
from shards.errors import ShardError
from shards.formats.table import FORMATS, format_of
from shards.names import similar_words
from shards.own_folder import INDEX_NAME, require_file, require_own
from shards.tars.journal import SHARDS_FOLDER
from shards.text.figures import byte_size, count, has, was

if TYPE_CHECKING:
    from shards.formats.image_list import ImageList
    from shards.index.shard_index import ShardIndex
    from shards.tars.image_rule import ImageRule
    from shards.tars.image_shards import WriteEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFlags:
    """What the user says of SOURCE: its format, classes and labels."""

    format_name: str | None = flag("--format", help=f"{', '.join(FORMATS)}; default: what SOURCE looks like.")
    labels: Path | None = flag(
        "--labels", type=PATH, help="CSV, TSV or text: a line for each image, with its path and class."
    )
    no_labels: bool = flag(
        "--no-labels",
        is_flag=True,
        help="Take all images of SOURCE, in folders of any depth, without labels: a teacher's answers are learnt.",
    )
    first_label: int | None = flag(
        "--first-label", type=click.IntRange(0, 1), help="The number of the first class in --labels."
    )
    class_names: Path | None = shared(class_names_option)
    ignore_unknown: bool = flag(
        "--ignore-unknown", is_flag=True, help="Pass over every file that is no JPEG, PNG or WebP image, counted."
    )
    split: float | None = flag(
        "--split",
        type=Number(0, 0.9, min_open=True),
        help="Hold out this share of each class: DEST/train and DEST/val; which images follows from the keys.",
    )

    def sets(self, path: Path, dest: Path) -> "Mapping[str, ImageList]":
        """The sets of SOURCE by name, "" for one set; says how SOURCE was understood.

        Args:
            dest: where a split that was begun goes on.

        Errors:
            ValueError for wrong flags; ShardError counting everything that is wrong with SOURCE.
        """
        from shards.formats.input_format import Source
        from shards.index.class_names import read_class_names

        self._check_no_labels()
        source = Source(
            path=path,
            class_names=read_class_names(self.class_names) if self.class_names else (),
            labels=self.labels,
            first_label=self.first_label,
            ignore_unknown=self.ignore_unknown,
            no_labels=self.no_labels,
        )
        input_format, source = format_of(source, self.format_name)
        if not input_format.takes_labels:
            require_use(
                self.labels is not None, f"--labels: format {input_format.name} takes no list; drop one of the two"
            )
            require_use(self.first_label is not None, "--first-label: only with --labels, where the list has numbers")
        sets = input_format.read(source)
        say(f"{path}: {input_format.summary}")
        if self.split is None:
            return sets
        if list(sets) != [""]:
            raise ValueError(f"--split: {path} has a validation part already; drop the flag, or give train alone")
        return _split(sets[""], self.split, dest)

    def _check_no_labels(self) -> None:
        """ValueError for flags that say something of labels, where there are to be none."""
        typed = {"--labels": self.labels, "--first-label": self.first_label, "--split": self.split}
        for name, value in typed.items():
            require_use(self.no_labels and value is not None, f"{name}: the images have no labels; drop one of the two")


def _split(images: "ImageList", share: float, dest: Path) -> "Mapping[str, ImageList]":
    """Hold a share out, copies of an image together; as earlier versions did where one of them began `dest`."""
    from shards.formats.held_out import copies_of, held_out, places_of_equal_size
    from shards.tars.tree_changes import is_begun_with

    sets = held_out(images, share)
    if any(is_begun_with(dest / name, part) for name, part in sets.items()):
        return sets
    places = places_of_equal_size(images)
    if (num_bytes := sum(images.images[place].size for place in places)) > _MANY_BYTES:
        say(f"looking for copies: {byte_size(num_bytes)} are read, of {count(len(places), 'image')} of equal size")
    if not (copies := copies_of(images)):
        return sets
    num = sum(map(len, copies)) - len(copies)
    words = f"{num} of {count(len(images.images), 'image')} {'is a copy' if num == 1 else 'are copies'} of others"
    say(f"{words}: all of an image are on one side of the split")
    return held_out(images, share, copies)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFlags:
    """What the user wants done to each image."""

    upright: bool = flag(
        "--upright", is_flag=True, help="Turn images as their EXIF orientation says; default: it is ignored."
    )
    background: str | None = flag(
        "--background", help="Put transparent images on white, black or R,G,B; default: stored colours stay."
    )
    max_side: int | None = flag(
        "--max-side", type=int, help="Compact shards: reduce larger images to this longest side, pixels."
    )
    quality: int | None = flag(
        "--quality", type=int, help="Of the JPEGs of compact shards; default 90. Only with --max-side."
    )
    max_pixels: int | None = flag(
        "--max-pixels", type=COUNT, help="Refuse larger images; default and most: 89,478,485 (2 GB to decode)."
    )
    no_decode: bool = flag("--no-decode", is_flag=True, help="Do not look for images that are cut or corrupt: faster.")
    skip_bad: Path | None = flag(
        "--skip-bad",
        type=PATH,
        metavar="FILE",
        help="Leave out images that cannot be taken, and write their names and what is wrong to FILE.",
    )

    def rule(self) -> "ImageRule":
        """As a value; ValueError for flags that contradict each other."""
        from shards.index.pixel_rule import DEFAULT_QUALITY, CompactRule, PixelRule, background_of
        from shards.tars.image_rule import ImageRule
        from shards.views.decode import MAX_PIXELS

        require_use(
            self.quality is not None and self.max_side is None,
            "--quality: only with --max-side, which makes compact shards",
        )
        if self.skip_bad is not None:
            require_file("--skip-bad", self.skip_bad)
            if self.skip_bad.exists() and not read_regular(self.skip_bad).startswith(_SKIPPED.encode()):
                raise ValueError(f"--skip-bad {self.skip_bad}: expected a new file, got one of something else")
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        background = background_of(self.background) if self.background else ()
        return ImageRule(
            compact=None if self.max_side is None else CompactRule(max_side=self.max_side, quality=quality),
            pixels=PixelRule(upright=self.upright, background=background),
            max_pixels=self.max_pixels or MAX_PIXELS,
            decode=not self.no_decode,
            skip_bad=self.skip_bad is not None,
        )


_MANY_BYTES = 1 << 30
_MADE_BY = b'"made_by": "make-shards"'
_SKIPPED = "# images that make-shards left out, with the reason\n"


@click.command("make-shards")
@click.argument("source", type=PATH)
@click.argument("dest", type=PATH)
@bundled(SourceFlags, "flags")
@click.option(
    "--samples-per-shard",
    type=COUNT,
    help="At most; default: 1000, less below 8,000 images, all in one shard up to 2,000.",
)
@click.option("--order-seed", "--seed", "seed", default=0, type=SEED, help="Of the order of the samples.")
@bundled(ImageFlags, "image_flags")
@workers_option("Processes; the bytes do not depend on it.")
def make_shards(
    source: Path,
    dest: Path,
    flags: SourceFlags,
    samples_per_shard: int | None,
    seed: int,
    image_flags: ImageFlags,
    workers: int,
) -> None:
    """Write the images of SOURCE as WebDataset shards and an index in DEST.

    SOURCE is a folder with a folder for each class, a folder of images with --labels FILE, a folder that holds train/
    and val/ or test/ (both are written, to DEST/train and DEST/val), ImageNet's ILSVRC2012_img_train.tar, or a zip or
    tar of any of these; with --no-labels any folder of images. Run it again to go on where it was stopped; finished
    shards are kept. Every image is decoded to find bad ones; its bytes are kept as they are, unless --max-side,
    --upright or --background change them, for good.
    """
    from shards.tars.image_shards import write_shards

    _require_apart(source, dest)
    rule = image_flags.rule()
    sets = flags.sets(source, dest)
    for split in sets:
        require_own("DEST", dest / split, SHARDS_FOLDER)
    for line in similar_words(name for images in sets.values() for name in images.class_names):
        say(line)
    skipped: list[str] = []
    for split, images in sets.items():
        events = write_shards(
            images, dest / split, samples_per_shard=samples_per_shard, seed=seed, workers=max(1, workers), rule=rule
        )
        for text in _show_writing(f"make-shards {split}".rstrip(), images, events):
            skipped.append(text if flags.split is not None or not split else f"{split}/{text}")
    if skip_bad := image_flags.skip_bad:
        replace_file(skip_bad, (_SKIPPED + "".join(f"{line}\n" for line in skipped)).encode())
        say(f"{count(len(skipped), 'image')} left out" + (f": see {skip_bad}" if skipped else ""))
    if len(sets) > 1:
        _write_info(dest / "_info.json", tuple(sets))
    _say_shared(dest, tuple(sets))
    if flags.no_labels:
        teachers = [path for path in (Path("teacher"), beside(dest, "teacher")) if path.is_dir()]
        teacher = teachers[0] if teachers else "TEACHER"
        say_next(["cache-teacher", "--shards", dest, "--teacher-weights", teacher, "--cache", "unlabelled.zarr"])
    else:
        words = _next_command(source, dest, tuple(sets), _typed_for_val(image_flags.skip_bad))
        if words[0] == "train-teacher" and "--val-shards" not in words and dest.name != "val":
            say(
                "no images are held out to measure what is learnt: make shards of validation images in "
                f"{beside(dest, 'val')}, or give another DEST with --split 0.2"
            )
        say_next(words)


def _write_info(path: Path, splits: Sequence[str]) -> None:
    """Write the file by which timm's `wds/` reader finds the shards of each part and their counts."""
    from shards.index.shard_index import ShardIndex

    if path.exists() and _MADE_BY not in read_regular(path):
        say(f"{path}: not written by make-shards, so it stays; timm's wds/ reader takes the parts from it")
        return
    parts = {}
    for split in splits:
        index = ShardIndex.load(path.parent / split / INDEX_NAME)
        names, rows = [f"{split}/{name}" for name in index.names], index.rows_S.tolist()
        parts[split] = {"name": split, "num_samples": sum(rows), "filenames": names, "shard_lengths": rows}
    replace_file(path, json.dumps({"made_by": "make-shards", "splits": parts}, indent=1).encode() + b"\n")


_FOR_VAL = (
    *("format_name", "first_label", "class_names", "ignore_unknown", "samples_per_shard", "seed"),
    *("upright", "background", "max_side", "quality", "max_pixels", "no_decode", "workers"),
)
"""Options that the validation part of a set needs as well."""


def _typed_for_val(skip_bad: Path | None) -> list[object]:
    """The typed options, for the validation part, which has a list of labels and one of bad images of its own."""
    labels = ["--labels", "LABELS"] if given_flag("labels") else []
    bad = ["--skip-bad", skip_bad.with_stem(f"{skip_bad.stem}-val")] if skip_bad else []
    return [*typed_words(*_FOR_VAL), *labels, *bad]


def _parts(dest: Path, splits: Sequence[str]) -> tuple[Path, Path]:
    """Return the folders of the training and the validation shards, as far as they follow from DEST."""
    if "val" in splits:
        return dest / "train", dest / "val"
    if dest.name == "val" and (beside(dest, "train") / INDEX_NAME).is_file():
        return beside(dest, "train"), dest
    return dest, beside(dest, "val")


def _say_shared(dest: Path, splits: Sequence[str]) -> None:
    """Count the validation images that are trained on as well, where both sets are here."""
    from shards.index.shard_index import ShardIndex

    folders = _parts(dest, splits)
    if "val" not in splits and dest.name not in ("train", "val"):
        return
    if folders[0] == folders[1] or not all((folder / INDEX_NAME).is_file() for folder in folders):
        return
    try:
        train, val = (ShardIndex.load(folder / INDEX_NAME) for folder in folders)
    except ShardError:
        return  # the set beside this one cannot be read: the command that is given it says so
    if num := val.num_in(train):
        say(
            f"warning: {num} of {count(val.num_samples, 'validation image')} {'is' if num == 1 else 'are'} in the "
            "training shards as well, so what is measured on them is too good: keep one of each, and make both sets "
            "in another DEST"
        )


def _next_command(source: Path, dest: Path, splits: Sequence[str], typed: Sequence[object] = ()) -> list[object]:
    """Return the next command: for the validation part that lies beside SOURCE, else for a teacher.

    Args:
        typed: options for the validation part.
    """
    train, val = _parts(dest, splits)
    alone = train == dest and not (val / INDEX_NAME).is_file()
    if alone and source.name == dest.name == "train" and beside(source, "val").is_dir():
        return ["make-shards", beside(source, "val"), val, *typed]
    words: list[object] = ["train-teacher", "--shards", train]
    words += ["--val-shards", val] if (val / INDEX_NAME).is_file() and val != train else []
    data = train.parent if train.parent.name else train
    return [*words, "--pretrained", "efficientnet_lite0", "--out", beside(data, "teacher")]


def _require_apart(source: Path, dest: Path) -> None:
    """ValueError where one of the folders is in the other: shards are no images of a tree, and images are no shards."""
    one, other = source.resolve(), dest.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"DEST {dest}: expected a folder apart from SOURCE {source}, got one in the other")


def _show_writing(label: str, images: "ImageList", events: Iterable["WriteEvent"]) -> tuple[str, ...]:
    """Show how a set is written as it goes, and what came of it; the images that were left out."""
    say_ignored(images.ignored)
    _say_without_images(label, images.without_images, len(images.class_names))
    for remark in images.remarks:
        say(remark)
    bar, start_s, num_kept = None, time.monotonic(), 0
    for event in events:
        bar = bar or Bar(label, event.num_shards, "shard", start_s=start_s)
        bar.to(event.shards_done)
        num_kept += event.kept
    assert bar is not None and event.index is not None, "writing ends with an index, or an error"
    bar.close()  # the table begins on a line of its own
    if num_kept == event.num_shards:
        say(f"{label}: already complete: {count(num_kept, 'shard')} checked, none written")
    _say_pixels(event, event.index)
    _show_made(event.index, event.num_bytes)
    return event.skipped


def _say_pixels(event: "WriteEvent", index: "ShardIndex") -> None:
    """Count the images with an EXIF orientation or transparent pixels, and say what was done about it."""
    of_all = f"of {count(index.num_samples, 'image')}"
    if event.turned and index.pixels.upright:
        say(f"{event.turned} {of_all} {was(event.turned)} turned as their EXIF orientation says")
    elif event.turned:
        say(
            f"{event.turned} {of_all} {has(event.turned)} an EXIF orientation, which is ignored, as torchvision and "
            "timm do: phones store photos on their side; --upright turns them"
        )
    if event.transparent and index.pixels.background:
        say(
            f"{event.transparent} {of_all} {has(event.transparent)} transparent pixels and {was(event.transparent)} "
            "put on the background"
        )
    elif event.transparent:
        say(
            f"{event.transparent} {of_all} {has(event.transparent)} transparent pixels: the colours stored behind "
            "them show, often black; --background white puts them on white"
        )


def _show_made(index: "ShardIndex", num_bytes: int) -> None:
    """Show what make-shards has made: its classes with their counts."""
    from shards.index.classes import class_table, samples_words

    for line in class_table(index):
        result(line)
    result(f"{samples_words(index)} in {count(index.num_shards, 'shard')}, {byte_size(num_bytes)}; index {index.path}")
    if index.compact:
        result(f"compact: longest side {index.compact.max_side}, JPEG quality {index.compact.quality}")
    if words := index.pixels.words():
        result(f"pixels: {words}")


def _say_without_images(label: str, names: Sequence[str], num_names: int) -> None:
    """Name the given classes without an image: it may be meant, or a misspelt name."""
    if names:
        first = ", ".join(map(repr, names[:3]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        of_all = f"{len(names)} of {count(num_names, 'class')}"
        say(f"{label}: without an image: {of_all}: {first}{more}; their labels stay unused")
