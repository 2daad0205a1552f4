"""Pack a finished cache: all units of a shard in one object of each array, for file systems that count files.

The records and their digests are those of the source. Zarr's sharding codec lays the chunks of a shard side by side
behind an index, so that a reader still fetches single units, and plain zarr reads the arrays as before.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from shards.own_folder import require_own
from shards.text.figures import count
from teacher_cache.publish.copying import CopyEvent
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.header import CACHE_FOLDER, Header, header_from_attributes, making, read_root, write_root
from teacher_cache.store.ledger import Ledger
from teacher_cache.store.place import Place
from teacher_cache.store.spec import require_equal
from teacher_cache.store.unit_store import UnitStore, unless_damaged
from teacher_cache.store.zarr_arrays import metadata_objects, write_basis, write_metadata
from teacher_cache.store.zarr_objects import Objects


def pack_cache(
    source: TeacherCache,
    url: str,
    num_views: int,
    *,
    workers: int = 4,
    should_stop: Callable[[], bool] = bool,
) -> Iterator[CopyEvent]:
    """Write a packed copy of the first views of a cache; the same call goes on after a kill.

    Args:
        num_views: whole units from view 0 on.
        workers: units of the source read at once, in threads.
        should_stop: asked between shards.

    Yields:
        An event at the start, one for each shard, one at the end; units are counted as in `copy_units`.

    Errors:
        CacheError when units of the source are missing or damaged, or another cache is at the destination.
    """
    header = replace(source.header, num_views=num_views, packed=True)
    entries_BS = source.ledger()[: header.num_view_blocks]
    if not entries_BS.all():
        raise CacheError(
            f"{source.url}: {int((entries_BS == 0).sum())} of {count(entries_BS.size, 'chunk')} are missing; a "
            "packed cache cannot be extended, so finish this one with cache-teacher first"
        )
    place = Place.parse(url, writable=True)
    if place.folder is not None:
        require_own("DEST", place.folder, CACHE_FOLDER)
    with making(place.folder):
        objects = Objects.at(place, writable=True)
        try:
            yield from _pack(source, objects, header, entries_BS, workers, should_stop)
        finally:
            objects.close_session()


def _pack(
    source: TeacherCache,
    objects: Objects,
    header: Header,
    entries_BS: NDArray[np.uint64],
    workers: int,
    should_stop: Callable[[], bool],
) -> Iterator[CopyEvent]:
    began, num_blocks = time.monotonic(), len(entries_BS)
    event = CopyEvent(num_units=entries_BS.size, num_kept=0, num_absent=0)
    if _is_packed_already(objects, header):
        yield replace(event, num_kept=entries_BS.size)
        yield replace(event, num_kept=entries_BS.size, finished=True)
        return
    ledger, todo = _begin(source, objects, header, entries_BS)
    units = UnitStore(objects, header, ledger)
    event = replace(event, num_kept=entries_BS.size - len(todo) * num_blocks)
    yield event
    with ThreadPoolExecutor(workers, "pack") as pool:
        for shard in todo:
            if should_stop():
                break
            reading = [pool.submit(source.read_unit, block, shard) for block in range(num_blocks)]
            units.write_shard(shard, [unit.result() for unit in reading])
            ledger.save()
            event = replace(
                event,
                num_copied=event.num_copied + num_blocks,
                num_views=event.num_views + header.num_views * int(header.rows_S[shard]),
                seconds=time.monotonic() - began,
            )
            yield event
    finished = event.num_kept + event.num_copied == event.num_units
    if finished:
        write_root(objects, header)  # last: until here there is no cache
    yield replace(event, finished=True, stopped=not finished, seconds=time.monotonic() - began)


def _is_packed_already(objects: Objects, header: Header) -> bool:
    """Whether this packed cache is at the destination, finished; CacheError where another cache is."""
    url = objects.place.url
    attributes = read_root(objects)
    if attributes is None:
        return False
    existing = header_from_attributes(attributes, url)
    if not existing.packed:
        raise CacheError(
            f"{url}: holds a cache that is not packed; name another place, or copy into this one without --pack"
        )
    require_equal(header.spec, existing.spec, url)
    if (existing.identity, existing.num_views) != (header.identity, header.num_views):
        raise CacheError(
            f"{url}: holds another packed cache: expected {count(header.num_views, 'view')}, got "
            f"{existing.num_views}, or its PCA basis is another; name another place"
        )
    return True


def _begin(
    source: TeacherCache, objects: Objects, header: Header, entries_BS: NDArray[np.uint64]
) -> tuple[Ledger, list[int]]:
    """Write the metadata, unless a stopped run has written the same; the ledger, and the shards that it lacks."""
    ledger = Ledger(objects, (len(entries_BS), len(header.rows_S)), trust_snapshot=False, packed=True)
    metadata = metadata_objects(header)
    present_BS = np.zeros_like(entries_BS)
    if objects.read(list(metadata)) == list(metadata.values()):
        saved_BS = unless_damaged(ledger.snapshot)  # one that is damaged or not written yet knows no shard
        present_BS = present_BS if saved_BS is None else saved_BS
    else:
        write_metadata(objects, header)
    write_basis(objects, header, {} if source.basis is None else dict(source.basis.to_arrays()))
    present_S = (present_BS == entries_BS).all(axis=0)
    for block, shard in np.argwhere(np.broadcast_to(present_S, entries_BS.shape)):
        ledger.write(UnitId(int(block), int(shard)), int(entries_BS[block, shard]))
    ledger.save()
    return ledger, [int(shard) for shard in np.flatnonzero(~present_S)]
