"""Scan many shards in parallel into one index: a generator of events, the last of which carries the index."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from shards.errors import Problem, ShardError, problems_text, with_advice
from shards.index.index_checks import SUFFIXES
from shards.index.remote import local_shard
from shards.index.shard_index import ShardIndex
from shards.index.sources import base_name
from shards.pool.workers import over_shards
from shards.tars.assemble import assemble, settled_classes
from shards.tars.sample_rule import SampleRule
from shards.tars.shard_scan import ShardScan, scan_shard
from shards.text.figures import count

_RESTORE = "restore the shard, or write the index anew: check-shards --overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanEvent:
    """Progress of a scan: one event for each shard, in the order they finish, then one with the index.

    Attributes:
        url: the shard; "" in the last event.
        shards_done, num_shards; num_samples, num_bytes: so far.
        problem: what is wrong with this shard, "" when nothing is; a line for each problem, where several images do not
            decode. What to do is said at the first problem that needs it.
        ignored: members passed over so far, by suffix. empty: shards without a member, passed over so far.
        index: only in the last event.
    """

    url: str
    num_shards: int
    shards_done: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    problem: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    empty: tuple[str, ...] = ()
    index: ShardIndex | None = None


def scan_shards(
    urls: Sequence[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    rule: SampleRule = SampleRule(),  # noqa: B008 - a value
    expected: ShardIndex | None = None,
    workers: int = 1,
    cache_dir: Path | None = None,
) -> Iterator[ScanEvent]:
    """Scan shards strictly, all of them, whatever is found on the way.

    Args:
        urls: from `expand_shards`.
        num_classes, class_names: when known, labels must lie in [0, num_classes).
        rule: what a sample must be, but for its classes; with `decode` every image is decoded, too.
        expected: an index made before: every difference to it is a problem.
        workers: processes; the result does not depend on it.
        cache_dir: where remote shards are fetched to.

    Errors:
        ShardError after the last shard when any had a problem, counting them; ValueError for contradicting classes.
    """
    if not urls:
        raise ValueError("scan: expected at least one shard, got none")
    if rule.num_classes is not None or rule.class_numbers:
        raise ValueError("scan: classes in rule would be ignored; give num_classes or class_names")
    numbers = {name: label for label, name in enumerate(class_names)}
    rule = rule._replace(num_classes=settled_classes(num_classes, class_names), class_numbers=numbers)
    scans: dict[int, ShardScan] = {}
    problems = _missing(expected, urls)
    num_bad, advised = len(problems), set[str]()
    event = ScanEvent(url="", num_shards=len(urls))
    outcomes = over_shards(lambda number: _scan_one(number, urls[number], rule, cache_dir), len(urls), workers)
    for position, scan, faults in outcomes:
        event = replace(event, url=urls[position], shards_done=event.shards_done + 1)
        if scan is not None:
            scans[position] = scan
            samples, size = event.num_samples + len(scan.label_N), event.num_bytes + scan.tar_bytes
            ignored = Counter(event.ignored) + Counter(scan.ignored)
            empty = event.empty if len(scan.label_N) else (*event.empty, scan.name)
            event = replace(event, num_samples=samples, num_bytes=size, ignored=dict(ignored), empty=empty)
            differs = difference(expected, scan, urls[position]) if expected is not None else None
            faults = (*faults, differs) if differs else faults
        problems.extend(faults)
        num_bad += bool(faults)
        yield replace(event, problem="\n".join(_as_line(problem, advised) for problem in faults))
    if problems:
        num_shards = len(set(map(base_name, urls)) | set(expected.names if expected else ()))
        bad = f"{num_bad} of {count(num_shards, 'shard')} not as expected"
        what = bad if num_bad == len(problems) else f"{bad}, {count(len(problems), 'problem')}"
        raise ShardError(problems_text("", sorted(problems), what=what))
    index = _assembled(urls, scans, num_classes, class_names)
    if expected is not None and expected.fingerprint != index.fingerprint:
        raise ShardError(
            "the shards are as indexed, but their order or classes are not: expected "
            f"{count(expected.num_shards, 'shard')} and {_classes(expected)}, got {index.num_shards} and "
            f"{_classes(index)}; write the index anew: check-shards --overwrite"
        )
    yield replace(event, url="", index=index)


def _assembled(
    urls: Sequence[str], scans: Mapping[int, ShardScan], num_classes: int | None, class_names: Sequence[str]
) -> ShardIndex:
    """The index of the shards that have samples; ShardError where none has."""
    full = [position for position in range(len(urls)) if len(scans[position].label_N)]
    if not full:
        raise ShardError(f"{urls[0]}: expected a shard with samples, got {count(len(urls), 'empty shard')}")
    full_urls = [urls[position] for position in full]
    index = assemble(full_urls, [scans[n] for n in full], num_classes=num_classes, class_names=class_names)
    empty = sorted(scan.name for scan in scans.values() if not len(scan.label_N))
    return replace(index, empty_shards=tuple(empty))


def difference(expected: ShardIndex, scan: ShardScan, url: str) -> Problem | None:
    """Compare a scan with the index of the same shard.

    Returns:
        how many samples differ, and the first of them with its offset; None where all is as indexed.
    """
    if not len(scan.label_N) and scan.name in expected.empty_shards:
        return None
    if scan.name not in expected.names:
        return Problem(
            f"{url}: not in the index{f' {expected.path}' if expected.path else ''}",
            "",
            "write it anew: check-shards --overwrite",
        )
    shard = expected.names.index(scan.name)
    if expected.shard_digest_S32[32 * shard : 32 * shard + 32].tobytes() == scan.digest():
        return None
    indexed, scanned = _indexed_samples(expected, shard), _scanned_samples(scan)
    gone, more = [key for key in indexed if key not in scanned], [key for key in scanned if key not in indexed]
    if gone or more:
        lists = [f"{len(keys)} {word} ({keys[0]!r})" for keys, word in ((gone, "missing"), (more, "new")) if keys]
        text = (
            f"{url}: expected {count(len(indexed), 'sample')} as in the index, got {len(scanned)}: {', '.join(lists)}"
        )
        return Problem(text, "", _RESTORE)
    differing = [key for key, sample in indexed.items() if scanned[key] != sample]
    if not differing:
        num_bytes = int(expected.tar_bytes_S[shard])
        text = f"{url}: the same samples, but not the same tar: expected {num_bytes} bytes, got {scan.tar_bytes}"
        return Problem(text, "", _RESTORE)
    key = differing[0]
    name, want, got = next(
        (name, want, got)
        for name, want, got in zip(_Place._fields, indexed[key], scanned[key], strict=True)
        if want != got
    )
    many = f"{len(differing)} of {count(len(indexed), 'sample')}: " if len(differing) > 1 else ""
    text = (
        f"{url}: {many}offset {indexed[key].offset}: sample {key!r}: {_WORDS.get(name, name)}: "
        f"expected {want} as in the index, got {got}"
    )
    return Problem(text, "", f"the shard is damaged or was replaced: {_RESTORE}")


class _Place(NamedTuple):
    """What index and scan say of one sample."""

    crc32c: str
    size: int
    label: int
    suffix: str
    offset: int


_WORDS = {"crc32c": "image crc32c", "size": "image size", "offset": "image offset"}


def _indexed_samples(index: ShardIndex, shard: int) -> dict[str, _Place]:
    rows = slice(int(index.first_S[shard]), int(index.first_S[shard + 1]))
    keys = [index.key(shard, row) for row in range(index.num_rows(shard))]
    return _places(
        keys, index.crc32c_N[rows], index.size_N[rows], index.label_N[rows], index.suffix_N[rows], index.offset_N[rows]
    )


def _scanned_samples(scan: ShardScan) -> dict[str, _Place]:
    ends = scan.key_end_N.tolist()
    keys = [scan.key_bytes[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
    return _places(keys, scan.crc32c_N, scan.size_N, scan.label_N, scan.suffix_N, scan.offset_N)


def _places(keys: Sequence[str], *columns: NDArray[Any]) -> dict[str, _Place]:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        key: _Place(f"{crc32c:08x}", size, label, SUFFIXES[suffix], offset)
        for key, (crc32c, size, label, suffix, offset) in zip(keys, rows, strict=True)
    }


def _missing(expected: ShardIndex | None, urls: Sequence[str]) -> list[Problem]:
    """The shards of the index that are not among those given."""
    if expected is None:
        return []
    names = set(map(base_name, urls))
    advice = "copy missing shards again; only where they are to be left out: check-shards --overwrite --allow-fewer"
    return [
        Problem(
            f"{name} ({count(expected.num_rows(shard), 'sample')}): in the index, but missing here",
            "missing shard",
            advice,
        )
        for shard, name in enumerate(expected.names)
        if name not in names
    ]


def _classes(index: ShardIndex) -> str:
    return count(index.num_classes, "class") + (
        f" ({index.class_names[0]!r} …)" if index.class_names else " without names"
    )


def _as_line(problem: Problem, advised: set[str]) -> str:
    """A problem in one line, with its advice where that is not among those given before, to which it is added."""
    advice = "" if problem.advice in advised else problem.advice
    advised.add(problem.advice)
    return with_advice(problem.text.partition("\n")[0], advice)


_Outcome = tuple[int, ShardScan | None, tuple[Problem, ...]]


def _scan_one(position: int, url: str, rule: SampleRule, cache_dir: Path | None) -> _Outcome:
    try:
        path = local_shard(url, None, cache_dir)
        scan = scan_shard(path, base_name(url), rule, where=url)
        return position, scan, scan.problems
    except ShardError as error:
        return position, None, (Problem(error.text, "", error.advice),)
