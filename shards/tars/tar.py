"""A strict walk over the members of a tar archive: nothing is skipped, guessed or taken for the end.

CPython's tarfile takes a damaged header for the end of the archive, so a shard that lost half of its samples reads
without an error. Here every header's checksum is verified, every byte between the first header and the end-of-archive
mark belongs to a member, and after the mark there is nothing but zeros. Formats: POSIX.1-1988 ustar, POSIX.1-2001 pax
("path" and "size" records), GNU long names and base-256 sizes, and v7 headers.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from shards.errors import ShardError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MAX_EXTENSION_BYTES = 1 << 20  # of one pax or long-name header: a path is never longer
MOST_MEMBER_BYTES = 1 << 29
"""Of an image: more than the largest that is decoded; a sparse tar can claim any size at no cost."""
_CHUNK = 1 << 20
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"K": "a long link name",
    b"S": "a sparse file",
    b"M": "a continuation of another volume",
    b"V": "a volume label",
}

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -dc"),
    b"BZh": ("bzip2", "bzip2 -dc"),
    b"\xfd7zXZ\x00": ("xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"),
    b"PK\x03\x04": ("zip", "unzip, then tar --sort=name -cf"),
}


class Member(NamedTuple):
    """A regular file in the archive: its name, the offset of its header, the offset and size of its data (bytes)."""

    name: str
    offset: int
    data_offset: int
    size: int


class _Extension(NamedTuple):
    """What pax and GNU headers say about the member that follows them."""

    name: str | None = None
    size: int | None = None


def damaged(where: str, offset: int, problem: str, expected: str, got: str) -> ShardError:
    """The error of a tar that is not what it must be, at a byte offset."""
    return ShardError(
        f"{where}: offset {offset}: {problem}: expected {expected}, got {got}. "
        "The shard is damaged or cut; copy or make it again"
    )


def read_members(file: BinaryIO, where: str) -> Iterator[tuple[Member, bytes]]:
    """All regular members with their data, in the order of the archive; directories carry no data and are passed over.

    Args:
        file: the archive at offset 0; it is only read forward.
        where: what errors call the archive.

    Errors:
        ShardError naming `where` and the offset, for damage, a missing end-of-archive mark, anything after it that is
        not zero, and for links, devices, sparse files and every other kind of member.
    """
    offset = 0
    extension = _Extension()
    while True:
        header = _read(file, BLOCK, where, offset, "a header or the end-of-archive mark")
        if header == _ZEROS:
            if extension != _Extension():
                raise damaged(where, offset, "the archive ends after an extended header", "a member", "zeros")
            _require_end(file, where, offset)
            return
        _require_checksum(header, where, offset)
        kind = header[156:157]
        size = _number(header[124:136], "size", where, offset)
        if kind in (b"x", b"g", b"L"):
            data = _read_data(file, size, where, offset, _MAX_EXTENSION_BYTES, "extended header")
            extension = _extended(kind, data, extension, where, offset)
            offset += BLOCK + _padded(size)
            continue
        name = extension.name if extension.name is not None else _name(header, where, offset)
        size = extension.size if extension.size is not None else size
        extension = _Extension()
        if kind == b"5" or (kind == b"\0" and name.endswith("/")):
            if size:
                raise damaged(where, offset, f"directory {name!r} has data", "size 0", f"{size}")
        elif kind in (b"0", b"\0"):
            data = _read_data(file, size, where, offset, MOST_MEMBER_BYTES, "member")
            yield Member(name, offset, offset + BLOCK, size), data
        else:
            what = _REFUSED.get(kind, f"of unknown type {kind!r}")
            raise ShardError(
                f"{where}: offset {offset}: member {name!r} is {what}; expected regular files only. "
                "Make the shard again from regular files (tar --dereference --hard-dereference)"
            )
        offset += BLOCK + _padded(size)


def _refuse_compressed(first: bytes, where: str) -> None:
    """A compressed archive under the name of a plain one is whole: it is only not what the name says."""
    for magic, (what, tool) in _COMPRESSED.items():
        if first.startswith(magic):
            raise ShardError(
                f"{where}: offset 0: expected a plain tar, got one compressed with {what}, which "
                f"cannot be read by offset; decompress it ({tool}) under the same name"
            )


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, size: int, where: str, offset: int, what: str) -> bytes:
    data = file.read(size)
    if offset == 0:
        _refuse_compressed(data, where)
    if len(data) != size:
        raise damaged(where, offset, "the file ends", f"{size} bytes of {what}", f"{len(data)}")
    return data


def _read_data(file: BinaryIO, size: int, where: str, offset: int, limit: int, what: str) -> bytes:
    """The data of the member whose header is at `offset`; read in chunks, as a false size must not allocate memory."""
    if size > limit:
        raise damaged(where, offset, f"{what} too large", f"at most {limit} bytes", f"{size}")
    start, padded = offset + BLOCK, _padded(size)
    if padded <= _CHUNK:
        return _read(file, padded, where, start, f"data of the member at offset {offset}")[:size]
    chunks = []
    for done in range(0, padded, _CHUNK):
        count = min(_CHUNK, padded - done)
        chunks.append(_read(file, count, where, start + done, f"data of the member at offset {offset}"))
    return b"".join(chunks)[:size]


def _require_checksum(header: bytes, where: str, offset: int) -> None:
    """POSIX ustar: the sum of the header's bytes, the checksum field itself counted as eight spaces."""
    expected = sum(header) - sum(header[148:156]) + 8 * 0x20
    match = re.fullmatch(rb" *([0-7]{1,7})[\0 ]*", header[148:156])
    if match is None or int(match[1], 8) != expected:
        got = f"{int(match[1], 8)}" if match else repr(header[148:156])
        raise damaged(where, offset, "header checksum", f"{expected}", got)


