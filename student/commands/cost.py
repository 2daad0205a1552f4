"""`cost`: estimate storage, hours and break-even before a cache is made."""

from dataclasses import replace

import click

from shards.commands.flags import CACHE, COUNT, Number, bundled, refuse_ignored
from shards.commands.shard_place import ShardPlace, shard_options
from shards.console import result
from student.cost import cost_estimate
from student.cost.cost_estimate import Cost, Hardware, Job
from teacher_cache.store.header import local_header

POSITIVE = Number(0, 1e12, min_open=True)


_job_options = bundled(
    Job,
    "job",
    click.option("--num-samples", default=1_281_167, type=click.IntRange(1, 10**11), help="Without --cache."),
    click.option("--views", "num_views", default=300, type=COUNT, help="Without --cache."),
    click.option("--bytes", "bytes_per_view", default=64.0, type=POSITIVE, help="Per view, without --cache."),
    click.option("--image-bytes", default=110_000.0, type=POSITIVE, help="Mean of an image; without --shards."),
    click.option("--epochs", default=300, type=COUNT, help="Of each student."),
    click.option("--students", "num_students", default=12, type=COUNT, help="Runs that share the cache."),
    click.option("--together", default=1, type=COUNT, help="Students per pass."),
    click.option("--gpus", "num_gpus", default=8, type=COUNT, help="GPUs, in all."),
    click.option("--cores", "num_cores", default=96, type=COUNT, help="CPU cores that render, in all."),
    click.option("--teachers", "num_teachers", default=1, type=COUNT, help="That teach together, without --cache."),
)


_rate_options = bundled(
    Hardware,
    "hardware",
    click.option("--teacher-gmacs", default=15.96, type=POSITIVE, help="Of the teacher: RegNetY-16GF."),
    click.option("--tflops", default=60.0, type=POSITIVE, help="Sustained by one GPU; where no rate is given."),
    click.option("--teacher-rate", "teacher", type=POSITIVE, help="Teacher forwards per second and GPU, when known."),
    click.option("--student-rate", "student", type=POSITIVE, help="Training images per second and GPU, when known."),
    click.option(
        "--view-rate", "views", default=700.0, type=POSITIVE, help="Views per second and core, one per decode."
    ),
    click.option(
        "--unit-view-rate", "unit_views", default=1300.0, type=POSITIVE, help="The same with several views per decode."
    ),
)


@click.command("cost")
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=CACHE,
    help="Take samples, views and bytes from a cache that is there; again for more.",
)
@_job_options
@click.option("--model", default="deit_tiny_distilled_patch16_224", help="The student.")
@_rate_options
@shard_options(required=False, help="Their images: mean size in bytes.")
def cost(
    caches: tuple[str, ...], job: Job, image_bytes: float, model: str, hardware: Hardware, shard_place: ShardPlace
) -> None:
    """Estimate storage, hours with and without the cache, and break-even, before anything is spent.

    Rates are those given, else arithmetic at --tflops; every assumption is printed. `plan-cache` measures stage 1.
    """
    from shards.names import unknown
    from student.recipe.zoo import MODELS, model_entry

    if caches:
        refuse_ignored(["num_samples", "num_views", "bytes_per_view"], "--cache says it")
    if shard_place.shards:
        refuse_ignored(["image_bytes"], "--shards says it")
    else:
        refuse_ignored(["shard_cache", "shard_cache_limit"], "only with --shards")
    entry = model_entry(model)
    gmacs = entry.gmacs if entry else None
    if gmacs is None and hardware.student is None:
        counted = [name for name, other in MODELS.items() if other.gmacs is not None]
        raise ValueError(unknown("model", model, counted) + "; for another model give --student-rate")
    if caches:
        job = _with_caches(job, caches)
    estimate = cost_estimate.cost(job, hardware.rates(gmacs or 1.0))
    for line in (*estimate.lines, _disk_line(job, estimate, image_bytes, model, shard_place)):
        result(line)


def _with_caches(job: Job, urls: tuple[str, ...]) -> Job:
    """Take samples, views and bytes of existing caches; CacheError for a missing one, or caches of different shards."""
    for url in urls:
        local_header(url)
    from shards.errors import CacheError
    from teacher_cache.inspect.status import cache_status
    from teacher_cache.store.cache import TeacherCache

    num_bytes, views, samples = 0.0, [], {}
    for url in urls:
        with TeacherCache.open(url) as cache:
            num_bytes += cache_status(cache).total_bytes_per_view or job.bytes_per_view
            views.append(cache.num_views)
            samples[cache.spec.index_fingerprint] = int(cache.rows_S.sum())
    if len(samples) > 1:
        raise CacheError(f"{', '.join(urls)}: made from {len(samples)} sets of shards; give caches of one set")
    (num_samples,) = samples.values()
    return replace(job, num_samples=num_samples, num_views=min(views), bytes_per_view=num_bytes, num_teachers=len(urls))


def _disk_line(job: Job, estimate: Cost, image_bytes: float, model: str, shard_place: ShardPlace) -> str:
    """Return the bytes per second that the plan reads and writes."""
    from shards.views.view_recipe import recipe_named
    from student.cost.disk_need import disk_need
    from student.recipe.papers import recipe_for

    source = "assumed"
    if shard_place.shards:
        image_bytes, source = float(shard_place.index().size_N.mean()), "of --shards"
    repeats, unit_views = recipe_for(model).repeats, recipe_named("deit").block_views
    need = disk_need(job, estimate, image_bytes=image_bytes, repeats=repeats, unit_views=unit_views)
    return need.line(image_bytes=image_bytes, image_source=source)
