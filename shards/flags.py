"""Flags that several commands share, and how flags become values.

A command receives related flags as one frozen value. Each field declares its flag: `epochs: int = flag("--epochs", …)`.
`bundled(StudentFlags, "student")` adds the options and hands the command a `StudentFlags` as its argument `student`.
"""

import functools
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from shards.console import Bar, say
from shards.data_defaults import ImageSet
from shards.errors import RunError
from shards.platforms import require_device_name, require_workers
from shards.pool.cpus import default_workers
from shards.signals import StopRequest
from shards.text.figures import count
from shards.world import ALONE, World, world_from_env

if TYPE_CHECKING:
    from shards.index.reader import ShardReader
    from shards.index.shard_index import ShardIndex

Decorator = Callable[[Any], Any]
MOST_WORKERS = max(64, 8 * (os.cpu_count() or 1))
"""More processes than this are a slip of the finger: each one takes memory and a core."""


class Number(click.FloatRange):
    """A finite number in a range: nan compares with nothing, so it would pass through a range alone."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error for others."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}.", param, ctx)
        return number


class LocalPath(click.Path):
    """A path of this machine: '' would be the current folder, and `s3:…` a folder of that name."""

    def __init__(self) -> None:
        """A path that need not be there: what must be is for the command to say."""
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error for what is none."""
        text = os.fspath(value)
        if not text.strip():
            self.fail("expected a path, got an empty one.", param, ctx)
        if (scheme := _SCHEME.match(text)) is not None:
            self.fail(f"expected a local path, got {scheme[0]}…; ./{text} is one of that name.", param, ctx)
        return super().convert(value, param, ctx)


class CacheParam(click.ParamType[str]):
    """Where a cache is: a folder or a url; '' and `pipe:x` would make a folder of that name."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; a usage error for what is no place."""
        text = str(value)
        if not text.strip():
            self.fail("expected a folder or url, got an empty one.", param, ctx)
        scheme = _SCHEME.match(text)
        # Which urls are places of a cache is said where they are opened: object stores come as packages.
        if scheme is not None and not re.match(r"(?!s?ftp|ssh|smb)[A-Za-z][A-Za-z0-9+.-]*://.", text):
            known = "a folder or an object store such as s3://bucket/name"
            self.fail(f"expected {known}, got {scheme[0]}…; ./{text} is a folder of that name.", param, ctx)
        return text


class Text(click.ParamType[str]):
    """A text that says something: an empty one is what an unset variable of a shell leaves."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text; a usage error for an empty one."""
        if not str(value).strip():
            self.fail("expected a name or place, got an empty one.", param, ctx)
        return str(value)


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_OPTION = "option"
SEED = click.IntRange(0, 2**63 - 1)
COUNT = click.IntRange(1)
FROM_ZERO = click.IntRange(0)
PATH = LocalPath()
TEXT = Text()
CACHE = CacheParam()


