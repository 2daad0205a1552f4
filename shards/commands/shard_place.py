"""Where shards are, as the commands that read them are told: `--shards` and `--shard-cache` become a `ShardPlace`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import PATH, Decorator, Number, bundled, flag, stop_with
from shards.console import Bar, say
from shards.data_defaults import ImageSet
from shards.own_folder import is_shards_folder
from shards.signals import StopRequest
from shards.text.figures import count
from shards.world import ALONE, World, world_from_env

if TYPE_CHECKING:
    from shards.index.reader import ShardReader
    from shards.index.shard_index import ShardIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlace:
    """Where shards are, and where copies of remote ones are kept; `shards` is None where a command can do without.

    `shard_cache_limit` is how much room the copies of one set may take, GB.
    """

    shards: str | None
    shard_cache: Path | None = flag("--shard-cache", type=PATH, help="Where remote shards are kept locally.")
    shard_cache_limit: float | None = flag(
        "--shard-cache-limit",
        type=Number(0, 1_000_000, min_open=True),
        metavar="GB",
        help="Refuse remote shards whose copies take more room than this.",
    )

    def index(self) -> "ShardIndex":
        """The index of the shards; errors as `open_index`."""
        assert self.shards is not None, "the command asks only when there are shards"
        return self.index_of(self.shards)

    def index_of(self, shards: str) -> "ShardIndex":
        """The index of other shards, kept in the same place."""
        from shards.index.shard_index import open_index

        index = open_index(shards, self.shard_cache)
        if index.join_words and world_from_env().rank == 0:
            say(f"shards: {index.join_words}")
        return index

    def labelled(self, shards: str | None, flag: str, what: str) -> "ShardIndex":
        """The index of shards that a flag names, all of whose samples have a label.

        Args:
            what: needs the labels, such as "validation".

        Errors:
            ShardError where some have none; others as `open_index`.
        """
        from shards.index.index_checks import require_labels

        assert shards is not None, "the flag is required"
        index = self.index_of(shards)
        require_labels(index, f"{flag} {shards}", what)
        return index

    def survey(self, index: "ShardIndex") -> ImageSet:
        """Survey a small set, by which its settings are chosen; of a large one return the numbers of images alone."""
        from shards.views.decode import survey

        if not index.image_set.is_small:
            return index.image_set
        self.fetch(world_from_env(shared=True), index)
        with self.reader(index) as reader:
            return survey(reader)

    def reader(self, index: "ShardIndex") -> "ShardReader":
        """A reader of an index; a context manager."""
        from shards.index.reader import ShardReader

        reader = ShardReader(index, self.shard_cache)
        # One of several processes fetches what it needs itself, and maybe on a machine of its own.
        alone = world_from_env(shared=True).size == 1
        return reader.with_room(_as_bytes(self.shard_cache_limit)) if alone else reader

    def fetch(self, world: World, *indexes: "ShardIndex | None") -> None:
        """Fetch the remote shards of some sets that are missing here before the work begins; see `fetch_shards`."""
        present = [index for index in indexes if index is not None]
        urls, sizes = [url for index in present for url in index.urls], [index.tar_bytes_S for index in present]
        fetch_shards(urls, [int(size) for part in sizes for size in part], self, world)


def fetch_shards(
    urls: Sequence[str], sizes: Sequence[int] | None, place: ShardPlace, world: World = ALONE, *, patient: bool = False
) -> None:
    """Fetch remote shards that are missing here, several at once, with a bar; a signal ends the command.

    Args:
        sizes: bytes of each shard; None asks the server.
        world: its ranks begin at different shards, and the first one draws the bar.
        patient: as of `fetch_missing`.

    Errors:
        ShardError for a shard that cannot be fetched, or for shards that do not fit.
    """
    from shards.index.remote import fetch_missing, sizes_on_server
    from shards.index.sources import is_remote

    if not any(map(is_remote, urls)):
        return
    with StopRequest() as stop, ExitStack() as stack:
        bar: Bar | None = None
        for now in fetch_missing(
            urls,
            sizes_on_server(urls, should_stop=lambda: stop.told) if sizes is None else sizes,
            place.shard_cache,
            limit_bytes=_as_bytes(place.shard_cache_limit),
            world=world,
            patient=patient,
            should_stop=lambda: stop.told,
        ):
            if world.rank == 0:
                bar = bar or stack.enter_context(Bar("fetch", now.of_bytes, "byte"))
                bar.to(now.num_bytes, f"{now.num_files:,} of {count(now.of_files, 'shard')}")
        if stop.told:
            say("stopped while fetching shards; those that are complete are kept: run the same command again")
            raise stop_with(stop.exit_code)


def _as_bytes(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else gigabytes * 1e9


def beside(path: Path, name: str) -> Path:
    """A path of that name in the folder of another; `.`, `..` and `/` are folders without a name of their own."""
    return path.with_name(name) if path.name not in ("", "..") else path / ".." / name


def val_beside(shards: str) -> str | None:
    """The folder of validation shards beside a local folder of training shards, as make-shards leaves them; or None.

    Of joined sets (A::B) the first is looked at, which has labels.
    """
    folder = Path(shards.partition("::")[0])
    val = beside(folder, "val")
    return str(val) if folder.name == "train" and is_shards_folder(val) else None


def shard_options(required: bool = True, help: str = "") -> Decorator:
    """--shards and --shard-cache, as `place`."""
    where = (
        "Shards: a folder, a tar, or a brace range such as train-{000000..001023}.tar; "
        "local, s3://, gs://, az:// or https://."
    )
    option = click.option("--shards", required=required, help=help or where)
    return bundled(ShardPlace, "shard_place", option)
