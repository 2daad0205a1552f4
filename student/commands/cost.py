"""`cost`: storage, hours and break-even, before anything is spent."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from shards.console import result, say
from shards.flags import (
    CACHE,
    Number,
    ShardPlace,
    bundled,
    device_option,
    given_flag,
    precision_option,
    refuse_ignored,
    shard_options,
)

if TYPE_CHECKING:
    from student.cost.cost_estimate import Cost, Job, Rates
    from student.recipe.settings import Precision


POSITIVE = Number(0, 1e12, min_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFlags:
    """The work that is to be paid for."""

    num_samples: int
    num_views: int
    num_bytes: float
    image_bytes: float
    epochs: int
    students: int
    together: int
    gpus: int
    cores: int
    teachers: int

    def job(self) -> "Job":
        """The same as the estimate's value."""
        from student.cost.cost_estimate import Job

        return Job(
            num_samples=self.num_samples,
            num_views=self.num_views,
            bytes_per_view=self.num_bytes,
            epochs=self.epochs,
            num_students=self.students,
            num_gpus=self.gpus,
            num_cores=self.cores,
            together=self.together,
            num_teachers=self.teachers,
        )

    def with_caches(self, urls: tuple[str, ...]) -> "JobFlags":
        """Samples, views and bytes of caches that are there; CacheError when they are not of one index."""
        from shards.errors import CacheError
        from teacher_cache.inspect.status import cache_status
        from teacher_cache.store.cache import TeacherCache

        num_bytes, views, samples = 0.0, [], {}
        for url in urls:
            with TeacherCache.open(url) as cache:
                num_bytes += sum(cache_status(cache).bytes_per_view.values()) or self.num_bytes
                views.append(cache.num_views)
                samples[cache.spec.index_fingerprint] = int(cache.rows_S.sum())
        if len(samples) > 1:
            raise CacheError(f"{', '.join(urls)}: made from {len(samples)} sets of shards; give caches of one set")
        (num_samples,) = samples.values()
        return replace(
            self, num_samples=num_samples, num_views=min(views), num_bytes=num_bytes, teachers=len(urls)
        )


