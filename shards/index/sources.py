"""Where shards are: a pattern of the command line becomes a list of local paths and urls."""

import itertools
import math
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import braceexpand

from shards.errors import ShardError

REMOTE_SCHEMES = ("s3", "gs", "https", "http")
_MAX_SHARDS = 1_000_000


def expand_shards(pattern: str) -> list[str]:
    """The shards a pattern names, in order.

    A pattern is a tar file, a directory (all its *.tar, sorted by name), or either with brace ranges as in
    `train-{000000..001023}.tar`; several are joined by "::". Files are local or s3://, gs://, https://, http://.

    Errors:
        ValueError for a pattern that cannot be one: `pipe:`, another scheme, unbalanced braces, compressed tars.
        ShardError for local files that are not there, and for two shards of one name.
    """
    urls: list[str] = []
    for part in pattern.split("::"):
        if not part:
            raise ValueError(f"shards: expected a path or url, got an empty one in {pattern!r}")
        urls.extend(itertools.chain.from_iterable(map(_expand_one, _expand_braces(part))))
    _require_unique_names(urls, pattern)
    return urls


def is_remote(url: str) -> bool:
    """Whether a shard has to be fetched before it can be read."""
    return "://" in url


def base_name(url: str) -> str:
    """The file name of a shard, without folders, query or fragment."""
    return os.path.basename(urlsplit(url).path if is_remote(url) else url)


def _expand_braces(text: str) -> list[str]:
    # braceexpand builds the whole product in memory: what its ranges multiply to is counted first.
    ranges = re.findall(r"\{(-?[0-9]+)\.\.(-?[0-9]+)", text)
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > _MAX_SHARDS:
        raise ValueError(f"shards: expected at most {_MAX_SHARDS} shards, got more from {text!r}")
    try:
        return list(braceexpand.braceexpand(text))
    except ValueError:  # UnbalancedBracesError
        raise ValueError(f"shards: expected balanced braces, got {text!r}") from None


def _expand_one(text: str) -> list[str]:
    scheme, separator, rest = text.partition(":")
    if scheme == "pipe":
        raise ValueError(f"shards: pipe: would run a shell command and is refused: {text!r}; give files or urls")
    if text.startswith("file://"):
        text = rest.removeprefix("//")
    elif separator and rest.startswith("//"):
        if scheme not in REMOTE_SCHEMES:
            known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
            raise ValueError(f"shards: expected a local path or one of {known}; got {text!r}")
        _require_tar(text)
        return [text]
    path = Path(text).expanduser()
    if path.is_dir():
        tars = sorted(str(entry) for entry in path.glob("*.tar") if not entry.name.startswith("."))
        if not tars:
            raise ShardError(f"{path}: expected *.tar files in this directory, got none; check the path")
        return tars
    _require_tar(text)
    if not path.is_file():
        raise ShardError(f"{path}: no such shard; check the path and the brace range")
    return [str(path)]


def _require_tar(url: str) -> None:
    if not base_name(url).endswith(".tar"):
        raise ValueError(
            f"shards: expected names ending in .tar (compressed tars cannot be read by offset; a remote directory is "
            f"written as a brace range), got {url!r}"
        )


def _require_unique_names(urls: list[str], pattern: str) -> None:
    first: dict[str, str] = {}
    for url in urls:
        other = first.setdefault(base_name(url), url)
        if other is not url:
            raise ShardError(
                f"{pattern}: two shards are called {base_name(url)!r}: {other} and {url}; "
                "a shard is known by its name: rename one"
            )