def _number(field: bytes, name: str, where: str, offset: int) -> int:
    """An octal field, or GNU's base-256 for sizes of 8 GiB and more."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = re.fullmatch(rb" *([0-7]*)[\0 ]*", field)
    if match is None:
        raise damaged(where, offset, f"header field {name}", "an octal number", repr(field))
    return int(match[1] or b"0", 8)


def _name(header: bytes, where: str, offset: int) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # GNU's magic is "ustar  ": there the prefix field holds other things
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name, where, offset)


def _text(name: bytes, where: str, offset: int) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise ShardError(
            f"{where}: offset {offset}: member name {name[:80]!r}: expected UTF-8, got another encoding (as Latin-1 it "
            f"is {name[:80].decode('latin-1')!r}); rename the files (convmv -t UTF-8) and make the shard again"
        ) from None
    if not text or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise damaged(where, offset, "member name", "a name without control characters", repr(text))
    return text


def _extended(kind: bytes, data: bytes, before: _Extension, where: str, offset: int) -> _Extension:
    """Add a pax ("x", "g") or GNU long-name ("L") header to what is known of the next member."""
    if kind == b"L":
        return before._replace(name=_text(data.rstrip(b"\0"), where, offset))
    records = _pax_records(data, where, offset)
    if any(key.startswith(b"GNU.sparse") for key in records):
        raise ShardError(f"{where}: offset {offset}: a sparse file; expected regular files only. Make the shard again")
    if kind == b"g":
        if records.keys() & {b"path", b"size"}:
            raise damaged(where, offset, "global pax header", "no path and no size for all members", f"{data[:80]!r}")
        return before
    name = _text(records[b"path"], where, offset) if b"path" in records else before.name
    if b"size" not in records:
        return before._replace(name=name)
    if not re.fullmatch(rb"[0-9]{1,18}", records[b"size"]):
        raise damaged(where, offset, "pax size", "a decimal number", repr(records[b"size"]))
    return _Extension(name, int(records[b"size"]))


def _pax_records(data: bytes, where: str, offset: int) -> dict[bytes, bytes]:
    """The records `length key=value newline` of a pax header."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        match = re.compile(rb"([0-9]{1,7}) ([^=]+)=").match(data, start)
        stop = start + int(match[1]) if match else 0
        if match is None or not match.end() < stop <= len(data) or data[stop - 1] != 0x0A:
            raise damaged(where, offset, "pax record", "length key=value newline", repr(data[start : start + 80]))
        records[match[2]] = data[match.end() : stop - 1]
        start = stop
    return records


def _require_end(file: BinaryIO, where: str, offset: int) -> None:
    """After the first zero block at `offset`: one more, then nothing but zeros."""
    second = file.read(BLOCK)
    position = offset + BLOCK
    if len(second) != BLOCK:
        raise damaged(where, position, "end-of-archive mark", "two blocks of 512 zeros", f"{BLOCK + len(second)} bytes")
    chunk = second
    while chunk:
        rest = chunk.lstrip(b"\0")
        if rest:
            at = position + len(chunk) - len(rest)
            raise damaged(where, offset, "a header is zero", "nothing but zeros after it", f"data at offset {at}")
        position += len(chunk)
        chunk = file.read(_CHUNK)
