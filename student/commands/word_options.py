"""Say what to type instead of a word, an option or a number that a command does not take."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import click

from shards.names import nearest, short
from shards.own_folder import is_shards_folder, is_weights
from shards.tars.journal import SHARDS_FOLDER
from student.recipe.overrides import field_named
from student.run.run_files import RUN_FOLDER
from teacher_cache.store.header import CACHE_FOLDER

_ARGUMENT_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("dest", "destination"), ("out", "output", "out_dir", "output_dir", "dest", "destination", "to")
        ),
        **dict.fromkeys(
            ("source", "photos", "images"), ("data", "input", "folder", "source", "photo", "image", "shards")
        ),
        "shards": ("data", "tars", "shard"),
        "weights": ("run", "runs", "student", "checkpoint", "model"),
        "runs": ("run", "sweep", "sweeps"),
        "name": ("model", "recipe"),
    }
)
"""By argument of a command: options that its users take it for."""
_OPTION_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("data", "dataset", "data_dir", "train", "train_shards"), ("shards",)),
        **dict.fromkeys(("validation", "valid", "test", "eval_shards"), ("val_shards",)),
        **dict.fromkeys(("output", "output_dir", "out_dir", "out", "dest"), ("out", "cache", "html")),
        **dict.fromkeys(("alpha", "distill_weight", "weight"), ("lambda",)),
        **dict.fromkeys(("temperature", "temp"), ("tau",)),
        **dict.fromkeys(("run", "runs", "student", "checkpoint", "ckpt"), ("weights", "teacher_weights")),
        **dict.fromkeys(("num_workers", "jobs"), ("workers",)),
        **dict.fromkeys(("gpu", "cuda"), ("device",)),
        **dict.fromkeys(("image_size", "img_size", "resolution"), ("size",)),
        "amp": ("precision",),
        "teacher": ("pretrained", "cache"),
    }
)
"""What others call an option: the first of these that the command has."""
_PREFIX = 3  # letters
_SHOWN = 4  # words too many
_MOST = 1e12  # a count is written out up to this
_BLANKS = 8  # in a path that was typed without quotes
_GROUPS = re.compile(r"\d{1,3}(?:[,_' ]\d{3})+")
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")


def usage_words(command: click.Command, ctx: click.Context, typed: list[str], error: click.UsageError) -> str:
    """Return the message of a usage error, with what to type where that can be told.

    Args:
        typed: all words behind the name of the command.
    """
    match error:
        case click.MissingParameter(param=click.Option() as option):
            return option_for_word(command, ctx, typed, option.opts[0])
        case click.NoSuchOption():
            advice = known_option(command, error.option_name)
        case click.BadParameter(param=click.Parameter() as param):
            advice = number_words(param, typed)
        case _ if not error.message:
            return extra_words(command, typed, ctx.args)
        case _:
            advice = ""
    return f"{error.message} {advice}".rstrip()


def option_for_word(command: click.Command, ctx: click.Context, typed: list[str], missing: str) -> str:
    """Return "Type --weights RUN": the option that suits what a word names, else the missing one; "" for no such word.

    Args:
        typed: all words behind the name of the command. missing: a required option.
    """
    values, words, _ = command.make_parser(ctx).parse_args(list(typed))
    if advice := _for_words(command, typed, words):
        return advice
    spare = set(words)
    for argument in _arguments(command):
        value = values.get(argument.name or "")
        words += value if isinstance(value, tuple) else ()
    options = {option for param in command.params if param.name not in values for option in param.opts}
    suited = {word: _options_for(Path(word)) for word in words}
    for word, names in suited.items():
        if fitting := options.intersection(names):
            return f"Type {missing} {word}" if missing in fitting else f"Type {min(fitting)} {word}, and {missing}"
    unknown = [word for word in words if word.strip() and word in spare and not suited[word]]
    return f"Type {missing} {short(unknown[0], 200)}" if unknown else ""


def extra_words(command: click.Command, typed: Sequence[str], words: Sequence[str]) -> str:
    """Return the message for words that no option or argument takes, with what to type where that can be told."""
    noun = "an unexpected word" if len(words) == 1 else "unexpected words"
    advice = _for_words(command, typed, words)
    more = f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
    shown = " ".join(map(short, words[:_SHOWN])) + more
    return f"Got {noun}: {shown}" + (f". {advice}" if advice else "")


def known_option(command: click.Command, unknown: str) -> str:
    """Return "Type --val-shards": what the command has instead of an option that it does not have; "" for nothing."""
    name = unknown.partition("=")[0].lstrip("-").replace("-", "_").lower()
    for argument in _arguments(command):
        own = str(argument.name)
        if name == own or name in _ARGUMENT_WORDS.get(own, ()):
            return f"Type {argument.human_readable_name.upper()} without a flag"
    options = [opt[2:].replace("-", "_") for param in command.params for opt in param.opts if opt.startswith("--")]
    meant = [option for option in _OPTION_WORDS.get(name, ()) if option in options][:1]
    meant = meant or [option for option in options if len(name) >= _PREFIX and option.startswith(name)]
    takes_fields = any(param.name == "sets" for param in command.params)
    if not meant and takes_fields and (field := field_named(name)):
        return f"Type --set {field}=VALUE"
    near = meant or nearest(name, options)
    return f"Type {' or '.join('--' + option.replace('_', '-') for option in near)}" if near else ""


def number_words(param: click.Parameter, typed: Sequence[str]) -> str:
    """Return how to write a number that was typed in another notation (0,5 or 20 % or 1e3); "" for no number."""
    kind, text = param.type, _value_of(param, typed)
    if isinstance(kind, click.types.IntParamType):
        number = _float(re.sub(r"[,_' ]", "", text) if _GROUPS.fullmatch(text) else text)
        return (
            f"Write {int(number)}" if number == number // 1 and abs(number) < _MOST and text != str(int(number)) else ""
        )
    if not isinstance(kind, click.types.FloatParamType):
        return ""
    if comma := _DECIMAL_COMMA.fullmatch(text):
        return f"Write a decimal point: {comma[1]}.{comma[2]}"
    most = kind.max if isinstance(kind, click.FloatRange) else None
    percent = _float(text.rstrip("% "))
    is_share = most is not None and most <= 1 and 1 < percent <= 100
    return f"Write the share as a number from 0 to 1: {percent / 100:g}" if is_share else ""


def _for_words(command: click.Command, typed: Sequence[str], words: Sequence[str]) -> str:
    """What to type for words too many: quotes, commas, or a folder instead of the files that a pattern stands for."""
    if not words:
        return ""
    for end in range(1, len(typed)):
        for start in range(max(0, end - _BLANKS), end):
            together = " ".join(typed[start : end + 1])
            if not typed[start].startswith("-") and os.path.exists(together):  # Path.exists refuses a long name
                return f"Put the path in quotes: '{together}'"
    option, values = _before(command, typed, words[0])
    if Path(words[0]).suffix == ".tar" and (option is not None or _arguments(command)):
        return "Give the folder of the tars, or a range in quotes such as 'data/train-{000000..000009}.tar'"
    if option is None or not all(_float(value) == _float(value) for value in values):  # nan: no number
        return ""
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        return f"{option.opts[0]}: expected one value, got {' '.join(values)}"
    return f"{option.opts[0]}: separate the values by commas, without blanks: {','.join(values)}"


def _before(command: click.Command, typed: Sequence[str], word: str) -> tuple[click.Option | None, list[str]]:
    """The option whose value a word follows, and all words up to the next option."""
    for param in command.params:
        for opt in param.opts if isinstance(param, click.Option) and not param.is_flag else ():
            if opt in typed:
                following = list(typed[typed.index(opt) + 1 :])
                end = next((n for n, value in enumerate(following) if value.startswith("--")), len(following))
                if word in following[1:end]:
                    assert isinstance(param, click.Option)
                    return param, following[:end]
    return None, []


def _arguments(command: click.Command) -> list[click.Argument]:
    return [param for param in command.params if isinstance(param, click.Argument)]


def _value_of(param: click.Parameter, typed: Sequence[str]) -> str:
    """What was typed for an option; "" where it stands nowhere."""
    for word, following in zip(typed, [*typed[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in param.opts:
            return value if equals else following
    return ""


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _options_for(path: Path) -> tuple[str, ...]:
    """The options that what lies at a path is given by: a run or weights, a cache, shards; () for anything else."""
    with suppress(OSError):  # what cannot be looked at, or can be no path, suits none
        return _options_by_kind(path)
    return ()


def _options_by_kind(path: Path) -> tuple[str, ...]:
    if is_weights(path) or RUN_FOLDER.is_ours(path):
        return ("--weights", "--teacher-weights")
    if CACHE_FOLDER.is_ours(path):
        return ("--cache",)
    is_shards = SHARDS_FOLDER.is_ours(path) or is_shards_folder(path) or ".tar" in path.suffixes
    return ("--shards", "--val-shards") if is_shards else ()
