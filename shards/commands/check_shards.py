"""`check-shards`: a strict scan of shards, ours or anyone's, and their index."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import (
    COUNT,
    Count,
    bundled,
    class_names_option,
    flag,
    require_use,
    say_ignored,
    workers_option,
)
from shards.commands.shard_place import ShardPlace, fetch_shards
from shards.console import Bar, result, say
from shards.errors import ShardError, unreadable_now
from shards.text.figures import count

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from shards.tars.sample_rule import SampleRule
    from shards.tars.scan import ScanEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFlags:
    """What the user says of shards of others, of an existing index, and whether images are decoded."""

    no_labels: bool = flag(
        "--no-labels", is_flag=True, help="Samples may lack a label; those learn from a teacher's answers alone."
    )
    label_key: str | None = flag(
        "--label-key", help="Take the label from this key of each sample's .json (img2dataset)."
    )
    ignored: tuple[str, ...] = flag(
        "--ignore-suffix", multiple=True, metavar="SUFFIX", help="Pass over members NAME.SUFFIX, counted."
    )
    ignore_unknown: bool = flag(
        "--ignore-unknown", is_flag=True, help="Pass over every member that is no image and no label, counted."
    )
    skip_empty: bool = flag(
        "--skip-empty", is_flag=True, help="Pass over tars without any member, counted (img2dataset)."
    )
    key_dots: bool = flag(
        "--key-dots", is_flag=True, help="Keys have dots: a key ends at the last dot of the name, not the first."
    )
    overwrite: bool = flag(
        "--overwrite", is_flag=True, help="Write the index anew instead of checking against the one there."
    )
    allow_fewer: bool = flag(
        "--allow-fewer", is_flag=True, help="With --overwrite: also where the new index has fewer samples."
    )
    decode: bool = flag("--decode", is_flag=True, help="Also decode every image, and name all that cannot be decoded.")
    max_pixels: int | None = flag(
        "--max-pixels", type=COUNT, help="With --decode: refuse larger images; default 89,478,485."
    )

    def rule(self, expected: "ShardIndex | None") -> "SampleRule":
        """The rule of a scan; what an existing index allows is allowed again."""
        from shards.tars.sample_rule import Foreign, SampleRule
        from shards.views.decode import MAX_PIXELS

        require_use(
            self.max_pixels is not None and not self.decode,
            "--max-pixels: only with --decode, which looks at the pixels",
        )
        skip_empty = self.skip_empty or bool(expected and expected.empty_shards)
        suffixes = tuple(suffix.lower().lstrip(".") for suffix in self.ignored)
        return SampleRule(
            label_key=self.label_key,
            decode=self.decode,
            max_pixels=self.max_pixels or MAX_PIXELS,
            foreign=Foreign(suffixes, self.ignore_unknown, self.key_dots, skip_empty),
            labels_optional=self.no_labels or bool(expected and expected.num_unlabelled),
        )


@click.command("check-shards")
@bundled(ShardPlace, "shard_place", click.argument("shards"))
@click.option("--num-classes", type=Count(2), help="Labels must lie below it; default: the largest label + 1.")
@class_names_option
@bundled(ScanFlags, "flags")
@workers_option("Processes.")
def check_shards(
    shard_place: ShardPlace,
    num_classes: int | None,
    class_names: Path | None,
    flags: ScanFlags,
    workers: int,
) -> None:
    """Scan SHARDS strictly, ours or anyone's, and write their index; with an index, check them against it.

    An index that is written anew keeps the class names of the one before, unless others are given.
    """
    from shards.index.classes import samples_words
    from shards.index.shard_index import ShardIndex, index_path
    from shards.index.sources import expand_shards
    from shards.tars.scan import scan_shards

    require_use(
        flags.allow_fewer and not flags.overwrite, "--allow-fewer: only with --overwrite, which writes an index anew"
    )
    assert shard_place.shards is not None, "an argument"
    path = index_path(shard_place.shards, shard_place.shard_cache)
    expected = ShardIndex.load(path) if path.exists() and not flags.overwrite else None
    rule = flags.rule(expected)
    names = _class_names(class_names, expected, path, num_classes)
    urls = expand_shards(shard_place.shards)
    fetch_shards(urls, None, shard_place, patient=True)
    events = scan_shards(
        urls,
        num_classes=num_classes or (expected.num_classes if expected else None),
        class_names=names,
        rule=rule,
        expected=expected,
        workers=max(1, workers),
        cache_dir=shard_place.shard_cache,
    )
    index = _show_scan(events, len(urls))
    if expected is None:
        index = _require_no_fewer(path, index, flags.allow_fewer)
        index.save(path)
    verb = "checked against" if expected else "index"
    result(f"{samples_words(index)} in {count(index.num_shards, 'shard')}: all as they must be\n{verb} {path}")
    result(f"fingerprint {index.fingerprint}")


def _class_names(
    class_names: Path | None, expected: "ShardIndex | None", path: Path, num_classes: int | None
) -> tuple[str, ...]:
    """The class names of a file, else those of the index that is checked or written anew; () for none."""
    from shards.index.class_names import read_class_names

    if class_names:
        return tuple(read_class_names(class_names))
    return expected.class_names if expected else _names_before(path, num_classes)


def _show_scan(events: Iterable["ScanEvent"], num_shards: int) -> "ShardIndex":
    """Show a scan as it goes, every problem in a line, and return its index; the only one is what the error says."""
    with Bar("check-shards", num_shards, "shard") as bar:
        for event in events:
            bar.to(event.shards_done)
            lines = event.problem.splitlines()
            for line in lines if num_shards > 1 or len(lines) > 1 else ():
                say(f"  {line}")
    say_ignored(event.ignored)
    if event.empty:
        shown = ", ".join(sorted(event.empty)[:3]) + (" …" if len(event.empty) > 3 else "")
        say(f"passed over: {count(len(event.empty), 'empty shard')} ({shown})")
    assert event.index is not None, "a scan ends with an index, or an error"
    _say_empty_classes(event.index)
    return event.index


def _say_empty_classes(index: "ShardIndex") -> None:
    """Name the classes without a sample; where it is the first alone, labels may begin at 1."""
    if index.num_unlabelled == index.num_samples:
        return
    empty = sorted(set(range(index.num_classes)) - set(index.label_N.tolist()))
    if empty == [0]:
        say(
            "class 0 has no sample: do the labels begin at 1? A teacher of these classes has one less; labels must "
            "begin at 0, or be names (--class-names)"
        )
    elif empty:
        shown = ", ".join(str(index.class_names[n] if index.class_names else n) for n in empty[:3])
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        say(f"{len(empty)} of {count(index.num_classes, 'class')} without a sample: {shown}{more}")


def _require_no_fewer(path: Path, index: "ShardIndex", allow_fewer: bool) -> "ShardIndex":
    """The new index with what the one before says of how its images were made.

    Errors:
        ShardError where the index that is to be written anew has more samples than the new one, unless that is meant.
    """
    from shards.index.shard_index import ShardIndex

    if not path.exists():
        return index
    try:
        before = ShardIndex.load(path)
    except ShardError as error:
        if unreadable_now(error):
            raise
        return index  # damaged, as was said when its class names were looked for: nobody knows how many it had
    if allow_fewer or index.num_samples >= before.num_samples:
        return replace(index, pixels=before.pixels, num_skipped=before.num_skipped)
    missing = [name for name in before.names if name not in index.names]
    of_shards = f"; missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}" if missing else ""
    raise ShardError(
        f"{path}: expected at least {count(before.num_samples, 'sample')} in "
        f"{count(before.num_shards, 'shard')}, as the index has now, "
        f"got {index.num_samples} in {index.num_shards}{of_shards}. Copy the shards again; to leave samples "
        "out, which makes caches of these shards useless, add --allow-fewer"
    )


def _names_before(path: Path, num_classes: int | None) -> tuple[str, ...]:
    """The class names of an index that is to be written anew, from it or from the copy beside it; () for none."""
    from shards.index.class_names import names_path, read_copy
    from shards.index.index_file import stored_class_names

    names: tuple[str, ...] = ()
    source = path
    try:
        names = stored_class_names(path) if path.exists() else ()
    except ShardError as error:
        if unreadable_now(error):
            raise
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
