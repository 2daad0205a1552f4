"""Write a list of images as shards and their index: the same bytes for the same input and any number of processes.

The order of samples is one seeded permutation, cut into shards whose sizes differ by at most one. Each tar is written
under a temporary name, read back by the strict scan, renamed and noted in a journal; a later run keeps every tar that
still is what the journal says and makes the others.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import Problem, ShardError, problems_text, system_words, unreadable_now
from shards.formats.class_folders import list_class_folders
from shards.formats.file_tree import open_tree
from shards.formats.image_list import ImageList, SourceImage
from shards.index.index_checks import UNLABELLED
from shards.index.shard_index import ShardIndex
from shards.own_folder import INDEX_NAME
from shards.pool.workers import over_shards
from shards.rng import Stream, stream
from shards.tars.assemble import assemble
from shards.tars.image_rule import ImageRule
from shards.tars.journal import FinishedTar, Journal, settings_of
from shards.tars.sample_rule import SampleRule
from shards.tars.shard_scan import ShardScan, scan_shard
from shards.tars.tar import MOST_MEMBER_BYTES
from shards.tars.tree_changes import tree_changes
from shards.tars.writer import Sample, refuse_foreign, write_tar
from shards.text.figures import count
from shards.views.decode import ADVICE

_ONE_SHARD = 2_000
_SHARD, _UNLABELLED_SHARD = "shard", "unlabelled"  # a shard is known by its name: "labelled::unlabelled" has each once


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteEvent:
    """Progress of writing: one event for each shard, in the order they finish, then one with the index.

    Attributes:
        path: the tar; of the last event, the index.
        kept: the tar was there already and is what it must be.
        shards_done, num_shards; samples_done, num_samples; num_bytes: so far.
        skipped: images that were left out so far, each with the reason. turned, transparent: images that have an EXIF
            orientation, or transparent pixels, so far.
        index: only in the last event.
    """

    path: Path
    kept: bool
    num_shards: int
    num_samples: int
    shards_done: int = 0
    samples_done: int = 0
    num_bytes: int = 0
    skipped: tuple[str, ...] = ()
    turned: int = 0
    transparent: int = 0
    index: ShardIndex | None = None


class _Job(NamedTuple):
    """One tar to make from some images of a list, and what an earlier run has noted of it."""

    path: Path
    source: ImageList
    images: list[SourceImage]
    rule: ImageRule
    recorded: FinishedTar | None = None
    expected: str = ""  # digest of the finished tar that it must equal

    def source_digest(self) -> str:
        """sha256 (hex) over path, label, size and time of change of its images."""
        return hashlib.sha256(repr((self.source.num_classes, self.images)).encode()).hexdigest()


class _Seen(NamedTuple):
    """What was seen of the images of a tar: those left out, with the reason, and how many have a mark."""

    skipped: tuple[str, ...] = ()
    turned: int = 0
    transparent: int = 0


class _Made(NamedTuple):
    """What came of a job: the scan of its tar, and whether it was there already; or what is wrong with its images."""

    shard: int
    scan: ShardScan | None
    kept: bool
    seen: _Seen = _Seen()
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
    ignore_unknown: bool = False,
    rule: ImageRule = ImageRule(),  # noqa: B008 - a value
) -> Iterator[WriteEvent]:
    """Write the images of `source` to `dest`/shard-000000.tar … and `dest`/shards.index.

    Shards of a list without labels are called unlabelled-000000.tar …

    Args:
        source: a list of images, or a folder of class folders (class/…/image), or a zip or tar of one.
        samples_per_shard: at most; all shards hold the same number, or one less. None takes what `dest` was begun with,
            else `fitting_shards`.
        seed: of the order of the samples.
        workers: processes; the bytes do not depend on it.
        class_names: of a folder: all classes in the order of their labels; default: the folders, sorted.
        ignore_unknown: of a folder: pass over files that are no images of an accepted format, counted.
        rule: what is done to each image. Shards without an image that is left out are the same.

    Errors:
        ValueError for a wrong number; ShardError for a folder with anything but images, for a `dest` that holds other
        shards than these, and, after the last shard, counting all images that cannot be taken: no JPEG, PNG or WebP
        inside, too many pixels, cut or corrupt. Shards without such images are finished by then.
    """
    for name, value in (
        ("samples_per_shard", samples_per_shard),
        ("workers", workers),
        ("max_pixels", rule.max_pixels),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if isinstance(source, Path):
        source = list_class_folders(open_tree(source), class_names, ignore_unknown=ignore_unknown)
    num_samples = len(source.images)
    samples_per_shard = samples_per_shard or settings_of(dest).get("samples_per_shard") or fitting_shards(num_samples)
    settings = {
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "num_samples": num_samples,
        "source_digest": source.digest(),
        **rule.settings(),
    }
    with Journal(dest, settings, lambda: tree_changes(dest / INDEX_NAME, source)) as journal:
        jobs = [
            job._replace(
                recorded=journal.finished(job.path.name, job.source_digest()), expected=journal.expected(job.path.name)
            )
            for job in _jobs(source, dest, samples_per_shard, seed, rule)
        ]
        refuse_foreign(dest, [job.path for job in jobs])
        scans: dict[int, ShardScan] = {}
        for event in _made(jobs, workers, journal, scans):
            yield event
        _save_index(source, jobs, scans, event, rule)
    yield replace(event, path=dest / INDEX_NAME, kept=False, index=ShardIndex.load(dest / INDEX_NAME))


def _save_index(
    source: ImageList, jobs: Sequence[_Job], scans: Mapping[int, ShardScan], event: WriteEvent, rule: ImageRule
) -> None:
    index = assemble(
        [str(job.path) for job in jobs],
        [scans[s] for s in range(len(jobs))],
        num_classes=source.num_classes or None,
        class_names=source.class_names,
    )
    index = replace(index, compact=rule.compact, pixels=rule.pixels, num_skipped=len(event.skipped))
    index.save(jobs[0].path.parent / INDEX_NAME)


def _made(jobs: Sequence[_Job], workers: int, journal: Journal, scans: dict[int, ShardScan]) -> Iterator[WriteEvent]:
    """Make the tars, note them and add their scans; ShardError at the end, counting all images that cannot be taken."""
    source = jobs[0].source
    problems: list[Problem] = []
    event = WriteEvent(path=jobs[0].path, kept=False, num_shards=len(jobs), num_samples=len(source.images))
    for made in over_shards(lambda shard: _make_shard(shard, jobs[shard]), len(jobs), workers):
        problems.extend(made.problems)
        if made.scan is None:
            continue
        scans[made.shard] = scan = made.scan
        digest = jobs[made.shard].source_digest()
        journal.note(FinishedTar(scan.name, scan.digest().hex(), digest, **made.seen._asdict()))
        event = replace(
            event,
            path=jobs[made.shard].path,
            kept=made.kept,
            shards_done=len(scans),
            samples_done=event.samples_done + len(scan.label_N),
            num_bytes=event.num_bytes + scan.tar_bytes,
            skipped=(*event.skipped, *made.seen.skipped),
            turned=event.turned + made.seen.turned,
            transparent=event.transparent + made.seen.transparent,
        )
        yield event
    if problems:
        what = f"{len(problems)} of {count(len(source.images), 'image')} cannot be taken"
        advice = "replace them and run it again; or go on without them: --skip-bad left-out.txt, which lists them there"
        listed = [problem._replace(advice=problem.advice or advice) for problem in sorted(problems)]
        raise ShardError(problems_text(source.tree.name, listed, what=what))


def fitting_shards(num_samples: int) -> int:
    """Samples of a shard where nobody says: all up to 2,000, then eight shards of the set, 1,000 at most.

    A shard in some views is what stage 1 commits at once and what a kill can lose, and what several processes share.
    Each shard leaves up to a block less one of its samples out of a pass, which counts where sets are small.
    """
    return num_samples if num_samples <= _ONE_SHARD else min(1000, -(-num_samples // 8))


def _jobs(source: ImageList, dest: Path, samples_per_shard: int, seed: int, rule: ImageRule) -> list[_Job]:
    """The seeded order of the images, cut into shards as evenly as possible."""
    num_samples = len(source.images)
    num_shards = -(-num_samples // samples_per_shard)
    order = _order(source, stream(seed, "shards"))
    jobs = []
    for shard in range(num_shards):
        part = order[num_samples * shard // num_shards : num_samples * (shard + 1) // num_shards]
        if source.tree.group(source.images[0].offset) is not None:
            part = part[stream(seed, "shard", shard).permutation(len(part))]
        path = dest / f"{_SHARD if source.labelled else _UNLABELLED_SHARD}-{shard:06d}.tar"
        jobs.append(_Job(path, source, [source.images[n] for n in part], rule))
    return jobs


def _order(source: ImageList, random: Stream) -> NDArray[np.int64]:
    """A permutation of the images; where they are read in groups, one of the groups with their images side by side."""
    groups = [source.tree.group(image.offset) for image in source.images]
    if groups[0] is None:
        return random.permutation(len(groups))
    places: dict[int | None, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    runs = list(places.values())
    return np.concatenate([np.array(runs[n], np.int64) for n in random.permutation(len(runs))])


def _make_shard(shard: int, job: _Job) -> _Made:
    rule, recorded = SampleRule(job.source.num_classes or None, labels_optional=not job.source.labelled), job.recorded
    if recorded is not None and job.path.exists():
        try:
            scan = scan_shard(job.path, job.path.name, rule)
        except ShardError as error:
            if unreadable_now(error):
                raise
            scan = None  # damaged after it was finished: made again below
        if scan is not None and scan.digest().hex() == recorded.digest:
            return _Made(shard, scan, True, _Seen(recorded.skipped, recorded.turned, recorded.transparent))
    seen: list[_Seen] = []
    try:
        scan = write_tar(job.path, _load_all(job, seen), rule, expected=job.expected)
        return _Made(shard, scan, bool(job.expected), seen[0])
    except _UnusableImagesError as error:
        return _Made(shard, None, False, problems=error.problems)


def _load_all(job: _Job, seen: list[_Seen]) -> Iterator[Sample]:
    """The samples of a job, and what was seen of them; `_UnusableImagesError` at the end where some cannot be taken."""
    problems: list[Problem] = []
    num_written = turned = transparent = 0
    read = _in_groups(job) if job.source.tree.group(0) is not None else (partial(_load, job, i) for i in job.images)
    for image, load in zip(job.images, read, strict=True):
        try:
            made = job.rule.prepared(load(), image.path)
        except ShardError as error:
            if job.rule.skip_bad and (refused := unreadable_now(error, or_disk=True)):
                raise ShardError(system_words(refused, image.path)) from error  # it may be whole: it is not left out
            text, _, advice = str(error).rpartition("; ")
            problems.append(Problem(text, "", "" if advice == ADVICE else advice))
        else:
            turned, transparent = turned + made.turned, transparent + made.transparent
            if job.rule.skip_bad or not problems:
                num_written += 1
                yield image.key, None if image.label == UNLABELLED else image.label, made.suffix, made.data
    if problems and not (job.rule.skip_bad and num_written):
        raise _UnusableImagesError(problems)
    seen.append(_Seen(tuple(problem.text for problem in problems), turned, transparent))


def _in_groups(job: _Job) -> Iterator[Callable[[], bytes]]:
    """Read all images now, group by group, and return functions that give the bytes of each."""
    read: dict[int, bytes | ShardError] = {}
    for image in sorted(job.images, key=lambda image: image.offset):
        try:
            read[image.offset] = _load(job, image)
        except ShardError as error:
            read[image.offset] = error
    return (partial(_given, read[image.offset]) for image in job.images)


def _given(data: bytes | ShardError) -> bytes:
    if isinstance(data, ShardError):
        raise data
    return data


def _load(job: _Job, image: SourceImage) -> bytes:
    """The bytes of an image file; ShardError when it cannot be read or is not as it was listed."""
    try:
        data = job.source.read(image, MOST_MEMBER_BYTES)
    except OSError as error:
        if unreadable_now(error, or_disk=True):
            raise ShardError(system_words(error, image.path)) from error
        words = error.strerror or str(error)
        raise ShardError(f"{image.path}: cannot be read: {words}; check the file and run make-shards again") from error
    if image.size not in (-1, len(data)):
        raise ShardError(
            f"{image.path}: expected {image.size} bytes as listed, got {len(data)}, it changed meanwhile; start again"
        )
    return data
