"""Parquet files as Hugging Face writes them: a column of images (bytes and path) and one of labels.

Class names are in the metadata of the schema. A row group is read at once, so its images stay together when shards are
made: memory is bounded by a row group and a shard.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shards.documents import checked, matching, parse_json
from shards.errors import ShardError, system_words, unreadable_now
from shards.formats.class_folders import missing_classes
from shards.formats.file_tree import FileStatus, FileTree, TreeEntry
from shards.formats.image_list import ImageList, SourceImage
from shards.formats.input_format import InputFormat, Source
from shards.index.index_checks import require_classes

_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_VALIDATION = ("validation", "val", "valid", "dev")


class _HuggingFace(msgspec.Struct):
    """What Hugging Face notes in the metadata of a schema."""

    info: dict[str, Any] = {}


class _Columns(NamedTuple):
    """The names of the columns, and the class names; () when the labels are numbers without names."""

    image: str
    label: str
    class_names: tuple[str, ...]


class _Parquet(FileTree):
    """The images of Parquet files, by number of row over all files; one row group is held at a time."""

    def __init__(self, name: str, files: Sequence[Path], column: str) -> None:
        """Read the footers: where each row group begins."""
        super().__init__(name)
        self._column = column
        self._places: list[tuple[Path, int]] = []
        self._first: list[int] = []
        self._held: tuple[int, list[Any]] = (-1, [])
        row = 0
        for path in files:
            footer = _open(path).metadata
            for group in range(footer.num_row_groups):
                self._places.append((path, group))
                self._first.append(row)
                row += footer.row_group(group).num_rows

    def entries(self, folder: str) -> list[TreeEntry]:
        """None: rows are no files."""
        return []

    def status(self, path: str) -> FileStatus:
        """Unknown: rows are no files."""
        raise FileNotFoundError(path)

    def below(self, folder: str) -> FileTree:
        """Itself: there are no folders."""
        return self

    def group(self, offset: int) -> int:
        """The row group of a row."""
        return bisect_right(self._first, offset) - 1

    def read(self, path: str, offset: int, size: int, most_bytes: int) -> bytes:
        """The encoded image of a row; OSError where it has none."""
        group = self.group(offset)
        if self._held[0] != group:
            file, number = self._places[group]
            try:
                table = _open(file).read_row_group(number, columns=[self._column], use_threads=False)
            except (ValueError, KeyError) as error:
                raise OSError(f"row group {number} of {file} cannot be read: {error}") from error
            self._held = (group, table.column(0).to_pylist())
        cell = self._held[1][offset - self._first[group]]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise OSError("the row holds no bytes of an image, only a path or nothing")
        if len(data) > most_bytes:
            raise OSError(f"expected at most {most_bytes} bytes, got {len(data)}")
        return data


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: reading Parquet needs pyarrow, the extra parquet: pip install 'deit-teacher-cache[parquet]'"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        if (refused := unreadable_now(error)) is not None:
            raise ShardError(system_words(refused, path)) from error
        raise ShardError(f"{path}: expected a Parquet file, got {error}; copy it again") from error


def _files(path: Path) -> list[Path]:
    """The Parquet files of a source: itself, those in it, or those in its folder data/."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return matching(path, "*.parquet") or matching(path / "data", "*.parquet")


def _columns(path: Path) -> _Columns:
    """Find the columns of image and label, by the features that Hugging Face notes, else by type and name."""
    schema = _open(path).schema_arrow
    advice = "copy the file again"
    stored = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), path, error=ShardError, advice=advice)
    noted = checked(stored, _HuggingFace, path, error=ShardError, advice=advice).info.get("features")
    features = {n: kind for n, kind in noted.items() if isinstance(kind, dict)} if isinstance(noted, dict) else {}
    structs = [field.name for field in schema if str(field.type).startswith("struct<") and "bytes" in str(field.type)]
    images = [name for name, kind in features.items() if kind.get("_type") == "Image"] or structs
    labels = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    if "label" in schema.names:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise ShardError(
            f"{path}: expected one column of images (bytes and path) and one of labels (label), got "
            f"{', '.join(schema.names)[:200]}; keep one of each"
        )
    return _Columns(images[0], labels[0], tuple(features.get(labels[0], {}).get("names") or ()))


def _list(name: str, files: Sequence[Path], class_names: Sequence[str]) -> ImageList:
    import pyarrow.parquet

    columns = _columns(files[0])
    images: list[SourceImage] = []
    for path in files:
        mtime_ns = path.stat().st_mtime_ns
        labels = pyarrow.parquet.read_table(path, columns=[columns.label], use_threads=False).column(0).to_pylist()
        for row, label in enumerate(labels):
            if not isinstance(label, int) or label < 0:
                raise ShardError(
                    f"{path}: row {row}: expected the number of a class in {columns.label}, got {label!r}; "
                    "test sets without labels make no shards"
                )
            key = f"{path.stem}/{row:07}"
            images.append(SourceImage(key, key, label, -1, mtime_ns, len(images)))
    if not images:
        raise ShardError(f"{name}: expected images, got none; check the files")
    known = columns.class_names or tuple(class_names)
    if known and max(image.label for image in images) >= len(known):
        raise ShardError(f"{name}: expected labels below {len(known)}, one for each class name, got more")
    names = tuple(class_names) or columns.class_names
    if class_names and columns.class_names:
        images = _renumbered(name, images, columns.class_names, names)
    num_classes = len(names) or 1 + max(image.label for image in images)
    require_classes(name, names, num_classes)
    return ImageList(
        tree=_Parquet(name, files, columns.image),
        class_names=names,
        num_classes=num_classes,
        images=images,
        without_images=missing_classes(names, images),
    )


def _renumbered(
    where: str, images: Sequence[SourceImage], stored: Sequence[str], names: Sequence[str]
) -> list[SourceImage]:
    """The images with labels of the user's names instead of those of the file."""
    unknown = sorted(set(stored) - set(names))
    if unknown:
        raise ShardError(
            f"{where}: expected all its class names among the {len(names)} of --class-names, got {unknown[0]!r}; "
            "add or correct them"
        )
    number = {name: label for label, name in enumerate(names)}
    return [image._replace(label=number[stored[image.label]]) for image in images]


def _read(source: Source) -> Mapping[str, ImageList]:
    files = _files(source.path)
    if not files:
        raise ShardError(f"{source.path}: expected *.parquet files, got none; check the path")
    by_split: dict[str, list[Path]] = {}
    for path in files:
        match = _SPLIT.match(path.stem)
        by_split.setdefault(match[1] if match else "", []).append(path)
    if len(by_split) == 1:
        return {"": _list(str(source.path), files, source.class_names)}
    val = next((name for name in _VALIDATION if name in by_split), "test" if "test" in by_split else "")
    if "train" not in by_split or not val:
        raise ShardError(
            f"{source.path}: expected files of train and validation, got {', '.join(sorted(by_split))}; give one file, "
            "or a folder with those of one split"
        )
    return {
        "train": _list(f"{source.path}/train", by_split["train"], source.class_names),
        "val": _list(f"{source.path}/{val}", by_split[val], source.class_names),
    }


PARQUET = InputFormat(
    name="parquet",
    summary="Parquet files with a column of images and one of labels",
    suits=lambda source: bool(_files(source.path)),
    read=_read,
)
