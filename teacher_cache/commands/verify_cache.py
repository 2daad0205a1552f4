"""`verify-cache`: check every checksum of a cache; of a sample also the pixels and the teacher's answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from shards.commands.flags import (
    CACHE,
    COUNT,
    SEED,
    Number,
    bundled,
    device_option,
    flag,
    refuse_ignored,
    shared,
    stop_with,
)
from shards.commands.shard_place import ShardPlace, shard_options
from shards.console import Bar, result, say
from shards.text.figures import count, plural
from teacher_cache.commands.flags import TeacherFlags, optional_teacher_options
from teacher_cache.store.header import local_header, require_index

if TYPE_CHECKING:
    from teacher_cache.inspect.verify import Finding
    from teacher_cache.store.cache import TeacherCache


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFlags:
    """How much is checked beside the checksums, what is done about damage, and where networks run."""

    deep: bool = flag(
        "--deep", is_flag=True, help="Also render some images again and compare the checksums of their pixels."
    )
    blocks: int = flag("--blocks", default=64, type=COUNT, help="Groups of 16 images that --deep renders.")
    teacher: TeacherFlags = shared(
        optional_teacher_options(
            "Also run this teacher again on those groups; implies --deep. Not needed if --teacher-weights name it."
        )
    )
    tolerance: float | None = flag(
        "--tolerance",
        type=Number(0, 1),
        help="Largest allowed total variation between two answers; default: by precision.",
    )
    repair: bool = flag(
        "--repair", is_flag=True, help="Mark damaged chunks as missing; cache-teacher then computes them again."
    )
    seed: int = flag("--sample-seed", "--seed", default=0, type=SEED, help="Chooses the groups of --deep.")
    device: str | None = shared(device_option)

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher answers again: one that is named by --teacher, or by its weights."""
        teacher = self.teacher
        return teacher.teacher is not None or (teacher.teacher_weights is not None and teacher.named()[1] is not None)

    @property
    def renders(self) -> bool:
        """Whether images are rendered again."""
        return self.deep or self.asks_teacher

    def check(self, shard_place: ShardPlace) -> None:
        """Refuse flags that would be ignored, and a teacher without a name; ValueError."""
        teacher = self.teacher
        if not self.asks_teacher:
            if teacher.teacher_weights or teacher.teacher_args or teacher.teacher_mean or teacher.teacher_std:
                raise ValueError(
                    "--teacher-weights, --teacher-arg: expected the name of this teacher, too: give --teacher NAME"
                )
            refuse_ignored(["teacher_ema", "teacher_classes", "tolerance", "device"], "it is used only with --teacher")
        if self.renders and shard_place.shards is None:
            raise ValueError("--deep, --teacher: they render images again, which needs --shards")
        if not self.renders:
            ignored = ["shards", "shard_cache", "shard_cache_limit", "blocks", "seed"]
            refuse_ignored(ignored, "it is used only with --deep or --teacher, which render images again")


@click.command("verify-cache")
@click.argument("cache", type=CACHE)
@shard_options(required=False, help="With --deep: the shards that the cache was made from.")
@bundled(CheckFlags, "checks")
def verify_cache(cache: str, shard_place: ShardPlace, checks: CheckFlags) -> None:
    """Check every checksum of CACHE; --deep renders images again, --teacher runs the teacher again.

    Exit code 1 if anything is wrong.
    """
    checks.check(shard_place)
    header, index = local_header(cache), shard_place.index() if checks.renders else None
    if header is not None and index is not None:
        require_index(header, index, cache)
    from teacher_cache.inspect import verify
    from teacher_cache.store.cache import TeacherCache

    with TeacherCache.open(cache, writable=checks.repair) as opened:
        units = opened.num_view_blocks * opened.num_shards
        problems = _show_findings("digests", units, "chunk", verify.verify_digests(opened, repair=checks.repair))
        if checks.renders:
            problems += _verify_deep(opened, shard_place, checks)
    if problems:
        repaired = ": these chunks count as missing now; run cache-teacher again" * checks.repair
        say(f"{count(problems, 'problem')}{repaired}")
        raise stop_with(1)


def _verify_deep(cache: "TeacherCache", shard_place: ShardPlace, checks: CheckFlags) -> int:
    from teacher_cache.inspect import verify

    index, spec, what, network = shard_place.index(), cache.spec, "pixels", None
    with shard_place.reader(index) as reader:
        if checks.asks_teacher:
            what = "teacher"
            network = checks.teacher.load(
                spec.recipe, index, device=checks.device, precision=spec.teacher.precision, existing=spec.teacher
            )
        findings = verify.verify_blocks(
            cache,
            reader,
            num_blocks_to_check=checks.blocks,
            seed=checks.seed,
            teacher=network,
            tolerance=checks.tolerance,
        )
        return _show_findings(what, min(checks.blocks, verify.count_blocks(cache)), "group", findings)


def _show_findings(what: str, total: int, unit: str, findings: "Iterable[Finding]") -> int:
    problems = checked = views = 0
    distance = 0.0
    with Bar(f"verify {what}", total, unit) as bar:
        for finding in findings:
            checked, views, distance = checked + 1, views + finding.num_views, max(distance, finding.distance)
            if finding.problem:
                problems += 1
                say(f"  {finding.problem}")
            bar.to(min(checked, total))
    worst = f", largest total variation {distance:.4f}" if what == "teacher" else ""
    result(
        f"{what}: {checked} checked, {count(views, 'view')}{worst}, {problems or 'no'} {plural(problems, 'problem')}"
    )
    return problems
