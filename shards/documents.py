"""The one door for files that are read: regular, no larger than they can be, parsed, and checked against a schema.

What lies on a disk or behind an address may be damaged, of another version, or made by somebody who means harm. A
document is read only through here: first its kind and its size, then its form (JSON of bounded depth), then its types
and ranges, spelled out as a schema (`msgspec.Struct` with `Annotated` ranges). So what is behind the door holds what
it says, and no number in a file can ask for memory before it has been compared with what is possible.
"""

import json
import os
import stat
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from shards.errors import ArtefactError, ShardError
from shards.values import validation_words

T = TypeVar("T")

MOST_BYTES = 1 << 28
"""Of a JSON document; the attributes of a cache of a million shards have 60 MB."""
_MOST_DEPTH = 64
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotRegularError(OSError):
    """Something that is no regular file stands where one is read: it could block, or never end."""

    def __str__(self) -> str:
        """Without the number of an error that the system did not have."""
        return f"{self.filename}: {self.strerror}"


def kind_of_file(mode: int) -> str:
    """Name the kind of a file that is not regular: "a FIFO"; `mode` as of `os.stat`."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def open_regular(path: Path | str, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file to read; OSError, `NotRegularError` for a FIFO, a device, a folder or a socket."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO without a writer would block
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotRegularError(None, f"expected a regular file, got {kind_of_file(mode)}", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb", buffering=buffering)  # where it has no memory for a buffer, it closes it itself


def read_regular(path: Path | str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file; OSError when it cannot be read or is larger than what is read here can be."""
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > most_bytes:
            raise NotRegularError(None, f"expected at most {most_bytes} bytes, got {num_bytes}", str(path))
        return file.read()


def matching(folder: Path, pattern: str) -> list[Path]:
    """The entries of a folder whose names match, sorted; none where there is no folder, OSError for one not listed.

    `Path.glob` takes what it cannot list for empty.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(folder / name for name in names if fnmatchcase(name, pattern))


def below(folder: Path) -> list[Path]:
    """All that lies below a folder and is no folder, or a link to one, sorted; OSError for a folder not listed."""

    def unlisted(error: OSError) -> None:
        raise error

    return sorted(Path(inner, name) for inner, _, names in os.walk(folder, onerror=unlisted) for name in names)


def read_image_file(path: Path) -> bytes:
    """All bytes of an image file; ShardError when it cannot be read."""
    try:
        return read_regular(path)
    except OSError as error:
        raise ShardError(f"image {path}: cannot be read: {error.strerror}") from error


def read_utf8(path: Path, where: str, what: str) -> str:
    """The text of a UTF-8 file without a byte order mark.

    Args:
        where: what messages call the file. what: what it should hold, in words.

    Errors:
        ArtefactError when there is no such file; ValueError when it cannot be read or is of another encoding.
    """
    try:
        data = read_regular(path)
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{where}: expected UTF-8, got UTF-16; save it as UTF-8")
        if b"\0" in data:
            raise ValueError(f"{where}: expected a UTF-8 file with {what}, got a binary file, such as an image")
        return data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ArtefactError(f"{where}: no such file; expected a UTF-8 file with {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: cannot be read: {error}; expected a UTF-8 file with {what}") from error


def parse_json(data: bytes | str, where: Path | str, *, error: type[ArtefactError], advice: str) -> Any:
    """The value of a JSON text; `error` saying where, and `advice`, when it is none or is nested too deeply."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise error(f"{where}: expected JSON nested at most {_MOST_DEPTH} deep, got more; {advice}") from None
    except ValueError as problem:  # of form, of encoding, or numbers of thousands of digits
        raise error(f"{where}: expected JSON, got {_short(problem)}; {advice}") from None
    layer = [value]
    for _ in range(_MOST_DEPTH):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return value
    raise error(f"{where}: expected JSON nested at most {_MOST_DEPTH} deep, got more; {advice}")


def toml_value(text: str) -> Any:
    """A value as TOML writes it (3, 0.5, true, [1, 2]), else the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def checked(value: Any, schema: type[T], where: Path | str, *, error: type[ArtefactError], advice: str) -> T:
    """A parsed value as its schema; `error` saying where, which field, expected and got, and `advice`."""
    try:
        return msgspec.convert(value, schema)
    except (msgspec.ValidationError, OverflowError) as problem:
        words = validation_words(problem) if isinstance(problem, msgspec.ValidationError) else "a number is too large"
        raise error(f"{where}: {words}; {advice}") from None


def read_document(path: Path, schema: type[T], *, error: type[ArtefactError], advice: str) -> T:
    """A JSON file as its schema; `error` as of `parse_json` and `checked`, OSError when it cannot be read."""
    return checked(
        parse_json(read_regular(path), path, error=error, advice=advice), schema, path, error=error, advice=advice
    )


def _inside(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, (dict, list))]


def _short(problem: Exception) -> str:
    text = str(problem)
    return text if len(text) <= 200 else text[:200] + "…"
