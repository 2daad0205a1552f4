"""Expand a pattern of the command line into a list of local paths and urls of shards."""

import itertools
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import braceexpand

from shards.documents import matching
from shards.errors import ShardError
from shards.names import as_path
from shards.own_folder import is_cache_folder, is_run_folder, is_sweep_folder, what_is

AZURE_SCHEMES = ("az", "abfs", "abfss")
REMOTE_SCHEMES = ("s3", "gs", "gcs", *AZURE_SCHEMES, "https", "http")
_MAX_SHARDS = 1_000_000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst")
_TAR_LIKE = (".tar", *_COMPRESSED)
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def expand_shards(pattern: str, *, one_index: bool = True) -> list[str]:
    """List the shards that a pattern names, in order.

    A pattern is a tar file, a directory (all its *.tar, sorted by name), or either with brace ranges as in
    `train-{000000..001023}.tar`; several are joined by "::". Files are local or s3://, gs://, az://, https://, http://.

    Args:
        one_index: whether one index is of all of them, which knows a shard by its name.

    Errors:
        ValueError for a pattern that cannot be one: `pipe:`, another scheme, unbalanced braces, compressed tars.
        ShardError for local files that are not there, and with `one_index` for two shards of one name.
    """
    urls: list[str] = []
    for part in pattern.split("::"):
        if not part:
            raise ValueError(f"shards: expected a path or url, got an empty one in {pattern!r}")
        urls.extend(itertools.chain.from_iterable(map(_expand_one, _expand_braces(part))))
    twins = named_twice(urls) if one_index else None
    if twins:
        raise ShardError(
            f"{pattern}: two shards are called {base_name(twins[0])!r}: {twins[0]} and {twins[1]}; an index knows a "
            "shard by its name: rename one, or give each set an index of its own (check-shards SET) and join the sets "
            "as SET::SET where they are used"
        )
    return urls


def named_twice(urls: list[str]) -> tuple[str, str] | None:
    """Find the first two shards of one name; None where each name is there once."""
    first: dict[str, str] = {}
    for url in urls:
        if (name := base_name(url)) in first:
            return first[name], url
        first[name] = url
    return None


def is_remote(url: str) -> bool:
    """Tell whether a shard has to be fetched before it can be read."""
    return "://" in url


def base_name(url: str) -> str:
    """Return the file name of a shard, without folders, query or fragment."""
    return os.path.basename(urlsplit(url).path if is_remote(url) else url)


def _expand_braces(text: str) -> list[str]:
    # braceexpand builds the whole product in memory: how many it will be is counted first.
    if _count(text) > _MAX_SHARDS:
        raise ValueError(f"shards: expected at most {_MAX_SHARDS} shards, got more from {text[:200]!r}")
    try:
        return list(braceexpand.braceexpand(text))
    except ValueError:  # UnbalancedBracesError
        raise ValueError(f"shards: expected balanced braces, got {text!r}") from None


def _count(text: str) -> int:
    """Count the texts that braces expand to, at least: alternatives add, what stands side by side multiplies."""
    sums, products = [0], [1]  # of the levels that are open, the outermost first
    start = 0
    for at, character in enumerate(text):
        if character == "{":
            sums.append(0)
            products.append(1)
            start = at + 1
        elif character == "," and len(sums) > 1:
            sums[-1] += products[-1]
            products[-1] = 1
        elif character == "}" and len(sums) > 1:
            inner = (sums.pop() + products.pop()) * _range(text[start:at])
            products[-1] *= inner
        if max(products) > _MAX_SHARDS or max(sums) > _MAX_SHARDS:
            return _MAX_SHARDS + 1
    return sums[0] + products[0]


def _range(text: str) -> int:
    """Count the numbers of `first..last` or `first..last..step`; 1 for what is no range."""
    match = re.fullmatch(r"(-?[0-9]{1,18}|[A-Za-z])\.\.(-?[0-9]{1,18}|[A-Za-z])(?:\.\.(-?[0-9]{1,18}))?", text)
    if match is None:
        return _MAX_SHARDS + 1 if re.fullmatch(r"-?[0-9]+\.\.-?[0-9]+(\.\.-?[0-9]+)?", text) else 1
    first, last = (ord(end) if end.isalpha() else int(end) for end in match.groups()[:2])
    return abs(last - first) // max(1, abs(int(match[3] or 1))) + 1


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
    path = as_path("shards", text).expanduser()
    if path.is_dir():
        tars = sorted(str(entry) for entry in matching(path, "*.tar") if not entry.name.startswith("."))
        if not tars:
            raise ShardError(f"{path}: expected *.tar files in this directory, got {_contents(path)}")
        return tars
    if not path.exists() and not text.endswith(_TAR_LIKE):
        raise ShardError(f"shards: {path}: no such file or folder; check the path")
    if not text.endswith(".tar") and (what := what_is(path)):
        raise ValueError(f"shards: {path}: expected a folder with *.tar files or a tar file, got {what}")
    _require_tar(text)
    if not path.is_file():
        raise ShardError(f"{path}: no such shard; check the path and the brace range")
    return [str(path)]


def _contents(folder: Path) -> str:
    """Say what a folder without tars holds instead, and what to do."""
    names = sorted(entry.name for entry in folder.iterdir())
    compressed = [name for name in names if name.endswith(_COMPRESSED)]
    images = [name for name in names if name.lower().endswith(_IMAGES)]
    if compressed:
        return (
            f"{len(compressed)} compressed ones ({compressed[0]}): samples are read by their place: "
            "decompress them (gzip -d, xz -d, zstd -d)"
        )
    if is_cache_folder(folder):
        return "a teacher cache: it is given by --cache, beside the shards that it was made from"
    if is_run_folder(folder) or is_sweep_folder(folder):
        return what_is(folder)
    inner = [name for name in names if matching(folder / name, "*.tar")]
    if inner:
        return f"folders with shards in them: {', '.join(inner[:3])}; give one of them, such as {folder / inner[0]}"
    if images or any((folder / name).is_dir() for name in names):
        return "images or folders: make shards of one folder per class with make-shards, or check the path"
    return "none; check the path"


def _require_tar(url: str) -> None:
    if not base_name(url).endswith(".tar"):
        raise ValueError(
            f"shards: expected names ending in .tar (compressed tars cannot be read by offset; a remote directory is "
            f"written as a brace range), got {url!r}"
        )
