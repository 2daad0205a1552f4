"""`cache-teacher`: stage 1, drawn as a bar over views with lines for what stands out."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import CACHE, stop_with, suited_workers, workers_option
from shards.commands.shard_place import ShardPlace, beside, fetch_shards, shard_options, val_beside
from shards.console import Bar, result, say, say_next
from shards.names import short
from shards.own_folder import require_own
from shards.signals import StopRequest
from shards.text.escapes import one_line
from shards.text.figures import count, duration, was
from shards.world import World, require_completions, world_from_env
from teacher_cache.commands.flags import (
    RecordFlags,
    RunsTeacher,
    TeacherFlags,
    record_options,
    runs_teacher_options,
    teacher_options,
)
from teacher_cache.commands.view_flags import ViewFlags, served, view_options
from teacher_cache.store.header import header_at
from teacher_cache.store.place import Place

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from teacher_cache.stage1.agreement import Renumbered
    from teacher_cache.stage1.stage1_events import (
        BuildEvent,
        BuildFinished,
        CacheOpened,
        OpenEvent,
        ShortCalibration,
        Started,
        UnitCommitted,
    )
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.header import Header


@click.command("cache-teacher")
@shard_options()
@click.option(
    "--cache", required=True, type=CACHE, help="The cache to make, extend or finish: a folder, s3://, gs:// or az://."
)
@teacher_options
@view_options
@record_options
@runs_teacher_options
@workers_option(beside_network=True)
def cache_teacher(
    shard_place: ShardPlace,
    cache: str,
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    execution: RunsTeacher,
    workers: int,
) -> None:
    """Run the teacher once over augmented views of every image and store its answers (stage 1).

    Run the same command again to go on after a kill, or with more --views to extend. Any number of processes may work
    on one cache: under torchrun, as a SLURM array, or started by hand with RANK and WORLD_SIZE.
    """
    index, place = shard_place.index(), Place.parse(cache, writable=True)
    header = header_at(cache)
    views = views.for_set(shard_place, index, header)
    _refuse_early(place, header, index, teacher, views, record, precision=execution.precision)
    world = world_from_env(shared=True)
    from teacher_cache.stage1.build import build_cache
    from teacher_cache.stage1.opening import open_or_create

    teacher.check_published_classes(index)
    existing_spec = None if header is None else header.spec
    recipe = views.recipe(index, existing_spec)
    network = execution.load(teacher, recipe, index, existing_spec, world)
    if existing_spec is None:  # what it calibrates on
        _fetch_share(shard_place, index, world)
    with StopRequest() as stop, shard_place.reader(index) as reader:
        display = _Display(world, stop, index, _student_command(shard_place, cache))
        opening = open_or_create(
            cache,
            index,
            network,
            recipe,
            record.format(network.num_classes, index, recipe, existing_spec),
            num_views=views.num_views,
            reader=reader,
            world=world,
        )
        with display.opened(opening) as opened:
            _fetch_share(shard_place, index, world, opened)
            for done in build_cache(
                opened,
                index,
                network,
                reader=reader,
                world=world,
                workers=suited_workers(workers, network.device.type),
                batch_size=execution.views_per_forward(network, index, recipe),
                should_stop=lambda: stop.told,
            ):
                display.show(done)


def _fetch_share(
    shard_place: ShardPlace, index: "ShardIndex", world: World, cache: "TeacherCache | None" = None
) -> None:
    """Fetch the remote shards that this process begins with: of the missing units of a cache, or of a new one."""
    from shards.index.sources import is_remote
    from teacher_cache.stage1.walk import share

    if any(map(is_remote, index.urls)):
        shards = range(index.num_shards) if cache is None else [shard for _, shard in cache.missing()]
        numbers = sorted(set(share(shards, world.rank, world.size)))
        urls, sizes = [index.urls[n] for n in numbers], [int(index.tar_bytes_S[n]) for n in numbers]
        fetch_shards(urls, sizes, shard_place, world)


def _student_command(shard_place: ShardPlace, cache: str) -> list[str]:
    """The command that trains a first student from the cache."""
    assert shard_place.shards is not None
    words = ["train-student", "--shards", shard_place.shards]
    words += ["--val-shards", val] if (val := val_beside(shard_place.shards)) else []
    out = "student" if "://" in cache else str(beside(Path(cache), "student"))
    return [*words, "--cache", cache, "--out", out]


def _refuse_early(
    place: Place,
    header: "Header | None",
    index: "ShardIndex",
    teacher: TeacherFlags,
    views: ViewFlags,
    record: RecordFlags,
    *,
    precision: str | None,
) -> None:
    """Refuse what can be refused without importing torch or the teacher.

    Errors:
        ValueError for what was typed, CacheError for an existing cache (with this header) that is for something else.
    """
    from teacher_cache.stage1.agreement import require_known_labels, require_new_cache
    from teacher_cache.store.header import CACHE_FOLDER, require_index
    from teacher_cache.store.spec import require_equal

    require_completions()
    if place.folder is not None:
        require_own("--cache", place.folder, CACHE_FOLDER)
    name = teacher.checked_name()
    teacher.check_known_classes(index)
    if header is None:
        require_known_labels(index, index.num_classes, name)
        recipe = views.recipe(index)
        require_new_cache(index, recipe, views.num_views)
        if index.num_classes:
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
    def __init__(
        self,
        world: World,
        stop: StopRequest,
        index: "ShardIndex | None" = None,
        next_command: Sequence[str] = (),
    ) -> None:
        self._names, self._next_command = index.class_names if index else (), next_command
        self.quiet, self._world_size, self._stop = world.rank > 0, world.size, stop
        self._bar: Bar | None = None
        self._calibration: Bar | None = None
        self._units = self._num_classes = self._num_units = self._views_of_unit = 0
        self._opening: list[str] = []
        self._cache: TeacherCache | None = None
        self._judged = (
            "augmented views" if not (index and index.num_unlabelled) else "augmented views of labelled images"
        )

    def show(self, event: "BuildEvent | OpenEvent") -> None:
        """Draw one event of stage 1."""
        from teacher_cache.stage1 import stage1_events as events

        match event:
            case events.Calibrated() if not self.quiet:
                self._calibration = self._calibration or Bar("calibrate", event.num_views, "view")
                self._calibration.to(event.views_done)
            case events.ShortCalibration() if not self.quiet:
                self._say_cost(event)
            case events.CacheOpened() if not self.quiet:
                self._cache, self._num_classes = event.cache, event.cache.spec.record.num_classes
                self._opening = list(_opened_words(event))
                if self._world_size > 1 and "://" in event.cache.url:
                    self._opening.append("an object store has no locks: two processes may compute the same last chunk")
            case events.Started() if not self.quiet:
                self._start(event)
            case events.SnapshotDamaged():
                say(f"warning: {event.reason}; it is written anew")
            case events.UnitDamaged():
                say(f"warning: {event.reason}; it will be computed again")
            case events.UnitStarted():
                self._views_of_unit = 0
            case events.BatchDone():
                self._views_of_unit += event.num_views
                if self._bar is not None:
                    self._bar.to(event.views_done)
            case events.UnitCommitted():
                self._views_of_unit = 0
                self._units += 1
                if not self.quiet and self._units == 1:
                    self._say_first(event)
            case events.UnitSkipped():
                self._views_of_unit = 0
            case events.UnitsElsewhere():
                what = f"{count(event.num_units, 'chunk')} {was(event.num_units)} begun by other processes"
                say(f"{what}: waiting for them")
            case events.BuildFinished():
                self._finish(event)

    def opened(self, opening: "Iterable[OpenEvent]") -> "TeacherCache":
        """Draw how a cache is opened or made, and return it.

        A calibration that is asked to stop ends: it is seconds to minutes of forwards of which nothing is kept.
        """
        from teacher_cache.stage1.stage1_events import CacheOpened

        opened = None
        for event in opening:
            self.show(event)
            opened = event.cache if isinstance(event, CacheOpened) else None
            if self._stop.told and opened is None:
                say("stopped while calibrating, nothing is made yet; run the same command again")
                raise stop_with(self._stop.exit_code)
        assert opened is not None, "the last event carries the cache"
        return opened

    def _say_cost(self, event: "ShortCalibration") -> None:
        """Print what fitting the record on few views costs, measured."""
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

    def _start(self, event: "Started") -> None:
        """Say what the cache will be, or that nothing is left to do."""
        self._num_units = event.num_units
        if not event.missing_units:
            say(f"already finished: all of {count(event.num_units, 'chunk')} checked, nothing to compute")
            return
        for line in self._opening:
            say(line)
        if done := event.num_units - event.missing_units:
            say(f"{done} of {count(event.num_units, 'chunk')} done before")
        of = f" (rank 0 of {self._world_size})" if self._world_size > 1 else ""
        self._bar = Bar(f"cache-teacher{of}", event.share_views, "view")

    def _say_first(self, event: "UnitCommitted") -> None:
        """Whether teacher and labels seem to be of the same classes, while it is cheap to stop."""
        from teacher_cache.stage1.agreement import disagrees

        if disagrees(event.label_agreement, self._num_classes):
            say(f"warning: after the first chunk {_doubt(event.label_agreement)}; Ctrl-C stops, docs/own-data.md helps")
        elif event.renumbered:
            say(f"warning: after the first chunk {self._otherwise(event)}; Ctrl-C stops")

    def _finish(self, event: "BuildFinished") -> None:
        from teacher_cache.inspect import status

        if self._bar is not None:
            self._bar.close()
        if event.labels_disagree:
            say(f"warning: {_doubt(event.label_agreement)}; docs/own-data.md says what to do")
        elif event.renumbered:
            say(f"warning: {self._otherwise(event)}")
        agreed = 100 * event.label_agreement
        result(
            f"{count(event.num_forwards, 'teacher forward')}, {count(event.views_done, 'view')} in "
            f"{duration(event.seconds)}; "
            f"{count(event.missing_units, 'chunk')} missing"
            + (
                f"; teacher accuracy on the {self._judged} {agreed:.1f} %, lower than top-1: views are cropped, mixed"
                if not math.isnan(agreed)
                else ""
            )
        )
        if event.stopped:
            num_saved = self._num_units - event.missing_units
            lost = f"; {count(self._views_of_unit, 'view')} of an unfinished chunk are lost" * bool(self._views_of_unit)
            say(
                f"stopped: {num_saved} of {count(self._num_units, 'chunk')} of the cache are saved{lost}; run the same "
                "command again to go on"
            )
            raise stop_with(self._stop.exit_code)
        if not self.quiet and self._cache is not None and not event.missing_units:
            say(status.storage_words(self._cache))
        if not self.quiet and self._next_command:
            say_next(self._next_command)

    def _otherwise(self, event: "UnitCommitted | BuildFinished") -> str:
        return _otherwise(event.renumbered, self._names, self._num_classes)


def _opened_words(event: "CacheOpened") -> Iterator[str]:
    """Describe what the cache holds or will hold, which runs it serves, and what it takes on disk."""
    from teacher_cache.record.record_format import STORE_BYTES
    from teacher_cache.store.digest import fidelity_bytes, fidelity_count

    cache, spec = event.cache, event.cache.spec
    what = "new cache" if event.created else "extended" if event.grown else "found"
    images = count(int(cache.rows_S.sum()), "image")
    yield (
        f"{what} {cache.url}: {count(cache.num_views, 'view')} of each of {images}; logits are stored as "
        f"{spec.record.kind}"
    )
    yield f"views: {served(cache.num_views, cache.views_per_unit)}"
    if (size := spec.recipe.block_size) != _BLOCK:
        yield f"mixing groups of {count(size, 'image')}: batches are multiples of {size}"
    if event.created and fidelity_bytes(spec, cache.rows_S) > STORE_BYTES:
        exact = count(fidelity_count(spec, cache.rows_S), "view")
        yield f"storage: all logits of {exact} in each chunk are kept, to measure the error"


def _otherwise(renumbered: Sequence["Renumbered"], class_names: Sequence[str], num_classes: int) -> str:
    """That the teacher seems to number some classes otherwise, and which."""
    names = [short(one_line(repr(name))) for name in class_names] or [f"class {n}" for n in range(num_classes)]
    shown = ", ".join(
        f"{names[one.label]} as {names[one.answered_as]} ({100 * one.share:.0f} %)" for one in renumbered[:3]
    )
    return (
        f"the teacher seems to number {len(renumbered)} of {count(num_classes, 'class')} otherwise, its "
        f"commonest answers: {shown}{' …' if len(renumbered) > 3 else ''}; make the cache anew with --teacher-classes "
        "FILE, the teacher's classes in its order"
    )


def _doubt(agreement: float) -> str:
    return (
        f"the teacher's first class is the label for only {100 * agreement:.2f} % of the views: does it know these "
        "classes, in this order?"
    )
