"""Flags that several commands share, and how flags become frozen values.

A command receives related flags as one frozen value. Each field declares its flag: `epochs: int = flag("--epochs", …)`.
`bundled(StudentFlags, "student")` adds the options and hands the command a `StudentFlags` as its argument `student`.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any

import click

from shards.console import say
from shards.documents import toml_value
from shards.names import no_path
from shards.platforms import require_device_name, require_workers
from shards.pool.cpus import default_workers
from shards.world import world_from_env

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
        if words := no_path(text):
            self.fail(f"{words}.", param, ctx)
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
        if scheme is None and (words := no_path(text)):
            self.fail(f"{words}.", param, ctx)
        return text


class Text(click.types.StringParamType):
    """A text that says something: an empty one is what an unset variable of a shell leaves."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text; a usage error for an empty one."""
        text = super().convert(value, param, ctx)
        if not text.strip():
            self.fail("expected a text, got an empty one.", param, ctx)
        return text


class Count(click.IntRange):
    """A whole number from `min` on that fits the 31 bits in which views and rows are stored."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error for others."""
        number = super().convert(value, param, ctx)
        if number >= 1 << 31:
            self.fail(f"{number} is too large: expected at most {(1 << 31) - 1:,}.", param, ctx)
        return number


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_OPTION = "option"
SEED = click.IntRange(0, 2**63 - 1)
COUNT = Count(1)
FROM_ZERO = Count(0)
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


def workers_option(help: str = "Rendering processes.", *, beside_network: bool = False) -> Decorator:
    """--workers; ValueError where this machine has none.

    Args:
        beside_network: whether the command takes `suited_workers` of it.
    """

    def checked(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
        if value is None:
            return default_workers(world_from_env(shared=True, decides=False))
        require_workers(value)
        return value

    return click.option(
        "--workers",
        show_default="CPUs of this process less one" + "; without a GPU an eighth of them" * beside_network,
        type=click.IntRange(0, MOST_WORKERS),
        callback=checked,
        help=help,
    )


def suited_workers(workers: int, device: str) -> int:
    """The rendering processes of --workers; by default fewer where the network computes on the same CPUs."""
    if given_flag("workers") or device != "cpu":
        return workers
    return default_workers(world_from_env(shared=True, decides=False), beside_network=True)


def given_flag(name: str) -> bool:
    """Whether the user typed this flag of the running command, rather than leaving it at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def typed_words(*names: str) -> list[object]:
    """Return options of the running command that the user typed, as words for the command that comes next.

    Args:
        names: of their parameters.
    """
    context = click.get_current_context()
    words: list[object] = []
    for option in context.command.params:
        if not isinstance(option, click.Option) or option.name not in names or not given_flag(str(option.name)):
            continue
        value = context.params[str(option.name)]
        if option.is_flag:
            words += [option.opts[0]] * bool(value)
        else:
            words += [word for item in (value if option.multiple else (value,)) for word in (option.opts[0], item)]
    return words


def refuse_ignored(names: Iterable[str], why: str) -> None:
    """ValueError for a flag that was typed and that this command, as it is called, would not read.

    Args:
        names: parameters of the running command. why: which flag or value leaves them without meaning.
    """
    for param in click.get_current_context().command.params:
        if param.name in names and given_flag(param.name):
            raise ValueError(f"{'/'.join(param.opts)}: would be ignored: {why}; drop it")


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
        require_device_name(value, "--device")
    return value


device_option = click.option(
    "--device",
    metavar="[cpu|cuda|cuda:N]",
    callback=_device,
    help="Where networks run; default: a GPU if there is one.",
)
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
