"""The commands that make and check shards."""

from pathlib import Path

import click

from shards.console import Bar, result
from shards.flags import workers_option

_class_names = click.option(
    "--class-names", type=click.Path(path_type=Path),
    help="A file with one class a line, in the order of the labels; default: the folders, sorted.",
)  # fmt: skip


@click.command("make-shards")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--samples-per-shard", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, help="Of the order of the samples.")
@_class_names
@click.option("--max-side", type=int, help="Compact shards: reduce larger images to this longest side, pixels.")
@click.option("--quality", type=int, help="Of the JPEGs of compact shards; default 90. Only with --max-side.")
@workers_option("Processes; the bytes do not depend on it.")
def make_shards(
    source: Path,
    dest: Path,
    samples_per_shard: int,
    seed: int,
    class_names: Path | None,
    max_side: int | None,
    quality: int | None,
    workers: int,
) -> None:
    """Write an ImageFolder tree SOURCE (class/…/image) as WebDataset shards and an index in DEST.

    Run it again to go on where it was stopped; finished shards are kept. The bytes of the images are kept as they are,
    unless --max-side makes them smaller, for good.
    """
    from shards.index.compact import DEFAULT_QUALITY, CompactRule
    from shards.tars.image_folder import read_class_names
    from shards.tars.writer import write_shards

    if quality is not None and max_side is None:
        raise ValueError("--quality: only with --max-side, which makes compact shards")
    quality = DEFAULT_QUALITY if quality is None else quality
    compact = None if max_side is None else CompactRule(max_side=max_side, quality=quality)
    bar = None
    names = read_class_names(class_names) if class_names else ()
    for event in write_shards(
        source,
        dest,
        samples_per_shard=samples_per_shard,
        seed=seed,
        workers=max(1, workers),
        class_names=names,
        compact=compact,
    ):
        bar = bar or Bar("make-shards", event.num_shards, "shards")
        bar.to(event.shards_done)
        if event.index is not None:
            index = event.index
            result(
                f"{event.num_samples} samples of {index.num_classes} classes in {index.num_shards} shards, "
                f"{event.num_bytes / 1e6:.1f} MB; index {event.path}\nfingerprint {index.fingerprint}"
            )
            if index.compact:
                result(f"compact: longest side {index.compact.max_side}, JPEG quality {index.compact.quality}")


@click.command("check-shards")
@click.argument("shards")
@click.option("--num-classes", type=click.IntRange(2), help="Labels must lie below it; default: the largest label + 1.")
@_class_names
@click.option("--label-key", help="Take the label from this key of each sample's .json (img2dataset).")
@click.option("--overwrite", is_flag=True, help="Write the index anew instead of checking against the one there.")
@click.option("--decode", is_flag=True, help="Also decode every image.")
@click.option("--shard-cache", type=click.Path(path_type=Path), help="Where remote shards are kept locally.")
@workers_option("Processes.")
def check_shards(
    shards: str,
    num_classes: int | None,
    class_names: Path | None,
    label_key: str | None,
    overwrite: bool,
    decode: bool,
    shard_cache: Path | None,
    workers: int,
) -> None:
    """Scan SHARDS strictly, ours or anyone's, and write their index; with an index, check them against it."""
    from shards.index.shard_index import ShardIndex, index_path
    from shards.index.sources import expand_shards
    from shards.tars.image_folder import read_class_names
    from shards.tars.scan import scan_shards

    path = index_path(shards, shard_cache)
    expected = ShardIndex.load(path) if path.exists() and not overwrite else None
    names = read_class_names(class_names) if class_names else expected.class_names if expected else ()
    urls = expand_shards(shards)
    with Bar("check-shards", len(urls), "shards") as bar:
        for event in scan_shards(
            urls,
            num_classes=num_classes or (expected.num_classes if expected else None),
            class_names=names,
            label_key=label_key,
            expected=expected,
            decode=decode,
            workers=max(1, workers),
            cache_dir=shard_cache,
        ):
            bar.to(event.shards_done)
            if event.problem:
                bar.say(f"  {event.problem}")
            if event.index is not None:
                index = event.index
    if expected is None:
        index.save(path)
    result(
        f"{index.num_samples} samples of {index.num_classes} classes in {index.num_shards} shards: "
        "all as they must be\n"
        f"{'index' if expected is None else 'checked against'} {path}\nfingerprint {index.fingerprint}"
    )
