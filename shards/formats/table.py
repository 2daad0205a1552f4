"""The formats of input by name, in the order in which they are tried."""

from dataclasses import replace

from shards.formats.class_folders import CLASS_FOLDERS
from shards.formats.input_format import InputFormat, Source
from shards.formats.labels import LABELS
from shards.formats.parquet import PARQUET
from shards.formats.splits import SPLITS
from shards.names import OpenSet

FORMATS = OpenSet("formats", "format", InputFormat, (PARQUET, SPLITS, LABELS, CLASS_FOLDERS))


def format_of(source: Source, name: str | None = None) -> tuple[InputFormat, Source]:
    """The format of a source: the one that is named, else the first that it looks like.

    Errors:
        UnknownMemberError (a ValueError) for an unknown name; ShardError for a source that cannot be read.
    """
    if name is not None:
        return FORMATS.named(name, "--format"), replace(source, format_named=True)
    return next(format for format in FORMATS.values() if format.suits(source)), source
