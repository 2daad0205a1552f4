"""Trees of files in a directory, a zip or a tar, read in one way; nothing of an archive is unpacked to disk.

A tar in a tar is a folder, as in ImageNet's download, where each class is a tar: `n01440764.tar` in
`ILSVRC2012_img_train.tar` is the folder `n01440764`. An archive is listed once, from its headers, and its files are
then read by their place in it.
"""

import errno
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.documents import open_regular, read_regular
from shards.errors import ShardError, system_words, unreadable_now
from shards.index.index_checks import SUFFIXES
from shards.own_folder import kind_at

_FILE = stat.S_IFREG | 0o444
_ZIP_HEADER_BYTES = 30
_ZIP_UTF8, _ZIP_UNIX = 0x800, 3
_MOST_DEPTH = 64


class TreeEntry(NamedTuple):
    """An entry of a folder: its name, and whether it is a folder."""

    name: str
    is_folder: bool


class FileStatus(NamedTuple):
    """Of a file: mode as of `os.stat`, bytes, time of change (ns), and its place in an archive (-1: none)."""

    mode: int
    size: int
    mtime_ns: int
    offset: int = -1


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry leads to a folder; a circle of links leads nowhere, and is named where its file is read.

    OSError where nobody may look: what a link leads to may be a whole class.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


