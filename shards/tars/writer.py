"""Write samples as tars, each read back by the strict scan before it gets its name."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from shards.atomic import atomic_file
from shards.documents import matching
from shards.errors import ShardError
from shards.index.index_checks import SUFFIXES
from shards.index.shard_index import ShardIndex
from shards.own_folder import INDEX_NAME
from shards.tars.assemble import assemble
from shards.tars.sample_rule import SampleRule, require_image
from shards.tars.shard_scan import ShardScan, scan_file

Sample = tuple[str, int | None, str, bytes]  # key, label (None: it has none), suffix, encoded image


def write_samples(
    samples: Iterable[Sample],
    dest: Path,
    *,
    samples_per_shard: int = 1000,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    prefix: str = "shard",
) -> ShardIndex:
    """Write (key, label, suffix, encoded image) in the order given to `dest`/<prefix>-000000.tar …, and their index.

    A label of None is that of a sample without one: it can learn from a teacher's answer only.

    Errors:
        ValueError for a wrong number; ShardError when there are no samples, when one is not what the strict scan
        accepts, has a label that is no integer or another suffix than its bytes, and when `dest` holds tars already.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard: expected at least 1, got {samples_per_shard}")
    dest = Path(dest)
    dest.mkdir(parents=True, exist_ok=True)
    refuse_foreign(dest, [])
    rule = SampleRule(len(class_names) or num_classes, labels_optional=True)
    rest = map(_checked, samples)
    scans: list[ShardScan] = []
    while part := list(islice(rest, samples_per_shard)):
        scans.append(write_tar(dest / f"{prefix}-{len(scans):06d}.tar", part, rule))
    if not scans:
        raise ShardError(f"{dest}: expected samples to write, got none")
    urls = [str(dest / scan.name) for scan in scans]
    assemble(urls, scans, num_classes=num_classes, class_names=class_names).save(dest / INDEX_NAME)
    return ShardIndex.load(dest / INDEX_NAME)


def _checked(sample: Sample) -> Sample:
    """A sample with an integer label or None; ShardError naming it where key, label or suffix are not as they must."""
    key, label, suffix, data = sample
    where = f"sample {key!r}"
    name = key.rpartition("/")[2]
    if not name or "." in name:
        raise ShardError(
            f"{where}: expected a key of the form key.suffix without its suffix: not empty, and no dot after the last "
            "slash, as a key ends at the first dot; write dots as %2E, or choose another key"
        )
    if suffix.lower() not in SUFFIXES:
        raise ShardError(f"{where}: expected one of the suffixes {', '.join(SUFFIXES)}, got suffix {suffix!r}")
    whole = label is None or (isinstance(label, Real) and float(label).is_integer())
    if not whole:
        raise ShardError(
            f"{where}: expected an integer label, got {label!r}; give each class its number, and None to an image "
            "without a label"
        )
    image_format = require_image(data, where)
    if image_format != suffix.lower().replace("jpeg", "jpg"):
        raise ShardError(
            f"{where}: expected a {suffix} image as its suffix says, got a {image_format}; give suffix {image_format!r}"
        )
    return key, None if label is None else int(label), suffix, data


def refuse_foreign(dest: Path, expected: Sequence[Path]) -> None:
    """ShardError where a folder holds other tars than those."""
    foreign = sorted({path.name for path in matching(dest, "*.tar")} - {path.name for path in expected})
    if foreign:
        raise ShardError(f"{dest}: holds other tars already ({', '.join(foreign[:3])}…); choose an empty folder")


def write_tar(path: Path, samples: Iterable[Sample], rule: SampleRule, *, expected: str = "") -> ShardScan:
    """Write one tar, read it back strictly, and only then give it its name.

    Args:
        expected: digest (hex) of the tar that is there already: another one does not replace it, but is a ShardError.
    """
    try:
        with atomic_file(path) as file:
            _write_members(file, samples)
            file.flush()
            file.seek(0)
            scan = scan_file(file, path.name, rule, str(path))
            if expected not in ("", scan.digest().hex()):
                raise ShardError(
                    f"{path}: its images have changed since it was made, or another version of Pillow writes them "
                    "otherwise. A cache may have been made from it: choose another folder, or remove this one and "
                    "everything made from it"
                )
            return scan
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be written: {error}; make room or check permissions and run it again: finished shards stay"
        ) from error


def _write_members(file: BinaryIO, samples: Iterable[Sample]) -> None:
    with _tar_writer()(
        file, user="", group="", mode=0o444, mtime=0, compress=False, encoder=False, format="PAX_FORMAT"
    ) as tar:
        for key, label, suffix, data in samples:
            tar.write({"__key__": key, suffix: data} | ({} if label is None else {"cls": b"%d" % label}))


@cache
def _tar_writer() -> Any:
    """Return webdataset's TarWriter without running the package's `__init__`, which imports torch (1.8 s).

    Its module is imported into an empty package of another name, so `import webdataset` is not touched. Where a version
    keeps the class elsewhere, or its module needs the whole package, that is imported.
    """
    if (installed := find_spec("webdataset")) is not None:
        alone = ModuleType("webdataset_alone")
        alone.__path__ = installed.submodule_search_locations or []
        sys.modules[alone.__name__] = alone
        with suppress(ImportError, AttributeError):
            return import_module(f"{alone.__name__}.writer").TarWriter
    from webdataset import TarWriter

    return TarWriter
