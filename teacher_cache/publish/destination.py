"""Open the destination of a copy: an empty cache of the right spec, or the existing one, to be continued."""

from dataclasses import replace

from shards.errors import CacheError
from shards.own_folder import require_own
from teacher_cache.publish.recoding import facts_of, fitted_basis, require_smaller
from teacher_cache.publish.selection import Selection
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.header import CACHE_FOLDER, header_at, making
from teacher_cache.store.place import Place
from teacher_cache.store.spec import require_equal


def open_destination(
    source: TeacherCache, url: str, selection: Selection, record: RecordFormat | None = None
) -> TeacherCache:
    """The cache to copy into, open for writing: as the source, with room for the last selected view.

    One that is there is continued when its spec and its tail basis are those of the copy; it grows where needed. The
    views keep their numbers and the shards their index, so what is not selected is missing from its ledger, no more.

    Args:
        record: another record format, which must be smaller; None keeps the source's.

    Errors:
        ValueError for the source's own place, and a format that cannot be made from the source's; CacheError when
        another cache is there.
    """
    place = Place.parse(url, writable=True)
    if place.url == source.url or (
        place.folder and source.folder and place.folder.resolve() == source.folder.resolve()
    ):
        raise ValueError(f"{url}: this is the cache to be copied; name another place")
    if place.folder is not None:
        require_own("DEST", place.folder, CACHE_FOLDER)
    spec = source.spec
    if record is not None and record != spec.record:
        require_smaller(spec.record, record, source.url)
        spec = replace(spec, record=record)
    num_views = (selection.view_blocks[-1] + 1) * source.views_per_unit
    with making(place.folder):
        existing = header_at(url)
        if existing is None:
            basis = source.basis if spec == source.spec else fitted_basis(source, spec)
            made_with = dict(source.header.made_with)
            if spec != source.spec:
                old = source.spec.record
                made_with["records"] = f"encoded from {old.kind!r} records of {old.num_bytes} bytes per view"
            return TeacherCache.create(
                url,
                spec,
                facts_of(source),
                basis,
                num_views=num_views,
                made_with=made_with,
                class_names=source.header.class_names,
            )
        require_equal(spec, existing.spec, url)
        cache = TeacherCache.open(url, writable=True)
        if spec == source.spec:
            _require_same_basis(source, cache)
        cache.grow(max(num_views, cache.num_views))
        return cache


def _require_same_basis(source: TeacherCache, cache: TeacherCache) -> None:
    if cache.header.identity != source.header.identity:
        cache.close()
        raise CacheError(
            f"{cache.url}: a cache of the same spec with another tail basis: expected {source.header.basis_digest}, "
            f"got {cache.header.basis_digest}; records cannot be copied between the two: choose another place"
        )
