"""The laws of a cache on real object servers, not on mocks: those that are installed; others are skipped by name."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import CacheError
from teacher_cache.inspect.verify import verify_digests
from teacher_cache.publish.card import write_card
from teacher_cache.store.cache import TeacherCache
from tests.cache_maker import assert_unit, fill, make_cache, make_index, make_spec, random_unit
from tests.object_servers import BUCKET, OBJECT_SERVERS, running
from tests.test_teacher_cache_copy import bytes_of, copied

TIMEOUT_S = 30


@pytest.fixture(scope="module", params=OBJECT_SERVERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a running server."""
    server = OBJECT_SERVERS[request.param]
    if server.why_absent:
        pytest.skip(f"{request.param}: {server.why_absent}")
    with (
        running(server, tmp_path_factory.mktemp(request.param)) as port,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environ(port).items():
            patch.setenv(name, value)
        # fsspec read its configuration from the environment when it was imported.
        import fsspec.config

        patch.setattr(fsspec.config, "conf", {})
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield f"{server.scheme}://{BUCKET}"


def test_the_laws_hold(place: str) -> None:
    """Create, commit, resume, grow, repair, read back, every digest."""
    url = f"{place}/one/c.zarr"
    with TeacherCache.create(url, make_spec(), make_index(7, 5), num_views=6, timeout_s=TIMEOUT_S) as cache:
        cache.commit_unit(0, 1, random_unit(cache, 0, 1))
    with TeacherCache.create(url, make_spec(), make_index(7, 5), num_views=9, timeout_s=TIMEOUT_S) as cache:
        assert cache.missing() == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
        fill(cache)
        cache.invalidate(1, 1)
    with TeacherCache.open(url, writable=True, timeout_s=TIMEOUT_S) as cache:
        assert cache.missing() == [(1, 1)]
        fill(cache)
        assert not cache.commit_unit(1, 1, random_unit(cache, 1, 1, seed=5))
    with TeacherCache.open(url, timeout_s=TIMEOUT_S) as cache:
        assert cache.missing() == []
        for unit in itertools.product(range(3), range(2)):
            assert_unit(cache, *unit)
        assert not [finding for finding in verify_digests(cache) if finding.problem]


def test_a_copy_there_and_back_has_the_same_bytes(place: str, tmp_path: Path) -> None:
    """In two parts, the second of which begins before the first; and its card."""
    make_cache(tmp_path / "a")
    url = f"{place}/two/c.zarr"
    copied(tmp_path / "a", url, views="3-5")
    assert copied(tmp_path / "a", url).num_kept == 2
    copied(url, tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    with TeacherCache.open(url, writable=True) as cache:
        assert write_card(cache) == f"{place}/two/README.md"
        assert write_card(cache) == f"{place}/two/README.md"


def test_what_is_not_there_is_said_by_name(place: str) -> None:
    """No cache, and no bucket."""
    with pytest.raises(CacheError, match=rf"{place}/nothing: no cache here"):
        TeacherCache.open(f"{place}/nothing", timeout_s=TIMEOUT_S)
    with pytest.raises(CacheError, match=r"://nobody-made-this/c"):
        TeacherCache.open(f"{place.partition('://')[0]}://nobody-made-this/c", timeout_s=TIMEOUT_S)