class FileTree(ABC):
    """Files in folders. Paths are relative to the tree, with slashes; "" is its root."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def entries(self, folder: str) -> list[TreeEntry]:
        """The entries of a folder by name; OSError when it cannot be listed."""

    @abstractmethod
    def status(self, path: str) -> FileStatus:
        """Return mode, size, time and place of a file; OSError when nobody can tell."""

    @abstractmethod
    def read(self, path: str, offset: int, size: int, most_bytes: int) -> bytes:
        """The bytes of a file whose status has this offset and size; OSError when they cannot be read."""

    @abstractmethod
    def below(self, folder: str) -> "FileTree":
        """The tree below a folder."""

    def identity(self, folder: str) -> str:
        """Return a text that is the same for all paths to one folder."""
        return folder

    def group(self, offset: int) -> int | None:
        """Return the number of the group in which a file is read; None where each is read alone."""
        return None

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder; none where there is none, OSError where it cannot be listed."""
        return [entry.name for entry in self._listed(folder) if entry.is_folder]

    def files(self, folder: str = "") -> list[str]:
        """The names of the files in a folder; none where there is none, OSError where it cannot be listed."""
        return [entry.name for entry in self._listed(folder) if not entry.is_folder]

    def _listed(self, folder: str) -> list[TreeEntry]:
        try:
            return self.entries(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []


class Directory(FileTree):
    """The files below a directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._root = str(path)

    def entries(self, folder: str) -> list[TreeEntry]:
        with os.scandir(os.path.join(self._root, folder)) as scanned:
            return sorted(TreeEntry(entry.name, _is_folder(entry)) for entry in scanned)

    def status(self, path: str) -> FileStatus:
        status = os.stat(os.path.join(self._root, path))
        return FileStatus(status.st_mode, status.st_size, status.st_mtime_ns)

    def read(self, path: str, offset: int, size: int, most_bytes: int) -> bytes:
        return read_regular(os.path.join(self._root, path), most_bytes=most_bytes)

    def below(self, folder: str) -> "Directory":
        return Directory(Path(self._root, folder))

    def identity(self, folder: str) -> str:
        """The folder that links lead to."""
        return os.path.realpath(os.path.join(self._root, folder))


class Archive(FileTree):
    """The files in an archive, listed already: folder → name → status, None for a folder."""

    def __init__(self, path: Path, folders: dict[str, dict[str, FileStatus | None]], prefix: str = "") -> None:
        """Keep the listing; `prefix` is the folder that is the root of the tree."""
        super().__init__(f"{path}/{prefix}" if prefix else str(path))
        self._path, self._folders, self._prefix = path, folders, prefix

    def _inner(self, path: str) -> str:
        return "/".join(part for part in (self._prefix, path) if part)

    def entries(self, folder: str) -> list[TreeEntry]:
        statuses = self._folders.get(self._inner(folder), {})
        return sorted(TreeEntry(name, status is None) for name, status in statuses.items())

    def status(self, path: str) -> FileStatus:
        folder, _, name = self._inner(path).rpartition("/")
        status = self._folders[folder][name]
        return status or FileStatus(stat.S_IFDIR, 0, 0)

    def below(self, folder: str) -> "Archive":
        return type(self)(self._path, self._folders, self._inner(folder))

    def read(self, path: str, offset: int, size: int, most_bytes: int) -> bytes:
        if size > most_bytes:
            raise OSError(f"expected at most {most_bytes} bytes, got {size}")
        with open_regular(self._path) as file:
            file.seek(offset)
            return self._bytes(file, size)

    def _bytes(self, file: BinaryIO, size: int) -> bytes:
        """The bytes of the file that begins here: as they stand in the archive."""
        return file.read(size)


class _Zip(Archive):
    """The files in a zip; an offset is that of the local header."""

    def _bytes(self, file: BinaryIO, size: int) -> bytes:
        header = file.read(_ZIP_HEADER_BYTES)
        method = int.from_bytes(header[8:10], "little")
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        data = file.read(size) if method == zipfile.ZIP_STORED else _inflated(file, size)
        checksum_follows = header[6] & 8
        if not checksum_follows and zlib.crc32(data) != int.from_bytes(header[14:18], "little"):
            raise OSError("its checksum in the zip does not fit")
        return data


def _inflated(file: BinaryIO, size: int) -> bytes:
    """So many bytes of the deflated stream that begins here; fewer where it ends before."""
    inflater, parts, missing = zlib.decompressobj(-zlib.MAX_WBITS), [], size
    while missing > 0 and not inflater.eof:
        data = inflater.unconsumed_tail or file.read(1 << 16)
        if not data:
            break
        try:
            parts.append(inflater.decompress(data, missing))
        except zlib.error as error:
            raise OSError(f"its bytes in the zip are damaged: {error}") from error
        missing -= len(parts[-1])
    return b"".join(parts)


def open_tree(path: Path) -> FileTree:
    """The files of a directory, a zip or a tar; its one folder where an archive holds nothing beside one.

    Errors:
        ShardError for anything else, and for an archive that is compressed, encrypted or damaged.
    """
    if path.is_dir():
        return Directory(path)
    if not path.exists():
        raise ShardError(
            f"{path}: expected a folder with images, or a zip or tar of one, got no folder; check the path"
        )
    if path.suffix.lower().lstrip(".") in SUFFIXES:
        raise ShardError(f"{path}: expected a folder with images, got one image; give a folder of class folders")
    try:
        with open_regular(path) as file:
            start = file.read(8)
            if start.startswith(b"PK"):
                return _one_folder(_zip_tree(path, file))
            if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                raise ShardError(
                    f"{path}: expected a folder, a zip or a tar, got a compressed file; decompress it first"
                )
            file.seek(0)
            return _one_folder(_tar_tree(path, file))
    except (OSError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if (refused := unreadable_now(error)) is not None:
            raise ShardError(system_words(refused, path)) from error
        if (kind := kind_at(path)) and path.suffix != ".tar":
            raise ShardError(f"{path}: expected a folder with images, or a zip or tar of one, got {kind}") from error
        raise ShardError(
            f"{path}: expected a folder with images, or a zip or tar of one; it cannot be read: {error}. Check the "
            "path, or copy the file again"
        ) from error


def _one_folder(archive: Archive) -> Archive:
    """The folder that was packed: an archive often holds it alone, beside what macOS adds."""
    for _ in range(_MOST_DEPTH):
        entries = [entry for entry in archive.entries("") if not entry.name.startswith((".", "__MACOSX"))]
        if len(entries) != 1 or not entries[0].is_folder or not archive.folders(entries[0].name):
            break
        archive = archive.below(entries[0].name)
    return archive


def _add(folders: dict[str, dict[str, FileStatus | None]], name: str, status: FileStatus | None) -> None:
    """Add a file or folder, and the folders that hold it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for depth, part in enumerate(parts):
        inside = folders.setdefault("/".join(parts[:depth]), {})
        last = depth == len(parts) - 1
        if last and status is not None and part in inside:
            raise ValueError(f"it holds {name!r} twice")
        if not last or status is None:
            inside.setdefault(part, None)
        else:
            inside[part] = status


def _zip_tree(path: Path, file: BinaryIO) -> Archive:
    folders: dict[str, dict[str, FileStatus | None]] = {"": {}}
    mtime_ns = os.fstat(file.fileno()).st_mtime_ns
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = _zip_name(info)
            if info.is_dir():
                _add(folders, name, None)
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name!r} is encrypted, or not stored or deflated")
            _add(folders, name, FileStatus(_FILE, info.file_size, mtime_ns, info.header_offset))
    return _Zip(path, folders)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member as its writer meant it: Unix writes UTF-8 without the flag that says so."""
    if info.flag_bits & _ZIP_UTF8 or info.create_system != _ZIP_UNIX:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename  # in the encoding that zipfile takes it for


def _tar_tree(path: Path, file: BinaryIO) -> Archive:
    folders: dict[str, dict[str, FileStatus | None]] = {"": {}}
    tar_status = os.fstat(file.fileno())
    for name, member in _members(file, "", tar_status.st_size):
        if member.isdir():
            _add(folders, name, None)
        elif member.isreg():
            _add(folders, name, FileStatus(_FILE, member.size, tar_status.st_mtime_ns, member.offset_data))
        else:
            _add(folders, name, FileStatus(stat.S_IFLNK, 0, tar_status.st_mtime_ns, member.offset_data))
    return Archive(path, folders)


def _members(file: BinaryIO, folder: str, end: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The members of the tar that begins here; those of a tar in it are in a folder of its name."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            after = member.offset_data + member.size
            if after > end:
                raise tarfile.ReadError(f"it ends inside {folder}{member.name}: expected {after} bytes, got {end}")
            stem = member.name.removesuffix(".tar")
            base = stem.rpartition("/")[2]
            if member.isreg() and stem != member.name and not folder and not base.startswith("."):
                file.seek(member.offset_data)
                yield from _members(file, f"{stem}/", after)
            else:
                yield f"{folder}{member.name}", member
