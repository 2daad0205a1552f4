"""`copy-cache`: a cache, or a part of it, to another place, as it is or in fewer bytes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from shards.commands.flags import CACHE, COUNT, FROM_ZERO, bundled, flag, stop_with
from shards.console import Bar, result, say
from shards.own_folder import require_own
from shards.signals import StopRequest
from shards.text.figures import count, duration
from teacher_cache.commands.flags import record_kind_callback
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.store.place import Place

if TYPE_CHECKING:
    from teacher_cache.publish.copying import CopyEvent
    from teacher_cache.record.record_format import RecordFormat
    from teacher_cache.store.cache import TeacherCache


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedRecord:
    """How the logits of a copy are compressed, as typed."""

    record_kind: str | None = flag(
        "--record",
        callback=record_kind_callback,
        metavar=f"[{'|'.join(('auto', *KINDS))}]",
        help="Compress the logits again, as this kind; default: copy them unchanged.",
    )
    top_k: int = flag(
        "--top-k", default=0, show_default=False, type=FROM_ZERO, help="With --record: classes stored exactly."
    )
    num_bytes: int = flag(
        "--bytes",
        default=0,
        show_default=False,
        type=FROM_ZERO,
        help="Bytes on disk per view; implies --record auto.",
    )

    def format(self, source: "TeacherCache") -> "RecordFormat | None":
        """Return the format of a copy; None for the source's own. ValueError as `RecordFormat`."""
        from teacher_cache.record.record_format import RecordFormat

        if self.record_kind is None and not self.num_bytes and not self.top_k:
            return None
        num_classes, kind = source.spec.record.num_classes, self.record_kind or "auto"
        return RecordFormat.chosen(kind, num_classes, k=self.top_k or None, num_bytes=self.num_bytes or None)


@click.command("copy-cache")
@click.argument("source", type=CACHE)
@click.argument("destination", type=CACHE)
@click.option(
    "--views",
    metavar="RANGES",
    help="Views to copy, such as 0-47, in whole chunks; default: all.",
)
@click.option(
    "--shards",
    metavar="RANGES",
    help="Shards to copy, by number, such as 0-99,200; default: all.",
)
@bundled(CopiedRecord, "record")
@click.option(
    "--pack",
    is_flag=True,
    help="At most ten files for each shard instead of several for each chunk; the copy can be read but not extended.",
)
@click.option("--card", is_flag=True, help="Write a README.md beside the copy: content, error, how to use it.")
@click.option("--workers", default=4, type=COUNT, help="Chunks copied at the same time.")
def copy_cache(
    source: str,
    destination: str,
    views: str | None,
    shards: str | None,
    record: CopiedRecord,
    pack: bool,
    card: bool,
    workers: int,
) -> None:
    """Copy the cache SOURCE to DESTINATION, all of it or a part, verified on the way.

    Both are folders or object stores (s3://, gs://, az://, memory://); SOURCE may also be hf:// or https://. Run the
    same command again to continue after a stop. With --record the logits of SOURCE are compressed again, and the error
    is printed.
    """
    from teacher_cache.store.header import CACHE_FOLDER, local_header

    views, shards = views or "", shards or ""
    place = Place.parse(destination, writable=True)
    if place.url == Place.parse(source, writable=False).url:
        raise ValueError(f"{destination}: this is the cache to be copied; name another place")
    if place.folder is not None:
        require_own("DESTINATION", place.folder, CACHE_FOLDER)
    if pack:
        _require_whole(shards, record)
    local_header(source)
    from teacher_cache.publish.card import write_card
    from teacher_cache.publish.copying import copy_units
    from teacher_cache.publish.destination import open_destination
    from teacher_cache.publish.selection import select
    from teacher_cache.store.cache import TeacherCache

    with StopRequest() as stop, TeacherCache.open(source) as opened:
        selection = select(opened, views=views, shards=shards)
        if pack:
            _pack(opened, place, selection.num_first_views(opened, views), card, workers, stop)
            return
        with open_destination(opened, destination, selection, record.format(opened)) as copy:
            display = _Display(copy.url)
            for event in copy_units(opened, copy, selection, workers=workers, should_stop=lambda: stop.told):
                display.show(event)
            if event.stopped:
                say("stopped, every copied chunk is kept; run the same command again to go on")
                raise stop_with(stop.exit_code)
            if copy.spec != opened.spec:
                _show_error(copy)
            if card:
                result(f"card {write_card(copy)}")
    if event.num_damaged:
        damaged = count(event.num_damaged, "chunk")
        say(f"{source}: {damaged} damaged and not copied; run verify-cache --repair on it, then this command again")
        raise stop_with(1)


def _pack(opened: "TeacherCache", place: Place, num_views: int, card: bool, workers: int, stop: StopRequest) -> None:
    """Write a packed copy of the first views, and its card."""
    from teacher_cache.publish.card import write_card
    from teacher_cache.publish.packing import pack_cache
    from teacher_cache.store.cache import TeacherCache

    display = _Display(place.url)
    for event in pack_cache(opened, place.url, num_views, workers=workers, should_stop=lambda: stop.told):
        display.show(event)
    if event.stopped:
        say("stopped, every packed shard is kept; run the same command again to go on")
        raise stop_with(stop.exit_code)
    if card:
        with TeacherCache.open(place.url) as copy:
            result(f"card {write_card(copy)}")


def _require_whole(shards: str, record: CopiedRecord) -> None:
    """ValueError for a flag that does something else than pack a finished cache."""
    flags = {"--shards": shards, "--record": record.record_kind, "--top-k": record.top_k, "--bytes": record.num_bytes}
    for name, value in flags.items():
        if value:
            raise ValueError(
                f"{name} with --pack: a packed copy holds all shards, with the records as they are; make a copy with "
                f"{name} first, then pack that copy"
            )


def _show_error(cache: "TeacherCache") -> None:
    from teacher_cache.inspect.status import cache_fidelity

    rows = cache_fidelity(cache, max_units=256)
    for row in rows:
        gradient, mean, _ = row.words
        result(f"τ = {row.temperature:<4g}  gradient error {gradient}  KL {mean}")
    if rows:
        result(
            f"error of the copied records against the teacher's full logits of {count(rows[0].num_views, 'view')}, "
            "against an untrained student"
        )
    else:
        result("error: none to state; the copied records are exact, or hold first classes only")


class _Display:
    def __init__(self, url: str) -> None:
        self._url = url
        self._bar: Bar | None = None

    def show(self, event: "CopyEvent") -> None:
        """Draw one event."""
        if self._bar is None:
            self._bar = Bar("copy-cache", event.num_units - event.num_absent, "chunk")
            self._bar.start_at(event.num_kept)
        if event.problem:
            say(f"  {event.problem}")
        self._bar.to(event.num_kept + event.num_copied + event.num_damaged)
        if event.finished:
            self._bar.close()
            absent = f"; not in the source: {count(event.num_absent, 'selected chunk')}" if event.num_absent else ""
            result(
                f"{self._url}: {count(event.num_copied, 'chunk')} ({count(event.num_views, 'view')}) copied in "
                f"{duration(event.seconds)}, {event.num_kept} were there{absent}"
            )