def options(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which they are to be listed."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def flag(*declarations: str, **attributes: Any) -> Any:
    """Declare the flag of a field of a frozen value; arguments as of `click.option`, whose name is the field's."""
    return field(metadata={_OPTION: lambda name: click.option(*declarations, name, **attributes)})


def shared(option: Decorator) -> Any:
    """Declare that an option which other commands have too fills a field of a frozen value."""
    return field(metadata={_OPTION: lambda name: option})


def bundled(value: type, argument: str, *decorators: Decorator) -> Decorator:
    """Options whose values the command receives as one frozen `value`, under the name `argument`.

    Args:
        decorators: the options of fields that declare none; those come first in the help.
    """
    names = [item.name for item in fields(value)]
    own = [item.metadata[_OPTION](item.name) for item in fields(value) if _OPTION in item.metadata]

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def command(**arguments: Any) -> Any:
            mine = {name: arguments.pop(name) for name in names}
            return function(**arguments, **{argument: value(**mine)})

        return options(*decorators, *own)(command)

    return decorate


def pairs(option: str, items: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE texts with values as of `toml_value`."""
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} {item!r}: expected KEY=VALUE")
        values[key] = toml_value(text)
    return values


def toml_value(text: str) -> Any:
    """A value as TOML writes it (3, 0.5, true, [1, 2]), else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


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
        """Survey a small set, by which its settings are chosen; of a large one return the number of images alone."""
        from shards.views.decode import survey

        if not (images := ImageSet(num_images=index.num_samples)).is_small:
            return images
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
    """The folder of validation shards beside a local folder of training shards, as make-shards leaves them; or None."""
    folder = Path(shards)
    val = beside(folder, "val")
    return str(val) if folder.name == "train" and (val / "shards.index").is_file() else None


def shard_options(required: bool = True, help: str = "") -> Decorator:
    """--shards and --shard-cache, as `place`."""
    where = (
        "Shards: a folder, a tar, or a brace range such as train-{000000..001023}.tar; "
        "local, s3://, gs://, az:// or https://."
    )
    option = click.option("--shards", required=required, type=TEXT, help=help or where)
    return bundled(ShardPlace, "shard_place", option)


def workers_option(help: str = "Rendering processes.", *, beside_network: bool = False) -> Decorator:
    """--workers; ValueError where this machine has none.

    Args:
        beside_network: whether the command takes `suited_workers` of it.
    """

    def checked(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
        if value is None:
            return default_workers(world_from_env(shared=True))
        require_workers(value)
        return value

    return click.option(
        "--workers",
        show_default="CPUs of this process less one" + "; without a GPU an eighth of them" * beside_network,
        type=click.IntRange(0, MOST_WORKERS),
        callback=checked,
        help=help,
    )


def suited_workers(workers: int, device_type: str) -> int:
    """The rendering processes of --workers; by default fewer where the network computes on the same CPUs."""
    if given_flag("workers") or device_type != "cpu":
        return workers
    return default_workers(world_from_env(shared=True), beside_network=True)


def given_flag(name: str) -> bool:
    """Whether the user typed this flag of the running command, rather than leaving it at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def refuse_ignored(names: Iterable[str], why: str) -> None:
    """ValueError for a flag that was typed and that this command, as it is called, would not read.

    Args:
        names: parameters of the running command. why: which flag or value leaves them without meaning.
    """
    for param in click.get_current_context().command.params:
        if param.name in names and given_flag(param.name):
            raise ValueError(f"{'/'.join(param.opts)}: would be ignored: {why}; drop it")


class Changed(NamedTuple):
    """A field that a user asks to be `new` where what exists was begun with `old`; parameters: what may have set it."""

    field: str
    old: Any
    new: Any
    parameters: tuple[str, ...]


def refuse_changes(out: Path, changes: Iterable[Changed]) -> None:
    """RunError naming the flag of the first change of an existing run or sweep, before anything follows from it."""
    for name, old, new, parameters in changes:
        context = click.get_current_context()
        params = [param for param in context.command.params if param.name in parameters and given_flag(param.name)]
        keys = {text.partition("=")[0].strip().removesuffix(".name") for text in context.params.get("sets") or ()}
        words = [(f"--set {name}=" if name in keys else f"--config: {name} = ", new)]
        words = [(f"{param.opts[0]} ", context.params.get(param.name or "")) for param in params] or words
        typed = words[0][0] + (f"{words[0][1]:g}" if isinstance(words[0][1], float) else str(words[0][1]))
        existing = "none" if old == "" else old
        raise RunError(
            f"{typed}: {out} was begun with {existing}; leave it out to go on with that, or give another --out"
        )


def stop_with(code: int) -> click.exceptions.Exit:
    """Return the exception that ends the command with an exit code and no further message."""
    return click.exceptions.Exit(code)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Arithmetic of the forward pass; default: that of the existing run or cache, else bf16 on a GPU (fp16 "
    "if it has no bf16), fp32 on a CPU.",
)


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        require_device_name(value)
    return value


device_option = click.option(
    "--device",
    metavar="[cpu|cuda|cuda:N]",
    callback=_device,
    help="Where networks run; default: a GPU if there is one.",
)
