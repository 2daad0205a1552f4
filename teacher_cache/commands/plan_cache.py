"""`plan-cache`: bytes, hours and error of a cache before it is made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from shards.commands.flags import COUNT, Count, Number, bundled, flag, suited_workers, workers_option
from shards.commands.shard_place import ShardPlace, shard_options
from shards.console import result, say
from shards.text.figures import byte_size, count
from teacher_cache.commands.flags import (
    RecordFlags,
    RunsTeacher,
    TeacherFlags,
    record_options,
    runs_teacher_options,
    teacher_options,
)
from teacher_cache.commands.view_flags import ViewFlags, served, view_options

if TYPE_CHECKING:
    from teacher_cache.inspect.cache_plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How much is measured, and for how many processes the cache is planned."""

    gpus: int = flag("--gpus", default=1, type=COUNT, help="GPUs (processes) to plan for.")
    seconds: float = flag(
        "--seconds", default=20.0, type=Number(0, 86400, min_open=True), help="How long making the cache is timed, s."
    )
    calibration_views: int = flag(
        "--calibration-views", default=768, type=Count(8), help="Views that the error is estimated from."
    )


@click.command("plan-cache")
@shard_options()
@teacher_options
@view_options
@record_options
@bundled(Measurement, "measurement")
@runs_teacher_options
@workers_option(beside_network=True)
def plan_cache(
    shard_place: ShardPlace,
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    measurement: Measurement,
    execution: RunsTeacher,
    workers: int,
) -> None:
    """Predict size, time and error of a cache before you make it, from a short measurement on this machine."""
    index = shard_place.index()
    from teacher_cache.stage1.agreement import require_new_cache

    teacher.checked_name()
    teacher.check_known_classes(index)
    views = views.for_set(shard_place, index)
    recipe = views.recipe(index)
    require_new_cache(index, recipe, views.num_views)
    if index.num_classes:
        record.format(index.num_classes, index, recipe)

    from teacher_cache.inspect import cache_plan
    from teacher_cache.stage1.opening import cache_spec

    teacher.check_published_classes(index)
    network = execution.load(teacher, recipe, index)
    spec = cache_spec(index, network, recipe, record.format(network.num_classes, index, recipe))
    with shard_place.reader(index) as reader:
        for event in cache_plan.plan_cache(
            spec,
            network,
            reader,
            num_views=views.num_views,
            workers=suited_workers(workers, network.device.type),
            batch_size=execution.views_per_forward(network, index, recipe),
            calibration_views=measurement.calibration_views,
            seconds=measurement.seconds,
        ):
            if isinstance(event, cache_plan.Plan):
                _show(event, num_samples=index.num_samples, num_views=views.num_views, gpus=measurement.gpus)
                result(f"serves    {served(views.num_views, recipe.block_views)}")
            else:
                say(event.what)


def _show(plan: "Plan", *, num_samples: int, num_views: int, gpus: int) -> None:
    from shards.index.disk import rate_in_words, verdict

    result(f"{count(num_samples, 'sample')} × {count(num_views, 'view')} in {count(plan.num_units, 'chunk')}")
    result(
        f"bytes     {plan.bytes_per_view:.1f} per view; {byte_size(plan.total_bytes)}, of these "
        f"{byte_size(plan.fidelity_bytes)} of full logits that measure its error"
    )
    result(f"files     {plan.num_files:,}; a copy made by `copy-cache --pack` has {plan.num_packed_files:,}")
    result(
        f"hours     {plan.hours / gpus:.2f} on {count(gpus, 'such process')}: "
        f"{plan.views_per_s:.1f} views/s each, timed over {count(plan.num_timed, 'view')}"
    )
    result(f"bound     {_bound_words(plan)}")
    result(
        f"disk      reads {rate_in_words(gpus * plan.read_bytes_per_s)} of images, writes "
        f"{rate_in_words(gpus * plan.write_bytes_per_s)} of records"
    )
    if plan.disk_bytes_per_s is None:
        result("          the shards are remote: each is fetched once and kept, so it is the network that counts")
    else:
        gives, needed = plan.disk_bytes_per_s, gpus * plan.read_bytes_per_s
        result(f"          it gives {rate_in_words(gives)} at random places, not from memory: {verdict(gives, needed)}")
    for row in plan.errors:
        gradient, mean, _ = row.words
        result(f"τ = {row.temperature:<4g}  gradient error {gradient}  KL {mean}")
    if plan.errors:
        result(
            f"errors on {count(plan.num_measured, 'view')} the record was not fitted on, against an untrained student"
        )


def _bound_words(plan: "Plan") -> str:
    """Name the part that sets the pace, and what to change."""
    alone = f"alone it answers {plan.forwards_per_s:.1f} views/s"
    if plan.teacher_is_the_bound:
        return f"the teacher: {alone}; --precision bf16, --compile or more GPUs make stage 1 faster"
    return (
        f"the CPUs, which render and write, not the teacher: {alone}; give each process more CPUs (--workers), or "
        "use smaller images (make-shards --max-side)"
    )
