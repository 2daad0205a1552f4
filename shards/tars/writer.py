"""A list of images becomes shards and their index: the same bytes for the same input, whatever the process count.

The order of samples is one seeded permutation, cut into shards whose sizes differ by at most one. Each tar is written
under a temporary name, read back by the strict scan, renamed and noted in a journal; a later run keeps every tar that
still is what the journal says and makes the others.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import BinaryIO, NamedTuple

from shards.atomic import atomic_file
from shards.errors import Problem, ShardError, problems_text
from shards.formats.class_folders import list_class_folders
from shards.formats.file_tree import open_tree
from shards.formats.image_list import ImageList, SourceImage
from shards.index.compact import CompactRule
from shards.index.shard_index import SUFFIXES, ShardIndex
from shards.pool.workers import in_workers
from shards.rng import stream
from shards.tars.assemble import assemble
from shards.tars.compacting import compacted
from shards.tars.journal import INDEX_NAME, Journal, settings_of
from shards.tars.shard_scan import SampleRule, ShardScan, require_image, scan_file, scan_shard
from shards.tars.tar import MOST_MEMBER_BYTES
from shards.tars.tree_changes import tree_changes
from shards.views.decode import MAX_PIXELS, read_header

_ONE_SHARD = 2_000
Sample = tuple[str, int, str, bytes]  # key, label, suffix, encoded image


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteEvent:
    """Progress of writing: one event for each shard, in the order they finish, then one with the index.

    Attributes:
        path: the tar; of the last event, the index.
        kept: the tar was there already and is what it must be.
        shards_done, num_shards; samples_done, num_samples; num_bytes: so far.
        ignored: files of the tree that were passed over, by suffix.
        without_images: class names given that have no image.
        index: only in the last event.
    """

    path: Path
    kept: bool
    num_shards: int
    num_samples: int
    ignored: Mapping[str, int] = field(default_factory=dict)
    without_images: tuple[str, ...] = ()
    shards_done: int = 0
    samples_done: int = 0
    num_bytes: int = 0
    index: ShardIndex | None = None


class _Job(NamedTuple):
    """One tar to make from some images of a list, and the digest of what an earlier run made of it ("" for none)."""

    path: Path
    source: ImageList
    images: list[SourceImage]
    recorded: str = ""
    compact: CompactRule | None = None
    max_pixels: int = MAX_PIXELS

    def source_digest(self) -> str:
        """sha256 (hex) over path, label, size and time of change of its images."""
        return hashlib.sha256(repr((self.source.num_classes, self.images)).encode()).hexdigest()


class _Made(NamedTuple):
    """What came of a job: the scan of its tar, and whether it was there already; or what is wrong with its images."""

    shard: int
    scan: ShardScan | None
    kept: bool
    problems: tuple[Problem, ...] = ()


class _UnusableImagesError(Exception):
    """Some images of a tar cannot be taken: it is not made."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__()
        self.problems = tuple(problems)


