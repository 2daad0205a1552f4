"""Verify a cache: every digest; the pixels of a sample, rendered anew; the teacher's answers to them.

Each check is a generator of findings, so that a long one can be watched and stopped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import CacheError, UnreachableError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.rng import Stream, stream
from shards.views.blocks import ViewBatch, model_input, render_block
from shards.views.mixing import num_blocks
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.codec import RecordCodec
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.header import require_index
from teacher_cache.store.layout import PIXEL_DIGEST
from teacher_cache.store.libraries import rendering_remedy
from teacher_cache.store.unit import Arrays

# B samples of a batch (views × rows of a block), C classes.

TOLERANCE = {"fp32": 0.01, "tf32": 0.02, "bf16": 0.05, "fp16": 0.02}
"""Largest total variation between the stored and the repeated answer at τ = 1, by precision of the teacher.

Another batch shape, thread count or device changes logits by rounding, and a code of the record may then fall on the
other side of its threshold; another network, other weights or other pixels change answers by far more.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one step of a check found.

    Attributes:
        unit: where; None for the cache as a whole.
        num_views: views that were compared.
        problem: what is wrong; "" when nothing is.
        repaired: whether the unit was taken out of the ledger, so that cache-teacher computes it again.
        distance: largest total variation of a repeated answer; 0 where the teacher was not asked.
    """

    unit: UnitId | None
    num_views: int
    problem: str = ""
    repaired: bool = False
    distance: float = 0.0


def verify_digests(cache: TeacherCache, *, repair: bool = False) -> Iterator[Finding]:
    """Read every committed unit and compare its digest with the ledger; units that were never committed are no finding.

    Args:
        cache: opened; writable to repair.
        repair: take what is wrong out of the ledger and rebuild its snapshot.

    Errors:
        ValueError for a repair of a cache that is not open for writing; UnreachableError where something cannot be read
        now: it may be whole, so it stays in the ledger.
    """
    if repair and not cache.writable:
        raise ValueError(f"{cache.url}: repair needs the cache opened for writing")
    saved_BS, problem = _snapshot(cache)
    if problem:
        yield Finding(unit=None, num_views=0, problem=problem, repaired=repair)
    for unit, entry in cache.units.ledger.look_up([UnitId(*map(int, at)) for at in np.ndindex(*saved_BS.shape)]):
        if entry == 0 and saved_BS[unit] == 0:
            continue
        problem = _unit_problem(cache, unit, entry)
        if problem and repair:
            cache.invalidate(*unit)
        num_views = cache.views_per_unit * int(cache.rows_S[unit.shard])
        yield Finding(unit=unit, num_views=num_views, problem=problem, repaired=bool(problem) and repair)
    if repair:
        cache.units.ledger.save()


def verify_blocks(
    cache: TeacherCache,
    reader: ShardReader,
    *,
    num_blocks_to_check: int,
    seed: int,
    teacher: Teacher | None = None,
    tolerance: float | None = None,
) -> Iterator[Finding]:
    """Render a seeded sample of blocks anew and compare every pixel digest, and a teacher's answers with the records.

    Compared are the class probabilities at τ = 1, both through the record's codec, by total variation
    ½ Σ|p − q|; for hard labels the label itself (a distance of 0 or 1).

    Args:
        reader: of the shards that the cache was made from.
        teacher: to be asked again; None: pixels alone.
        tolerance: largest total variation; None takes that of the teacher's precision.

    Errors:
        CacheError when index or teacher are not the cache's, or nothing is committed; ShardError when a sample cannot
        be read.
    """
    if teacher is not None and teacher.spec != cache.spec.teacher:
        raise CacheError(f"{cache.url}: expected the teacher {cache.spec.teacher}, got {teacher.spec}; load that one")
    limit = TOLERANCE[cache.spec.teacher.precision] if tolerance is None else tolerance
    codec = RecordCodec(cache.spec.record, cache.basis)
    for unit, batch, stored in _sampled(cache, reader, num_blocks_to_check, seed):
        problem, distance = _pixel_problem(cache, reader.index, unit, batch, stored), 0.0
        if teacher is not None:
            distance_B = _distances(cache, codec, teacher, unit, batch, stored)
            worst = int(distance_B.argmax())
            distance = float(distance_B[worst])
            if not problem and distance > limit:
                row, view = int(batch.row_B[worst]), int(batch.view_B[worst])
                problem = (
                    f"{cache.describe(unit)}: key {reader.index.key(unit.shard, row)!r}, view {view}: the teacher's "
                    f"answer is {distance:.4f} (total variation at τ = 1) from the record, expected at most {limit:g}"
                )
        yield Finding(unit=unit, num_views=len(batch.row_B), problem=problem, distance=distance)


def _snapshot(cache: TeacherCache) -> tuple[NDArray[np.uint64], str]:
    try:
        return cache.units.ledger.snapshot(), ""
    except UnreachableError:
        raise
    except CacheError as error:
        return np.zeros((cache.num_view_blocks, cache.num_shards), np.uint64), str(error)


def _unit_problem(cache: TeacherCache, unit: UnitId, entry: int | CacheError) -> str:
    if isinstance(entry, CacheError):
        return f"{cache.describe(unit)}: {entry}"
    if entry == 0:
        return f"{cache.describe(unit)}: its ledger entry is gone, although the snapshot of the ledger names the unit"
    try:
        cache.read_unit(*unit)
    except UnreachableError:
        raise
    except CacheError as error:
        return str(error)
    return ""


def _sampled(
    cache: TeacherCache, reader: ShardReader, count: int, seed: int
) -> Iterator[tuple[UnitId, ViewBatch, Arrays]]:
    """A seeded sample of blocks of committed units, none of them twice: unit, rendered anew, what is stored."""
    require_index(cache.header, reader.index, cache.url)
    units = [UnitId(int(b), int(s)) for b, s in np.argwhere(cache.ledger() != 0)]
    if not units:
        raise CacheError(f"{cache.url}: nothing is committed yet, so nothing can be compared; run cache-teacher")
    ends = _block_ends(cache, units)
    for number in sorted(_distinct(stream(seed, "verify"), int(ends[-1]), count)):
        place = int(np.searchsorted(ends, number, "right"))
        unit, block = units[place], number - (int(ends[place - 1]) if place else 0)
        first = unit.view_block * cache.views_per_unit
        views = range(first, first + cache.views_per_unit)
        batch = render_block(reader, cache.spec.recipe, unit.shard, block, views)
        yield unit, batch, cache.read_unit(*unit)


def count_blocks(cache: TeacherCache) -> int:
    """Count the blocks of all committed units, of which `verify_blocks` takes a sample."""
    units = [UnitId(int(b), int(s)) for b, s in np.argwhere(cache.ledger() != 0)]
    return int(_block_ends(cache, units)[-1]) if units else 0


def _block_ends(cache: TeacherCache, units: Sequence[UnitId]) -> NDArray[np.int64]:
    """The number of blocks of the units up to and with each one."""
    return np.cumsum([num_blocks(cache.spec.recipe, int(cache.rows_S[unit.shard])) for unit in units])


def _distinct(draws: Stream, total: int, count: int) -> set[int]:
    """At most `count` different numbers below `total`, every set as likely (R. Floyd's algorithm)."""
    numbers: set[int] = set()
    for last in range(max(0, total - count), total):
        number = draws.below(last + 1)
        numbers.add(last if number in numbers else number)
    return numbers


def _pixel_problem(cache: TeacherCache, index: ShardIndex, unit: UnitId, batch: ViewBatch, stored: Arrays) -> str:
    expected_B = stored[PIXEL_DIGEST][batch.view_B % cache.views_per_unit, batch.row_B]
    wrong = np.flatnonzero(expected_B != batch.pixel_digest_B)
    if not wrong.size:
        return ""
    at = int(wrong[0])
    return (
        f"{cache.describe(unit)}: key {index.key(unit.shard, int(batch.row_B[at]))!r}, view {int(batch.view_B[at])}: "
        f"expected pixels with digest {int(expected_B[at]):08x}, got {int(batch.pixel_digest_B[at]):08x} "
        f"({wrong.size} of {len(expected_B)} differ); {rendering_remedy(cache.header.made_with)}"
    )


def _distances(
    cache: TeacherCache, codec: RecordCodec, teacher: Teacher, unit: UnitId, batch: ViewBatch, stored: Arrays
) -> NDArray[np.float64]:
    image_BCHW = model_input(batch, cache.spec.recipe, teacher.device)
    repeated = codec.encode(teacher.logits(image_BCHW).cpu().numpy())
    at = (batch.view_B % cache.views_per_unit, batch.row_B)
    mine = {name: torch.from_numpy(repeated[name]) for name in repeated}
    theirs = {name: torch.from_numpy(np.ascontiguousarray(stored[name][at])) for name in repeated}
    if not cache.spec.record.entry.soft:
        return (codec.hard_label(mine) != codec.hard_label(theirs)).double().numpy()
    probability = [codec.log_prob(record, 1.0).double().exp() for record in (mine, theirs)]
    distance_B: NDArray[np.float64] = (0.5 * (probability[0] - probability[1]).abs().sum(dim=-1)).numpy()
    return distance_B
