"""What the commands of shards share: a flag, a check, and how members that were passed over are said."""

from collections.abc import Mapping

import click

from shards.console import say
from shards.flags import PATH

class_names_option = click.option(
    "--class-names", type=PATH,
    help="A UTF-8 file with one class a line, in the order of the labels, no comments or columns; default: the "
    "folders, sorted.")  # fmt: skip


def require_use(ignored: bool, words: str) -> None:
    """ValueError where a flag would be ignored."""
    if ignored:
        raise ValueError(words)


def say_ignored(ignored: Mapping[str, int]) -> None:
    """Say how many members were passed over."""
    if ignored:
        counts = ", ".join(f"{count} × {suffix}" for suffix, count in sorted(ignored.items()))
        say(f"passed over: {counts}")
