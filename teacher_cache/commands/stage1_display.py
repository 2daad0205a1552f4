"""Draw stage 1: a bar over its views, and lines for what stands out."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from shards.commands.flags import stop_with
from shards.console import Bar, close_bars, result, say, say_next
from shards.names import short
from shards.signals import StopRequest
from shards.text.escapes import one_line
from shards.text.figures import count, duration, was
from shards.world import World, has_own_output
from teacher_cache.commands.view_flags import served

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

_BLOCK = 16  # of the built-in recipes: another size is worth a word


class Stage1Display:
    """Draws the events of stage 1; of ranks that share an output all but the first show little beside warnings.

    Where there are several ranks, a line that any of them may write begins with the rank.
    """

    def __init__(
        self,
        world: World,
        stop: StopRequest,
        index: "ShardIndex | None" = None,
        next_command: Sequence[str] = (),
    ) -> None:
        """Nothing is shown before the first event.

        Args:
            stop: whether the command was told to end. index: of the shards, for the names of classes.
            next_command: what to type after a finished cache.
        """
        self._names, self._next_command = index.class_names if index else (), next_command
        self._quiet, self._world, self._stop = world.rank > 0 and not has_own_output(), world, stop
        self._who = f"{world.name}: " if world.name else ""
        self._bar: Bar | None = None
        self._calibration: Bar | None = None
        self._units = self._num_classes = self._num_units = self._views_of_unit = 0
        self._opening: list[str] = []
        self._cache: TeacherCache | None = None
        self._judged = "augmented views" + " of labelled images" * bool(index and index.num_unlabelled)

    def show(self, event: "BuildEvent | OpenEvent") -> None:
        """Draw one event of stage 1."""
        from teacher_cache.stage1 import stage1_events as events

        match event:
            case events.Calibrated() if not self._quiet:
                self._calibration = self._calibration or Bar("calibrate", event.num_views, "view")
                self._calibration.to(event.views_done)
            case events.ShortCalibration() if not self._quiet:
                self._say_cost(event)
            case events.CacheOpened():
                close_bars()  # of the calibration
                self._cache, self._num_classes = event.cache, event.cache.spec.record.num_classes
                self._opening = list(_opened_words(event))
                if self._world.size > 1 and "://" in event.cache.url:
                    self._opening.append("an object store has no locks: two processes may compute the same last chunk")
            case events.Started():
                self._num_units = event.num_units
                if not self._quiet:
                    self._start(event)
            case events.SnapshotDamaged():
                self._say(f"warning: {event.reason}; it is written anew")
            case events.UnitDamaged():
                self._say(f"warning: {event.reason}; it will be computed again")
            case events.UnitStarted():
                self._views_of_unit = 0
            case events.BatchDone():
                self._views_of_unit += event.num_views
                if self._bar is not None:
                    self._bar.to(event.views_done)
            case events.UnitCommitted():
                self._views_of_unit = 0
                self._units += 1
                if not self._quiet and self._units == 1:
                    self._say_first(event)
            case events.UnitSkipped():
                self._views_of_unit = 0
            case events.UnitsElsewhere():
                what = f"{count(event.num_units, 'chunk')} {was(event.num_units)} begun by other processes"
                self._say(f"{what}: waiting for them")
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
                close_bars()
                self._say("stopped while calibrating, nothing is made yet; run the same command again")
                raise stop_with(self._stop.exit_code)
        assert opened is not None, "the last event carries the cache"
        return opened

    def _say(self, text: str) -> None:
        """Write a line that any rank may write."""
        say(f"{self._who}{text}")

    def _say_cost(self, event: "ShortCalibration") -> None:
        """Print what fitting the record on few views costs, measured."""
        rows = [row for row in event.errors if row.temperature >= 1]
        taus = " / ".join(f"{row.temperature:g}" for row in rows)
        errors = " / ".join(f"{row.gradient_error:.2f}" for row in rows)
        say(
            f"calibrated on {count(event.num_views, 'view')}, fewer than {event.wanted}: gradient error G about "
            f"{errors} at τ = {taus}, measured on {count(event.num_measured, 'view')} after a fit to the others; "
            "--bytes 128 or --record dense8 keep more"
        )

    def _start(self, event: "Started") -> None:
        """Say what the cache will be, or that nothing is left to do."""
        if not event.missing_units:
            say(f"already finished: all of {count(event.num_units, 'chunk')} checked, nothing to compute")
            return
        for line in self._opening:
            say(line)
        if done := event.num_units - event.missing_units:
            say(f"{done} of {count(event.num_units, 'chunk')} done before")
        of = f" ({self._world.name})" if self._world.name else ""
        self._bar = Bar(f"cache-teacher{of}", event.share_views, "view")

    def _say_first(self, event: "UnitCommitted") -> None:
        """Whether teacher and labels seem to be of the same classes, while it is cheap to stop."""
        from teacher_cache.stage1.agreement import disagrees

        if disagrees(event.label_agreement, self._num_classes):
            say(f"warning: after the first chunk {self._doubt(event.label_agreement)}; Ctrl-C stops")
        elif event.renumbered:
            say(f"warning: after the first chunk {self._otherwise(event.renumbered)}; Ctrl-C stops")

    def _finish(self, event: "BuildFinished") -> None:
        from teacher_cache.inspect import status

        if self._bar is not None:
            self._bar.close()
        if event.labels_disagree:
            self._say(f"warning: {self._doubt(event.label_agreement)}")
        elif event.renumbered:
            self._say(f"warning: {self._otherwise(event.renumbered)}")
        agreed = 100 * event.label_agreement
        result(
            f"{self._who}{count(event.num_forwards, 'teacher forward')}, {count(event.views_done, 'view')} in "
            f"{duration(event.seconds)}; {count(event.missing_units, 'chunk')} missing"
            + (
                f"; teacher accuracy on the {self._judged} {agreed:.1f} % (below top-1: views are cropped and mixed)"
                if not math.isnan(agreed)
                else ""
            )
        )
        if event.stopped:
            num_saved = self._num_units - event.missing_units
            lost = f"; {count(self._views_of_unit, 'view')} of an unfinished chunk are lost" * bool(self._views_of_unit)
            self._say(
                f"stopped: saved {num_saved} of {count(self._num_units, 'chunk')} of the cache{lost}; run the same "
                "command again to go on"
            )
            raise stop_with(self._stop.exit_code)
        if not self._quiet and self._cache is not None and not event.missing_units:
            say(status.storage_words(self._cache))
        if not self._quiet and self._next_command:
            say_next(self._next_command)

    def _doubt(self, agreement: float) -> str:
        """Say that the teacher is seldom right, and why: names that both sides have prove that it knows the classes."""
        known = self._cache is not None and self._cache.header.class_names
        why = (
            "it knows these classes by name, so it has learned too little: train it longer, on more images, or from "
            "other weights"
            if known
            else "does it know these classes, in this order? docs/own-data.md says what to do"
        )
        return f"the teacher's first class is the label for only {100 * agreement:.1f} % of the views: {why}"

    def _otherwise(self, renumbered: "Sequence[Renumbered]") -> str:
        """Say that the teacher seems to number some classes otherwise, and which."""
        names = [short(one_line(repr(name))) for name in self._names] or [
            f"class {n}" for n in range(self._num_classes)
        ]
        shown = ", ".join(
            f"{names[one.label]} as {names[one.answered_as]} ({100 * one.share:.0f} %)" for one in renumbered[:3]
        )
        return (
            f"the teacher seems to number {len(renumbered)} of {count(self._num_classes, 'class')} otherwise, its "
            f"commonest answers: {shown}{' …' if len(renumbered) > 3 else ''}; make the cache anew with "
            "--teacher-classes FILE, the teacher's classes in its order"
        )


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
