"""`cache-teacher`: stage 1, drawn as a bar over views with lines for what stands out."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from shards.console import Bar, result, say
from shards.flags import CACHE, ShardPlace, shard_options, stop_with, workers_option
from shards.own_folder import require_own
from shards.signals import StopRequest
from shards.text.figures import count, duration
from shards.world import World, require_completions, world_from_env
from teacher_cache.commands.flags import (
    RecordFlags,
    RunsTeacher,
    TeacherFlags,
    ViewFlags,
    record_options,
    runs_teacher_options,
    served,
    teacher_options,
    view_options,
)

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from teacher_cache.stage1.stage1_events import BuildEvent, BuildFinished, OpenEvent, ShortCalibration, UnitCommitted
    from teacher_cache.store.cache import TeacherCache


@click.command("cache-teacher")
@shard_options()
@click.option(
    "--cache", required=True, type=CACHE, help="The cache to make, extend or finish: a folder, s3:// or gs://."
)
@teacher_options
@view_options
@record_options
@runs_teacher_options
@workers_option()
def cache_teacher(
    shard_place: ShardPlace,
    cache: str,
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    execution: RunsTeacher,
    workers: int,
) -> None:
    """Run the teacher once over views of every sample and keep a small record of each (stage 1).

    Run the same command again to go on after a kill, or with more --views to extend. Any number of processes may work
    on one cache: under torchrun, as a SLURM array, or started by hand with RANK and WORLD_SIZE.
    """
    index = shard_place.index()
    _refuse_early(cache, index, teacher, views, record, precision=execution.precision)
    require_completions()
    world = world_from_env(shared=True)
    from teacher_cache.stage1.build import build_cache
    from teacher_cache.stage1.opening import open_or_create
    from teacher_cache.stage1.stage1_events import CacheOpened
    from teacher_cache.store.cache import spec_at

    teacher.check_published_classes(index)
    existing_spec = spec_at(cache)
    recipe = views.recipe(index, existing_spec)
    network = execution.load(teacher, recipe, existing_spec, world)
    with StopRequest() as stop, shard_place.reader(index) as reader:
        display, opened = _Display(world, stop), None
        for event in open_or_create(
            cache,
            index,
            network,
            recipe,
            record.format(network.num_classes, index, recipe, existing_spec),
            num_views=views.num_views,
            reader=reader,
            world=world,
        ):
            display.show(event)
            display.end_if_told(isinstance(event, CacheOpened))
            opened = event.cache if isinstance(event, CacheOpened) else None
        assert opened is not None, "the last event carries the cache"
        with opened:
            for done in build_cache(
                opened,
                index,
                network,
                reader=reader,
                world=world,
                workers=workers,
                batch_size=execution.batch_size,
                should_stop=lambda: stop.told,
            ):
                display.show(done)


def _refuse_early(
    cache: str,
    index: "ShardIndex",
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    *,
    precision: str | None,
) -> None:
    """Refuse what can be refused without importing torch or the teacher.

    Errors:
        ValueError for what was typed, CacheError for an existing cache that is for something else.
    """
    from teacher_cache.stage1.agreement import require_known_labels, require_new_cache
    from teacher_cache.store.header import CACHE_FOLDER, header_at, require_index
    from teacher_cache.store.place import Place
    from teacher_cache.store.spec import require_equal

    place = Place.parse(cache, writable=True)
    if place.folder is not None:
        require_own("--cache", place.folder, CACHE_FOLDER)
    name = teacher.checked_name()
    header = header_at(cache)
    if header is None:
        require_known_labels(index, index.num_classes, name)
        if place.folder is not None:
            recipe = views.recipe(index)
            require_new_cache(index, recipe, views.num_views)
            record.format(index.num_classes, index, recipe)
        return
    require_index(header, index, place.url)
    spec = header.spec
    recipe = views.recipe(index, spec)
    requested_precision = precision or spec.teacher.precision
    requested_teacher = replace(
        spec.teacher, name=name, precision=requested_precision, input_size=recipe.size, mean=recipe.mean, std=recipe.std
    )
    requested_record = record.format(spec.teacher.num_classes, index, recipe, spec)
    requested = replace(
        spec,
        index_fingerprint=index.fingerprint,
        recipe=recipe,
        record=requested_record,
        teacher=requested_teacher,
    )
    require_equal(requested, spec, place.url)


_BLOCK = 16  # of the built-in recipes: another size is worth a word


class _Display:
    """A bar over views, lines for what stands out."""

    def __init__(self, world: World, stop: StopRequest) -> None:
        self._quiet, self._world_size, self._stop = world.rank > 0, world.size, stop
        self._bar: Bar | None = None
        self._calibration: Bar | None = None
        self._units = self._num_classes = 0

    def show(self, event: "BuildEvent | OpenEvent") -> None:
        """Draw one event of stage 1."""
        from teacher_cache.stage1 import stage1_events as events

        match event:
            case events.Calibrated() if not self._quiet:
                self._calibration = self._calibration or Bar("calibrate", event.num_views, "view")
                self._calibration.to(event.views_done)
            case events.ShortCalibration() if not self._quiet:
                self._say_cost(event)
            case events.CacheOpened() if not self._quiet:
                what = "made" if event.created else "extended" if event.grown else "found"
                say(
                    f"{what} {event.cache.url}: {count(event.cache.num_views, 'view')}, record "
                    f"{event.cache.spec.record.kind}"
                )
                say(f"views: {served(event.cache.num_views, event.cache.views_per_unit)}")
                if (size := event.cache.spec.recipe.block_size) != _BLOCK:
                    say(f"blocks of {count(size, 'sample')}, mixed with each other: batches are multiples of {size}")
                self._num_classes = event.cache.spec.record.num_classes
                if event.created:
                    self._say_bytes(event.cache)
            case events.Started() if not self._quiet:
                say(f"{event.num_units - event.missing_units} of {count(event.num_units, 'unit')} done")
                of = f" (rank 0 of {self._world_size})" if self._world_size > 1 else ""
                self._bar = Bar(f"cache-teacher{of}", event.share_views, "view")
            case events.SnapshotDamaged():
                say(f"warning: {event.reason}; it is written anew")
            case events.UnitDamaged():
                say(f"warning: {event.reason}; it will be computed again")
            case events.BatchDone() if self._bar is not None:
                self._bar.to(event.views_done)
            case events.UnitCommitted() if not self._quiet and not self._units:
                self._units += 1
                self._say_first(event)
            case events.BuildFinished():
                self._finish(event)

    def end_if_told(self, opened: bool) -> None:
        """End a calibration that is asked to stop: it is seconds to minutes of forwards of which nothing is kept."""
        if self._stop.told and not opened:
            say("stopped while calibrating, nothing is made yet; run the same command again")
            raise stop_with(self._stop.exit_code)

    def _say_cost(self, event: "ShortCalibration") -> None:
        """What fitting the record on few views costs, measured."""
        if self._calibration is not None:
            self._calibration.close()
        rows = [row for row in event.errors if row.temperature >= 1]
        taus = " / ".join(f"{row.temperature:g}" for row in rows)
        errors = " / ".join(f"{row.gradient_error:.2f}" for row in rows)
        say(
            f"calibrated on {count(event.num_views, 'view')}, fewer than {event.wanted}: gradient "
            f"error G about {errors} at τ = "
            f"{taus}, measured on {count(event.num_measured, 'view')} after a fit to the others; "
            "--bytes 128 or --record dense8 "
            "keep more"
        )

    def _say_bytes(self, cache: "TeacherCache") -> None:
        """What a view takes on disk beside its record, where that is more than the record allows for."""
        from teacher_cache.record.record_format import STORE_BYTES
        from teacher_cache.store.digest import fidelity_bytes, fidelity_count

        spec = cache.spec
        kept = fidelity_bytes(spec, cache.rows_S)
        if kept > STORE_BYTES:
            say(
                f"bytes: {spec.record.num_bytes} per view, and {kept:.0f} more as the set is small: full logits of "
                f"{count(fidelity_count(spec, cache.rows_S), 'view')} in each unit, which measure "
                "the error of this cache"
            )

    def _say_first(self, event: "UnitCommitted") -> None:
        """Whether teacher and labels seem to be of the same classes, while it is cheap to stop."""
        from teacher_cache.stage1.agreement import disagrees

        if disagrees(event.label_agreement, self._num_classes):
            say(f"warning: after the first unit {_doubt(event.label_agreement)}; Ctrl-C stops, docs/own-data.md helps")

    def _finish(self, event: "BuildFinished") -> None:
        if self._bar is not None:
            self._bar.close()
        if event.labels_disagree:
            say(f"warning: {_doubt(event.label_agreement)}; docs/own-data.md says what to do")
        agreed = 100 * event.label_agreement
        result(
            f"{count(event.num_forwards, 'teacher forward')}, {count(event.views_done, 'view')} in "
            f"{duration(event.seconds)}; "
            f"{count(event.missing_units, 'unit')} missing"
            + (f"; the teacher names the label of {agreed:.1f} % of them" if not math.isnan(agreed) else "")
        )
        if event.stopped:
            say("stopped, every finished unit is kept; run the same command again to go on")
            raise stop_with(self._stop.exit_code)


def _doubt(agreement: float) -> str:
    return (
        f"the teacher's first class is the label for only {100 * agreement:.2f} % of the views: does it know these "
        "classes, in this order?"
    )
