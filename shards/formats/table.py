"""The formats of input by name, in the order in which they are tried."""

from dataclasses import replace

from shards.formats.class_folders import CLASS_FOLDERS
from shards.formats.input_format import InputFormat, Source
from shards.formats.labels import LABELS
from shards.formats.no_labels import NO_LABELS
from shards.formats.parquet import PARQUET
from shards.formats.splits import SPLITS
from shards.names import OpenSet

FORMATS = OpenSet("formats", "format", InputFormat, (PARQUET, SPLITS, LABELS, CLASS_FOLDERS))


def format_of(source: Source, name: str | None = None) -> tuple[InputFormat, Source]:
    """The format of a source: the one that is named, else the first that it looks like.

    Images without labels have one format, whatever lies around them.

    Errors:
        UnknownMemberError (a ValueError) for an unknown name; ValueError for a name where there are to be no labels;
        ShardError for a source that cannot be read.
    """
    if source.no_labels:
        if name is not None:
            raise ValueError(f"--format {name}: reads labels; drop it, or drop --no-labels")
        return NO_LABELS, source
    if name is not None:
        return FORMATS.named(name, "--format"), replace(source, format_named=True)
    return next(format for format in FORMATS.values() if format.suits(source)), source
