"""Say by which option a word must be typed that stands without one, where a required option is missing."""

from pathlib import Path

import click

from shards.own_folder import is_shards_folder
from shards.tars.journal import SHARDS_FOLDER
from student.run.run_files import RUN_FOLDER
from teacher_cache.network.weights_metadata import is_weights
from teacher_cache.store.header import CACHE_FOLDER


def option_for_word(command: click.Command, ctx: click.Context, typed: list[str], missing: str) -> str:
    """Return "Type --weights RUN": the option that suits what a word names, else the missing one; "" for no such word.

    Args:
        typed: all words behind the name of the command. missing: a required option.
    """
    values, words, _ = command.make_parser(ctx).parse_args(list(typed))
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    for argument in arguments:
        value = values.get(argument.name or "")
        words += value if isinstance(value, tuple) else ()
    options = {option for param in command.params if param.name not in values for option in param.opts}
    suited = {word: _options_for(Path(word)) for word in words}
    for word, names in suited.items():
        if fitting := options.intersection(names):
            return f"Type {missing} {word}" if missing in fitting else f"Type {min(fitting)} {word}, and {missing}"
    unknown = [word for word in words if word.strip() and not arguments and not suited[word]]
    return f"Type {missing} {unknown[0]}" if unknown else ""


def _options_for(path: Path) -> tuple[str, ...]:
    """The options that what lies at a path is given by: a run or weights, a cache, shards; () for anything else."""
    if is_weights(path) or RUN_FOLDER.is_ours(path):
        return ("--weights", "--teacher-weights")
    if CACHE_FOLDER.is_ours(path):
        return ("--cache",)
    is_shards = SHARDS_FOLDER.is_ours(path) or is_shards_folder(path) or ".tar" in path.suffixes
    return ("--shards", "--val-shards") if is_shards else ()
