"""`verify-cache`: is the cache what it says?"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from shards.console import Bar, result, say
from shards.flags import CACHE, COUNT, SEED, Number, ShardPlace, device_option, refuse_ignored, shard_options, stop_with
from shards.text.figures import count, plural
from teacher_cache.commands.flags import TeacherFlags, optional_teacher_options
from teacher_cache.store.header import local_header, require_index

if TYPE_CHECKING:
    from teacher_cache.inspect.verify import Finding
    from teacher_cache.store.cache import TeacherCache


@click.command("verify-cache")
@click.argument("cache", type=CACHE)
@shard_options(required=False, help="With --deep: the shards that the cache was made from.")
@click.option("--deep", is_flag=True, help="Also render some images again and compare the checksums of their pixels.")
@click.option("--blocks", default=64, type=COUNT, help="Groups of 16 images that --deep renders.")
@optional_teacher_options("Also ask this teacher again about those blocks; implies --deep.")
@click.option(
    "--tolerance", type=Number(0, 1), help="Largest allowed total variation between two answers; default: by precision."
)
@click.option("--repair", is_flag=True, help="Mark damaged chunks as missing; cache-teacher then computes them again.")
@click.option("--sample-seed", "--seed", "seed", default=0, type=SEED, help="Chooses the groups of --deep.")
@device_option
def verify_cache(
    cache: str,
    shard_place: ShardPlace,
    deep: bool,
    blocks: int,
    teacher: TeacherFlags,
    tolerance: float | None,
    repair: bool,
    seed: int,
    device: str | None,
) -> None:
    """Check every checksum of CACHE; --deep renders images again, --teacher runs the teacher again.

    Exit code 1 if anything is wrong.
    """
    with_teacher = teacher.teacher is not None
    if not with_teacher and (
        teacher.teacher_weights or teacher.teacher_args or teacher.teacher_mean or teacher.teacher_std
    ):
        raise ValueError("--teacher-weights, --teacher-arg: whose? give --teacher NAME as well")
    if not with_teacher:
        refuse_ignored(["teacher_ema", "teacher_classes"], "no --teacher is asked")
    if (deep or with_teacher) and shard_place.shards is None:
        raise ValueError("--deep: renders again, so it needs --shards")
    if not with_teacher:
        refuse_ignored(["tolerance", "device"], "no --teacher is asked")
    if not with_teacher and not deep:
        ignored = ["shards", "shard_cache", "shard_cache_limit", "blocks", "seed"]
        refuse_ignored(ignored, "only --deep and --teacher render blocks again")
    header, index = local_header(cache), shard_place.index() if deep or with_teacher else None
    if header is not None and index is not None:
        require_index(header, index, cache)
    from teacher_cache.inspect import verify
    from teacher_cache.store.cache import TeacherCache

    with TeacherCache.open(cache, writable=repair) as opened:
        units = opened.num_view_blocks * opened.num_shards
        problems = _show_findings("digests", units, "chunk", verify.verify_digests(opened, repair=repair))
        if deep or with_teacher:
            problems += _verify_deep(
                opened, shard_place, teacher, device, blocks=blocks, seed=seed, tolerance=tolerance
            )
    if problems:
        say(count(problems, "problem") + (": taken out of the ledger; run cache-teacher again" if repair else ""))
        raise stop_with(1)


def _verify_deep(
    cache: "TeacherCache",
    shard_place: ShardPlace,
    teacher: TeacherFlags,
    device: str | None,
    *,
    blocks: int,
    seed: int,
    tolerance: float | None,
) -> int:
    from teacher_cache.inspect import verify

    index, spec = shard_place.index(), cache.spec
    with shard_place.reader(index) as reader:
        if teacher.teacher is None:
            findings = verify.verify_pixels(cache, index, reader, num_blocks_to_check=blocks, seed=seed)
            return _show_findings("pixels", blocks, "block", findings)
        network = teacher.load(
            spec.recipe, index, device=device, precision=spec.teacher.precision, existing=spec.teacher
        )
        findings = verify.verify_teacher(
            cache, index, reader, network, num_blocks_to_check=blocks, seed=seed, tolerance=tolerance
        )
        return _show_findings("teacher", blocks, "block", findings)


def _show_findings(what: str, total: int, unit: str, findings: "Iterable[Finding]") -> int:
    problems = checked = views = 0
    distance = 0.0
    with Bar(f"verify {what}", total, unit) as bar:
        for finding in findings:
            checked, views, distance = checked + 1, views + finding.num_views, max(distance, finding.distance)
            if finding.problem:
                problems += 1
                bar.say(f"  {finding.problem}")
            bar.to(min(checked, total))
    worst = f", largest total variation {distance:.4f}" if what == "teacher" else ""
    result(
        f"{what}: {checked} checked, {count(views, 'view')}{worst}, {problems or 'no'} {plural(problems, 'problem')}"
    )
    return problems
