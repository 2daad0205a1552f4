"""Many shards, scanned in parallel into one index: a generator of events, the last of which carries the index."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.errors import ShardError
from shards.index.remote import local_shard
from shards.index.shard_index import ShardIndex
from shards.index.sources import base_name
from shards.names import short
from shards.pool.workers import in_workers
from shards.tars.assemble import assemble, settled_classes
from shards.tars.shard_scan import Foreign, SampleRule, ShardScan, scan_shard

_PROBLEMS_SHOWN = 3
_PROBLEM_CHARS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanEvent:
    """Progress of a scan: one event for each shard, in the order they finish, then one with the index.

    Attributes:
        url: the shard; "" in the last event.
        shards_done, num_shards; num_samples, num_bytes: so far.
        problem: what is wrong with this shard, "" when nothing is.
        ignored: members passed over so far, by suffix.
        index: only in the last event.
    """

    url: str
    num_shards: int
    shards_done: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    problem: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)
    index: ShardIndex | None = None


def scan_shards(
    urls: Sequence[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    label_key: str | None = None,
    foreign: Foreign = Foreign(),  # noqa: B008 - a value
    expected: ShardIndex | None = None,
    decode: bool = False,
    workers: int = 1,
    cache_dir: Path | None = None,
) -> Iterator[ScanEvent]:
    """Scan shards strictly, all of them, whatever is found on the way.

    Args:
        urls: from `expand_shards`.
        num_classes, class_names: when known, labels must lie in [0, num_classes).
        label_key: take labels from this key of each sample's .json (img2dataset) instead of .cls.
        foreign: what shards of others may hold beside samples.
        expected: an index made before: every difference to it is a problem.
        decode: decode every image, too: finds images that are cut or corrupt inside an intact shard.
        workers: processes; the result does not depend on it.
        cache_dir: where remote shards are fetched to.

    Errors:
        ShardError after the last shard when any had a problem, listing them; ValueError for contradicting classes.
    """
    if not urls:
        raise ValueError("scan: expected at least one shard, got none")
    rule = SampleRule(settled_classes(num_classes, class_names), label_key, decode, foreign)
    scans: dict[int, ShardScan] = {}
    problems: list[str] = []
    event = ScanEvent(url="", num_shards=len(urls))
    for position, scan, problem in _scan_all(urls, rule, cache_dir, workers):
        event = replace(event, url=urls[position], shards_done=event.shards_done + 1)
        if scan is not None:
            scans[position] = scan
            samples, size = event.num_samples + len(scan.label_N), event.num_bytes + scan.tar_bytes
            ignored = Counter(event.ignored) + Counter(scan.ignored)
            event = replace(event, num_samples=samples, num_bytes=size, ignored=dict(ignored))
            problem = difference(expected, scan, urls[position]) if expected is not None else ""
        if problem:
            problems.append(problem)
        yield replace(event, problem=problem)
    if problems:
        raise ShardError(_summary(sorted(problems), len(urls)))
    index = assemble(urls, [scans[n] for n in range(len(urls))], num_classes=num_classes, class_names=class_names)
    if expected is not None and expected.fingerprint != index.fingerprint:
        raise ShardError(
            f"the shards are as indexed, but their list or classes are not: expected {expected.num_shards} shards and "
            f"{expected.num_classes} classes, got {index.num_shards} and {index.num_classes}; "
            "write the index anew: check-shards --overwrite"
        )
    yield replace(event, url="", index=index)


def difference(expected: ShardIndex, scan: ShardScan, url: str) -> str:
    """What the first difference between a scan and the index of the same shard is, with its offset; "" for none."""
    if scan.name not in expected.names:
        return f"{url}: not in the index {expected.path or ''}; run check-shards for these shards"
    shard = expected.names.index(scan.name)
    if expected.shard_digest_S32[32 * shard : 32 * shard + 32].tobytes() == scan.digest():
        return ""
    rows, first = expected.num_rows(shard), int(expected.first_S[shard])
    if rows != len(scan.label_N) or expected.tar_bytes_S[shard] != scan.tar_bytes:
        return (
            f"{url}: expected {rows} samples in {int(expected.tar_bytes_S[shard])} bytes as in the index, "
            f"got {len(scan.label_N)} in {scan.tar_bytes}; restore the shard, or write the index anew: "
            "check-shards --overwrite"
        )
    start = 0
    for row, end in enumerate(scan.key_end_N):
        n, key = first + row, expected.key(shard, row)
        pairs = {
            "key": (key, scan.key_bytes[start : int(end)].decode()),
            "image offset": (int(expected.offset_N[n]), int(scan.offset_N[row])),
            "image size": (int(expected.size_N[n]), int(scan.size_N[row])),
            "image crc32c": (f"{int(expected.crc32c_N[n]):08x}", f"{int(scan.crc32c_N[row]):08x}"),
            "label": (int(expected.label_N[n]), int(scan.label_N[row])),
            "suffix": (int(expected.suffix_N[n]), int(scan.suffix_N[row])),
        }
        start = int(end)
        for name, (want, got) in pairs.items():
            if want != got:
                return (
                    f"{url}: offset {int(expected.offset_N[n])}: sample {key!r}: {name}: expected {want} as in "
                    f"the index, got {got}; the shard is damaged or was replaced: restore it, or "
                    "write the index anew: check-shards --overwrite"
                )
    raise AssertionError("digests differ and nothing else does")


def _summary(problems: Sequence[str], num_shards: int) -> str:
    if len(problems) == 1:
        return problems[0]
    first = [short(problem, _PROBLEM_CHARS) for problem in problems[:_PROBLEMS_SHOWN]]
    lines = [f"{len(problems)} of {num_shards} shards are not as they must be:", *first]
    if len(problems) > _PROBLEMS_SHOWN:
        lines.append(f"… and {len(problems) - _PROBLEMS_SHOWN} more")
    return "\n".join(lines)


_Outcome = tuple[int, ShardScan | None, str]


def _scan_one(position: int, url: str, rule: SampleRule, cache_dir: Path | None) -> _Outcome:
    try:
        path = local_shard(url, None, cache_dir)
        return position, scan_shard(path, base_name(url), rule, where=url), ""
    except ShardError as error:
        return position, None, str(error)


def _scan_all(urls: Sequence[str], rule: SampleRule, cache_dir: Path | None, workers: int) -> Iterator[_Outcome]:
    workers = min(workers, len(urls))
    return in_workers(
        lambda position: _scan_one(position, urls[position], rule, cache_dir),
        range(len(urls)),
        workers=workers if workers > 1 else 0,
        ahead=1,
        in_order=False,
        died=ShardError,
    )