def write_shards(
    source: Path | ImageList,
    dest: Path,
    *,
    samples_per_shard: int | None,
    seed: int,
    workers: int = 1,
    class_names: Sequence[str] = (),
    compact: CompactRule | None = None,
    max_pixels: int = MAX_PIXELS,
    ignore_unknown: bool = False,
) -> Iterator[WriteEvent]:
    """Write the images of `source` to `dest`/shard-000000.tar … and `dest`/shards.index.

    Args:
        source: a list of images, or a folder of class folders (class/…/image), or a zip or tar of one.
        samples_per_shard: at most; all shards hold the same number, or one less. None takes what `dest` was begun with,
            else `fitting_shards`.
        seed: of the order of the samples.
        workers: processes; the bytes do not depend on it.
        class_names: of a folder: all classes in the order of their labels; default: the folders, sorted.
        compact: make the images smaller by this rule; None takes the bytes of the files as they are.
        max_pixels: refuse images of more pixels; at most MAX_PIXELS, which decoding refuses in any case.
        ignore_unknown: of a folder: pass over files that are no images of an accepted format, counted.

    Errors:
        ValueError for a wrong number; ShardError for a folder with anything but images, for a `dest` that holds other
        shards than these, and, after the last shard, counting all files that are no JPEG, PNG or WebP inside or have
        too many pixels: shards without such files are finished by then.
    """
    for name, value in (("samples_per_shard", samples_per_shard), ("workers", workers), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if isinstance(source, Path):
        source = list_class_folders(open_tree(source), class_names, ignore_unknown=ignore_unknown)
    num_samples = len(source.images)
    samples_per_shard = samples_per_shard or settings_of(dest).get("samples_per_shard") or fitting_shards(num_samples)
    with Journal(
        dest, _settings(source, samples_per_shard, seed, compact), lambda: tree_changes(dest / INDEX_NAME, source)
    ) as journal:
        jobs = [
            job._replace(
                recorded=journal.finished(job.path.name, job.source_digest()), compact=compact, max_pixels=max_pixels
            )
            for job in _jobs(source, dest, samples_per_shard, seed)
        ]
        _refuse_foreign(dest, [job.path for job in jobs])
        scans: dict[int, ShardScan] = {}
        begun = WriteEvent(
            path=dest,
            kept=False,
            num_shards=len(jobs),
            num_samples=num_samples,
            ignored=source.ignored,
            without_images=source.without_images,
        )
        for event in _made(jobs, workers, journal, scans, begun):
            yield event
        urls = [str(job.path) for job in jobs]
        index = assemble(
            urls,
            [scans[s] for s in range(len(jobs))],
            num_classes=source.num_classes,
            class_names=source.class_names,
        )
        replace(index, compact=compact).save(dest / INDEX_NAME)
    yield replace(event, path=dest / INDEX_NAME, kept=False, index=ShardIndex.load(dest / INDEX_NAME))


def _settings(
    source: ImageList, samples_per_shard: int, seed: int, compact: CompactRule | None
) -> dict[str, int | str]:
    """What the journal of a folder says that its shards are made of."""
    return {
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "num_samples": len(source.images),
        "source_digest": source.digest(),
        **(compact.to_json() if compact else {}),
    }


def _made(
    jobs: Sequence[_Job], workers: int, journal: Journal, scans: dict[int, ShardScan], event: WriteEvent
) -> Iterator[WriteEvent]:
    """Make the tars, note them and add their scans; ShardError at the end, counting all images that cannot be taken."""
    problems: list[Problem] = []
    for shard, scan, kept, wrong in _run(jobs, workers):
        problems.extend(wrong)
        if scan is None:
            continue
        scans[shard] = scan
        journal.note(scan.name, scan.digest().hex(), jobs[shard].source_digest())
        event = replace(
            event,
            path=jobs[shard].path,
            kept=kept,
            shards_done=len(scans),
            samples_done=event.samples_done + len(scan.label_N),
            num_bytes=event.num_bytes + scan.tar_bytes,
        )
        yield event
    if problems:
        what = f"{len(problems)} of {event.num_samples} images cannot be taken"
        raise ShardError(problems_text(jobs[0].source.tree.name, sorted(problems), what=what))


def fitting_shards(num_samples: int) -> int:
    """Samples of a shard where nobody says: all up to 2,000, then eight shards of the set, 1,000 at most.

    A shard in some views is what stage 1 commits at once and what a kill can lose, and what several processes share.
    Each shard leaves up to a block less one of its samples out of a pass, which counts where sets are small.
    """
    return num_samples if num_samples <= _ONE_SHARD else min(1000, -(-num_samples // 8))


def _jobs(source: ImageList, dest: Path, samples_per_shard: int, seed: int) -> list[_Job]:
    """The seeded order of the images, cut into shards as evenly as possible."""
    num_samples = len(source.images)
    num_shards = -(-num_samples // samples_per_shard)
    order = stream(seed, "shards").permutation(num_samples)
    jobs = []
    for shard in range(num_shards):
        part = order[num_samples * shard // num_shards : num_samples * (shard + 1) // num_shards]
        path = dest / f"shard-{shard:06d}.tar"
        jobs.append(_Job(path, source, [source.images[n] for n in part]))
    return jobs


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

    Errors:
        ValueError for a wrong number; ShardError when there are no samples, when one is not what the strict scan
        accepts, has a label that is no integer or another suffix than its bytes, and when `dest` holds tars already.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard: expected at least 1, got {samples_per_shard}")
    dest = Path(dest)
    dest.mkdir(parents=True, exist_ok=True)
    _refuse_foreign(dest, [])
    rule = SampleRule(len(class_names) or num_classes)
    rest = map(_checked, samples)
    scans: list[ShardScan] = []
    while part := list(islice(rest, samples_per_shard)):
        scans.append(_write_tar(dest / f"{prefix}-{len(scans):06d}.tar", part, rule))
    if not scans:
        raise ShardError(f"{dest}: expected samples to write, got none")
    urls = [str(dest / scan.name) for scan in scans]
    assemble(urls, scans, num_classes=num_classes, class_names=class_names).save(dest / INDEX_NAME)
    return ShardIndex.load(dest / INDEX_NAME)


def _checked(sample: Sample) -> Sample:
    """A sample with an integer label; ShardError naming it where key, label or suffix are not what they must be."""
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
    whole = isinstance(label, Real) and float(label).is_integer()
    if not whole:
        raise ShardError(f"{where}: expected an integer label, got {label!r}; give each class its number")
    found = require_image(data, where)
    if found != suffix.lower().replace("jpeg", "jpg"):
        raise ShardError(f"{where}: expected a {suffix} image as its suffix says, got a {found}; give suffix {found!r}")
    return key, int(label), suffix, data


def _refuse_foreign(dest: Path, expected: Sequence[Path]) -> None:
    foreign = sorted({path.name for path in dest.glob("*.tar")} - {path.name for path in expected})
    if foreign:
        raise ShardError(f"{dest}: holds other tars already ({', '.join(foreign[:3])}…); choose an empty folder")


def _write_tar(path: Path, samples: Iterable[Sample], rule: SampleRule) -> ShardScan:
    """Write one tar, read it back strictly, and only then give it its name."""
    try:
        with atomic_file(path) as file:
            _write_members(file, samples)
            file.flush()
            file.seek(0)
            return scan_file(file, path.name, rule, str(path))
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be written: {error}; make room or check permissions and run it again: finished shards stay"
        ) from error


def _write_members(file: BinaryIO, samples: Iterable[Sample]) -> None:
    import webdataset  # imports torch: seconds that only writing should cost

    with webdataset.TarWriter(
        file, user="", group="", mode=0o444, mtime=0, compress=False, encoder=False, format="PAX_FORMAT"
    ) as tar:
        for key, label, suffix, data in samples:
            tar.write({"__key__": key, suffix: data, "cls": b"%d" % label})


def _make_shard(shard: int, job: _Job) -> _Made:
    rule = SampleRule(job.source.num_classes)
    if job.recorded and job.path.exists():
        try:
            scan = scan_shard(job.path, job.path.name, rule)
        except ShardError:
            scan = None  # damaged after it was finished: made again below
        if scan is not None and scan.digest().hex() == job.recorded:
            return _Made(shard, scan, True)
    try:
        return _Made(shard, _write_tar(job.path, _load_all(job), rule), False)
    except _UnusableImagesError as error:
        return _Made(shard, None, False, error.problems)


def _load_all(job: _Job) -> Iterator[Sample]:
    """The samples of a job; `_UnusableImagesError` at the end where some of its images cannot be taken."""
    problems = []
    for image in job.images:
        try:
            data = _load(job, image)
            where = image.path
            suffix = require_image(data, where)
            read_header(data, where, max_pixels=job.max_pixels)
            if job.compact is not None:
                data = compacted(data, job.compact, where)
                suffix = require_image(data, where)
        except ShardError as error:
            text, _, advice = str(error).rpartition("; ")
            problems.append(Problem(text, "", advice))
        else:
            if not problems:
                yield image.key, image.label, suffix, data
    if problems:
        raise _UnusableImagesError(problems)


def _load(job: _Job, image: SourceImage) -> bytes:
    """The bytes of an image file; ShardError when it cannot be read or is not as it was listed."""
    try:
        data = job.source.read(image, MOST_MEMBER_BYTES)
    except OSError as error:
        words = error.strerror or str(error)
        raise ShardError(f"{image.path}: cannot be read: {words}; check the file and run make-shards again") from error
    if len(data) != image.size:
        raise ShardError(
            f"{image.path}: expected {image.size} bytes as listed, got {len(data)}, it changed meanwhile; start again"
        )
    return data


def _run(jobs: Sequence[_Job], workers: int) -> Iterator[_Made]:
    workers = min(workers, len(jobs))
    return in_workers(
        lambda shard: _make_shard(shard, jobs[shard]),
        range(len(jobs)),
        workers=workers if workers > 1 else 0,
        ahead=1,
        in_order=False,
        died=ShardError,
    )
