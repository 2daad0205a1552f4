"""How often a process of stage 1 waits for an object store: five times in a row for a commit, never for a look-up."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from itertools import count
from typing import Any

import pytest

from shards.index.shard_index import ShardIndex
from teacher_cache.store import zarr_arrays, zarr_objects
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.layout import chunk_key
from teacher_cache.store.ledger import entry_key
from teacher_cache.store.place import Place
from tests.cache_maker import make_index, make_spec, random_unit
from tests.stage1_tiny import build, end_of, make_shards, opened, tiny_teacher

_PATIENCE_S = 20.0
_numbers = count()


@pytest.fixture
def url() -> Iterator[str]:
    """A store that needs no server, with the asynchronous requests of all."""
    yield f"memory://round-trips-{next(_numbers)}"


class Waves:
    """Answers requests wave by wave: none of a wave before all of it have been asked for.

    Attributes:
        problems: requests outside of the expected waves, and those whose fellows were not asked for meanwhile.
    """

    def __init__(self, waves: list[set[str]]) -> None:
        """Expect these keys, in this order."""
        self.problems: list[str] = []
        self._left, self._asked, self._whole = list(waves), set[str](), asyncio.Event()

    @property
    def left(self) -> int:
        """Waves that were not asked for."""
        return len(self._left)

    async def ask(self, key: str) -> None:
        """Wait until the wave of a request is whole."""
        if not self._left or key not in self._left[0] - self._asked:
            self.problems.append(f"{key}: not in wave {sorted(self._left[0]) if self._left else 'after the last'}")
            return
        self._asked.add(key)
        whole = self._whole
        if self._asked == self._left[0]:
            self._left, self._asked, self._whole = self._left[1:], set(), asyncio.Event()
            whole.set()
            return
        try:
            await asyncio.wait_for(whole.wait(), _PATIENCE_S)
        except TimeoutError:
            self.problems.append(f"{key}: asked for before the others of its wave")


def test_a_commit_waits_for_five_requests_in_a_row(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes as long as the store is far away; a sixth, or two that could go together, would be seen here."""
    index, unit = make_index(8, 5), UnitId(0, 0)
    with TeacherCache.create(url, make_spec(), index, num_views=3) as cache:
        arrays = random_unit(cache, 0, 0)
        chunks, entry = {chunk_key(item, unit) for item in cache.units.layouts}, {entry_key(unit)}
        assert len(chunks) > 1, "otherwise nothing shows that they go together"
        waves, reach = Waves([entry, chunks, chunks, entry, entry | chunks]), Place.reach

        async def in_waves(self: Place, key: str, work: Coroutine[Any, Any, Any]) -> Any:
            await waves.ask(key)
            return await reach(self, key, work)

        with monkeypatch.context() as patch:
            patch.setattr(Place, "reach", in_waves)
            assert cache.commit_unit(0, 0, arrays)
        assert (waves.problems, waves.left) == ([], 0)
        assert cache.is_committed(0, 0)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have waited for the store, once for each time."""
    names: list[str] = []
    for module in (zarr_objects, zarr_arrays):
        sync = module.sync

        def noted(work: Any, sync: Any = sync) -> Any:
            names.append(threading.current_thread().name)
            return sync(work)

        monkeypatch.setattr(module, "sync", noted)
    return names


@pytest.mark.slow
def test_the_thread_of_the_teacher_waits_no_longer_for_more_units(
    url: str, waits: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It asks at the start and at the end what is missing; other threads look up and commit."""
    index: ShardIndex = make_shards(tmp_path_factory.mktemp("shards"))
    teacher, seen = tiny_teacher(), []
    for number, num_views in enumerate((4, 12)):
        with opened(f"{url}-{number}", index, teacher, num_views=num_views) as cache:
            waits.clear()
            units = end_of(build(cache, index, teacher)).num_forwards
            seen.append([name for name in waits if name == threading.current_thread().name])
            assert {name.partition("_")[0] for name in waits} >= {"unit-asker", "unit-committer"}
        assert units > num_views
    assert 0 < len(seen[0]) == len(seen[1])