_job_options = bundled(
    JobFlags,
    "work",
    click.option(
        "--num-samples", default=1_281_167, show_default=True, type=click.IntRange(1), help="Without --cache."
    ),
    click.option(
        "--views", "num_views", default=300, show_default=True, type=click.IntRange(1), help="Without --cache."
    ),
    click.option(
        "--bytes", "num_bytes", default=64.0, show_default=True, type=POSITIVE, help="Per view, without --cache."
    ),
    click.option(
        "--image-bytes", default=110_000.0, show_default=True, type=POSITIVE, help="Mean of an image; without --shards."
    ),
    click.option("--epochs", default=300, show_default=True, type=click.IntRange(1)),
    click.option(
        "--students", default=12, show_default=True, type=click.IntRange(1), help="Runs that share the cache."
    ),
    click.option("--together", default=1, show_default=True, type=click.IntRange(1), help="Students per pass."),
    click.option("--gpus", default=8, show_default=True, type=click.IntRange(1)),
    click.option(
        "--cores", default=96, show_default=True, type=click.IntRange(1), help="CPU cores that render, in all."
    ),
    click.option(
        "--teachers", default=1, show_default=True, type=click.IntRange(1), help="That teach together, without --cache."
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateFlags:
    """Rates as given, and what stands for those that are not."""

    teacher_gmacs: float
    tflops: float
    teacher_rate: float | None
    student_rate: float | None
    view_rate: float
    unit_view_rate: float

    def given(self, *, measure: bool) -> dict[str, float | None]:
        """The rates that replace estimated ones; the defaults of view rates do not replace measured ones."""
        rates = {"teacher": self.teacher_rate, "student": self.student_rate}
        if measure and given_flag("view_rate"):
            rates["views"] = self.view_rate
        if measure and given_flag("unit_view_rate"):
            rates["unit_views"] = self.unit_view_rate
        return rates


_rate_options = bundled(
    RateFlags,
    "rates",
    click.option(
        "--teacher-gmacs", default=15.96, show_default=True, type=POSITIVE, help="Of the teacher: RegNetY-16GF."
    ),
    click.option(
        "--tflops", default=60.0, show_default=True, type=POSITIVE, help="Sustained by one GPU; where no rate is given."
    ),
    click.option("--teacher-rate", type=POSITIVE, help="Teacher forwards per second and GPU, when known."),
    click.option("--student-rate", type=POSITIVE, help="Training images per second and GPU, when known."),
    click.option(
        "--view-rate",
        default=700.0,
        show_default=True,
        type=POSITIVE,
        help="Views per second and core, one per decode.",
    ),
    click.option(
        "--unit-view-rate",
        default=1300.0,
        show_default=True,
        type=POSITIVE,
        help="The same with several views per decode.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFlags:
    """How --measure measures."""

    measure: bool
    teacher: str
    probe_batch: int
    seconds: float
    precision: "Precision"
    device: str | None

    def rates(self, model: str, place: ShardPlace) -> "Rates":
        """The rates of this machine; the speed of a teacher does not depend on its weights."""
        from student.cost.rates import measured_rates
        from teacher_cache.network.device import chosen_device

        say(f"measuring for {4 * self.seconds:.0f} s")
        return measured_rates(
            model,
            self.teacher,
            index=place.index() if place.shards else None,
            batch_size=self.probe_batch,
            seconds=self.seconds,
            precision=self.precision,
            device=chosen_device(self.device),
        )


_probe_options = bundled(
    ProbeFlags,
    "probe",
    click.option("--measure", is_flag=True, help="Measure every rate that is not given, here and now, instead."),
    click.option(
        "--teacher", default="regnety_160.deit_in1k", show_default=True, help="For --measure; needs no weights."
    ),
    click.option("--probe-batch", default=16, show_default=True, type=click.IntRange(1), help="Batch of --measure."),
    click.option("--seconds", default=5.0, show_default=True, type=POSITIVE, help="How long --measure takes per rate."),
    precision_option,
    device_option,
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
@click.option("--model", default="deit_tiny_distilled_patch16_224", show_default=True, help="The student.")
@_rate_options
@shard_options(required=False, help="Their images: mean size, and for --measure what is rendered; default: synthetic.")
@_probe_options
def cost(
    caches: tuple[str, ...], work: JobFlags, model: str, rates: RateFlags, place: ShardPlace, probe: ProbeFlags
) -> None:
    """Storage, hours with and without the cache, and break-even, before anything is spent; every assumption printed.

    Rates are those given, else arithmetic at --tflops, else with --measure those of this machine.
    """
    from shards.names import unknown
    from student.cost import cost_estimate
    from student.recipe.zoo import MODELS, model_entry

    if caches:
        refuse_ignored(["num_samples", "num_views", "num_bytes"], "--cache says it")
    if probe.measure:
        refuse_ignored(["teacher_gmacs", "tflops"], "--measure measures instead of reckoning")
    else:
        probing = ["teacher", "probe_batch", "seconds", "precision", "device"]
        refuse_ignored(probing, "nothing is measured without --measure")
    if place.shards:
        refuse_ignored(["image_bytes"], "--shards says it")
    entry = model_entry(model)
    if entry is None and rates.student_rate is None and not probe.measure:
        raise ValueError(unknown("model", model, MODELS) + "; for another model give --student-rate")
    if caches:
        work = work.with_caches(caches)
    if probe.measure:
        found = probe.rates(model, place)
    else:
        found = cost_estimate.rates_from_flops(
            teacher_gmacs=rates.teacher_gmacs,
            student_gmacs=entry.gmacs if entry else 1.0,
            tflops=rates.tflops,
            views=rates.view_rate,
            unit_views=rates.unit_view_rate,
        )
    known = cost_estimate.with_given(found, rates.given(measure=probe.measure))
    found_cost = cost_estimate.cost(work.job(), known)
    for line in (*found_cost.lines, *_disk_lines(work, found_cost, model, place, probe)):
        result(line)


def _disk_lines(work: JobFlags, found: "Cost", model: str, place: ShardPlace, probe: ProbeFlags) -> list[str]:
    """What the plan asks of the disk, against what it gives where that was measured."""
    from shards.index.disk import read_rate
    from shards.views.view_recipe import recipe_named
    from student.cost.disk_need import disk_lines, disk_need
    from student.recipe.papers import recipe_for

    image_bytes, source, measured = work.image_bytes, "assumed", None
    if place.shards:
        index = place.index()
        image_bytes, source = float(index.size_N.mean()), "of --shards"
        measured = read_rate(index, seconds=probe.seconds) if probe.measure else None
    repeats, unit_views = recipe_for(model).repeats, recipe_named("deit").block_views
    need = disk_need(work.job(), found, image_bytes=image_bytes, repeats=repeats, unit_views=unit_views)
    return disk_lines(need, image_bytes=image_bytes, image_source=source, measured=measured)
