"""Caches far away: the same laws over s3:// and http://, every failure in time and by name, never a listing."""

import errno
import functools
import http.server
import itertools
import multiprocessing
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shards.errors import CacheError, UnreachableError
from shards.world import ALONE, World
from teacher_cache.inspect.verify import verify_digests
from teacher_cache.publish.packing import pack_cache
from teacher_cache.stage1.build import _release_damaged
from teacher_cache.store import place
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.place import Place
from tests.cache_maker import assert_unit, fill, make_cache, make_index, make_spec, random_unit
from tests.object_servers import use_s3
from tests.stage1_tiny import build, end_of, make_shards, opened, tiny_teacher
from tests.test_teacher_cache_copy import copied

BUCKET = "caches"


class _Files(http.server.SimpleHTTPRequestHandler):
    """A plain file server without Range that writes down what it was asked."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def list_directory(self, path: Any) -> Any:
        self.send_error(403)

    def log_message(self, *args: Any) -> None:
        pass


class _Ranges(_Files):
    """The same with Range, as large servers have it."""

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        if span is None:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = (int(n) if n else None for n in span.removeprefix("bytes=").split("-"))
        part = data[first : None if last is None else last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class _Broken(_Files):
    """A server whose disk fails."""

    def do_GET(self) -> None:
        self.send_error(500)


def _serve(handler: type[_Files], folder: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    bound = functools.partial(type("Bound", (handler,), {"asked": asked}), directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


@pytest.fixture(params=[_Files, _Ranges], ids=["without range", "with range"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    yield from _serve(request.param, tmp_path)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[str]:
    for url, _ in _serve(_Broken, tmp_path):
        yield url


@pytest.fixture(scope="module")
def s3() -> Iterator[list[tuple[str, str]]]:
    """An S3 server on loopback; yields the requests that it was asked."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    asked: list[tuple[str, str]] = []
    original = WSGIRequestHandler.log_request

    def note(self: Any, *args: Any) -> None:
        asked.append((self.command, self.path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WSGIRequestHandler, "log_request", note)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        use_s3(patch, f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield asked
        server.stop()
    assert WSGIRequestHandler.log_request is original


def _read_all(url: str) -> None:
    with TeacherCache.open(url, timeout_s=20) as cache:
        assert cache.missing() == []
        for unit in itertools.product(range(cache.num_view_blocks), range(cache.num_shards)):
            assert_unit(cache, *unit)


def test_https_reads_what_was_written_and_asks_only_for_names(files: tuple[str, list[str]], tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    url, asked = files
    _read_all(f"{url}/c")
    assert asked and not [path for path in asked if path.endswith("/") or "?" in path]
    assert all((tmp_path / path.lstrip("/")).is_file() for path in asked)


def test_damage_behind_https_is_a_named_error(files: tuple[str, list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "c"
    make_cache(folder)
    (folder / "logit/c/1/0/0/0").unlink()
    (folder / "class_index/c/0/1/0/0").write_bytes(b"\0" * 50)
    with TeacherCache.open(f"{files[0]}/c") as cache:
        with pytest.raises(CacheError, match=rf"{files[0]}/c.*view block 1.*logit/c/1/0/0/0 is gone"):
            cache.read_unit(1, 0)
        with pytest.raises(CacheError, match=r"view block 0.*class_index/c/0/1/0/0 is missing or damaged"):
            cache.read_unit(0, 1)
        assert len([f for f in verify_digests(cache) if f.problem]) == 2


def test_https_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        TeacherCache.open("https://127.0.0.1:1/c", writable=True)
    with pytest.raises(ValueError, match="read-only"):
        TeacherCache.create("https://127.0.0.1:1/c", make_spec(), make_index(3), num_views=3)


def test_no_cache_there_is_said(files: tuple[str, list[str]]) -> None:
    with pytest.raises(CacheError, match=rf"{files[0]}/nothing: no cache here"):
        TeacherCache.open(f"{files[0]}/nothing")


@pytest.mark.slow
def test_s3_keeps_the_same_laws(s3: list[tuple[str, str]]) -> None:
    """Create, commit, resume, grow, repair, read; and never list."""
    url = f"s3://{BUCKET}/one/c"
    s3.clear()
    with TeacherCache.create(url, make_spec(), make_index(7, 5), num_views=6, timeout_s=20) as cache:
        cache.commit_unit(0, 1, random_unit(cache, 0, 1))
    with TeacherCache.create(url, make_spec(), make_index(7, 5), num_views=9, timeout_s=20) as cache:
        assert cache.missing() == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
        fill(cache)
        cache.invalidate(1, 1)
    with TeacherCache.open(url, writable=True, timeout_s=20) as cache:
        assert cache.missing() == [(1, 1)] and not cache.is_committed(1, 1)
        fill(cache)
        assert not cache.commit_unit(1, 1, random_unit(cache, 1, 1, seed=5))
    _read_all(url)
    assert s3 and {command for command, _ in s3} <= {"GET", "PUT"}
    listings = [path for command, path in s3 if command == "GET" and (path.count("/") < 3 or "list-type" in path)]
    assert listings == []


@pytest.mark.slow
def test_stage_1_fills_a_bucket_as_it_fills_a_folder(s3: list[tuple[str, str]], tmp_path: Path) -> None:
    """Rank 0 makes the cache, the other waits for it; then both work, and a third run finds nothing to do."""
    url = f"s3://{BUCKET}/four/c"
    index, teacher = make_shards(tmp_path / "shards"), tiny_teacher()
    local = opened(tmp_path / "c", index, teacher)
    build(local, index, teacher)
    s3.clear()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(opened, url, index, teacher, world=World(1, 2))
        with opened(url, index, teacher, world=World(0, 2)) as first, waiting.result() as second:
            stopped = build(first, index, teacher, world=World(0, 2), should_stop=lambda: len(first.missing()) <= 3)
            assert end_of(stopped).missing_units > 0
            assert end_of(build(second, index, teacher, world=World(1, 2))).missing_units == 0
            np.testing.assert_array_equal(second.ledger(), local.ledger())
            assert end_of(build(first, index, teacher)).num_forwards == 0
            assert all(first.read_unit(block, shard) for block in range(2) for shard in range(3))
    assert {command for command, _ in s3} <= {"GET", "PUT"}


def test_a_cache_copied_between_places_stays_valid(s3: list[tuple[str, str]], tmp_path: Path) -> None:
    """The url is no part of a cache: it can be made on a disk and served from a bucket."""
    import boto3

    make_cache(tmp_path / "c")
    client = boto3.client("s3")
    for path in (p for p in (tmp_path / "c").rglob("*") if p.is_file()):
        client.upload_file(str(path), BUCKET, f"two/{path.relative_to(tmp_path).as_posix()}")
    shutil.rmtree(tmp_path / "c")
    _read_all(f"s3://{BUCKET}/two/c")


@pytest.mark.slow
def test_damage_in_a_bucket_is_a_named_error(s3: list[tuple[str, str]]) -> None:
    import boto3

    url = f"s3://{BUCKET}/three/c"
    make_cache(url)
    boto3.client("s3").delete_object(Bucket=BUCKET, Key="three/c/pixel_digest/c/0/0/0")
    with TeacherCache.open(url) as cache, pytest.raises(CacheError, match=r"pixel_digest/c/0/0/0 is gone"):
        cache.read_unit(0, 0)
    with pytest.raises(CacheError, match=r"s3://nobody/c: no cache here"):
        TeacherCache.open("s3://nobody/c")


# Servers that fail


def test_a_stalled_server_is_an_error_within_the_timeout() -> None:
    """It takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/c"
        start = time.monotonic()
        with pytest.raises(CacheError, match=rf"{url}/zarr.json: no answer within 0.3 s"):
            TeacherCache.open(url, timeout_s=0.3)
        assert time.monotonic() - start < 20


def test_a_stalled_bucket_is_an_error_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        use_s3(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(CacheError, match=r"s3://somewhere/c/zarr.json: no answer within 0.5 s"):
            TeacherCache.open("s3://somewhere/c", timeout_s=0.5)
        assert time.monotonic() - start < 20


def test_a_server_that_stalls_later_is_an_error_naming_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "c")
    wait = threading.Event()

    class _Stalls(_Files):
        def do_GET(self) -> None:
            if "/logit/c/" in self.path:
                wait.wait(60)
            super().do_GET()

    for url, _ in _serve(_Stalls, tmp_path):
        with TeacherCache.open(f"{url}/c", timeout_s=3) as cache:
            with pytest.raises(CacheError, match=r"view block 0.*/logit/c/0/0/0/0: no answer within 3 s"):
                cache.read_unit(0, 0)
            wait.set()


def test_a_failing_server_is_an_error_that_names_it(broken: str) -> None:
    with pytest.raises(CacheError, match=rf"{broken}/c/zarr.json: .*500"):
        TeacherCache.open(f"{broken}/c", timeout_s=5)


def test_a_closed_port_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/c"
    with pytest.raises(CacheError, match=f"{url}/zarr.json: "):
        TeacherCache.open(url, timeout_s=5)


def test_one_object_that_a_server_refuses_leaves_nothing_out(tmp_path: Path) -> None:
    """Over real HTTP: only 404 says that an object is gone."""
    make_cache(tmp_path / "c")
    answer = [0]

    class _Refuses(_Files):
        def do_GET(self) -> None:
            if "/logit/c/0/1" not in self.path:
                return super().do_GET()
            if answer[0]:
                return self.send_error(answer[0])
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"cut")
            self.close_connection = True
            return None

    for url, _ in _serve(_Refuses, tmp_path):
        for status in (401, 403, 408, 429, 500, 503, 0):
            answer[0] = status
            with pytest.raises(UnreachableError, match="/logit/c/0/1"):
                copied(f"{url}/c", tmp_path / "copy")
            with TeacherCache.open(f"{url}/c") as cache, pytest.raises(UnreachableError, match="/logit/c/0/1"):
                list(verify_digests(cache))
        answer[0] = 404
        assert copied(f"{url}/c", tmp_path / "copy").num_damaged == 1
        with TeacherCache.open(f"{url}/c") as cache:
            assert ["is gone" in finding.problem for finding in verify_digests(cache)].count(True) == 1


# Object stores that refuse one object


UNREACHABLE: dict[str, Callable[[], Exception]] = {
    "403": lambda: PermissionError(errno.EACCES, "Access Denied"),
    "500": lambda: OSError(errno.EIO, "Internal Error"),
    "503": lambda: OSError(errno.EBUSY, "Slow Down"),
    "no answer": TimeoutError,
    "reset": ConnectionResetError,
    "cut off": lambda: aiohttp.ClientPayloadError("not enough data"),
    "no credentials": lambda: RuntimeError("Unable to locate credentials"),
}
"""What clients of object stores raise."""
PARTS = ("logit/c/0/1", "pixel_digest/c/0/1", "unit_digest/c/0/1", "ledger/c/0/0")


def _memory(name: str) -> str:
    """A full cache in an object store of this process alone."""
    url = f"memory://{name}/c"
    make_cache(url)
    return url


def _objects(url: str) -> dict[str, bytes]:
    files = MemoryFileSystem.store
    return {key: item.getvalue() for key, item in files.items() if key.startswith(url.removeprefix("memory:/"))}


def _refusing(patch: pytest.MonkeyPatch, url: str, part: str, error: Callable[[], Exception]) -> None:
    """Let the store answer with an error where one object is read."""
    real = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, *rest: Any, **more: Any) -> Any:
        if f"{url.removeprefix('memory:/')}/{part}" in str(path):
            raise error()
        return real(self, path, *rest, **more)

    patch.setattr(MemoryFileSystem, "cat_file", cat_file)


def _repair(url: str, place: Path) -> None:
    with TeacherCache.open(url, writable=True) as cache:
        list(verify_digests(cache, repair=True))


def _release(url: str, place: Path) -> None:
    """What stage 1 does to a cache that is there."""
    with TeacherCache.open(url, writable=True) as cache:
        list(_release_damaged(cache, ALONE, bool))


def _commit(url: str, place: Path) -> None:
    """What a second stage 1 does whose ledger has not seen the unit."""
    with TeacherCache.open(url, writable=True) as cache:
        cache.commit_unit(0, 1, random_unit(cache, 0, 1, seed=5))


def _copy(url: str, place: Path) -> None:
    copied(url, place)


def _pack(url: str, place: Path | str) -> None:
    with TeacherCache.open(url) as cache:
        list(pack_cache(cache, str(place), cache.num_views))


USES = {use.__name__[1:]: use for use in (_repair, _release, _commit, _copy, _pack)}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("answer", UNREACHABLE)
@pytest.mark.parametrize("part", PARTS)
def test_what_a_server_refuses_is_neither_gone_nor_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, answer: str, use: str
) -> None:
    url = _memory(f"{part}-{answer}-{use}".replace("/", "-"))
    before = _objects(url)
    with monkeypatch.context() as patch:
        _refusing(patch, url, part, UNREACHABLE[answer])
        with pytest.raises(UnreachableError, match=part):
            USES[use](url, tmp_path / "copy")
    assert _objects(url) == before
    assert use != "pack" or not (tmp_path / "copy/zarr.json").exists()
    USES[use](url, tmp_path / "copy")


@pytest.mark.parametrize("answer", UNREACHABLE)
@pytest.mark.parametrize("part", ["logit/c/0/1", "ledger/c/0/0"])
def test_what_a_server_refuses_of_a_packed_cache_is_neither_gone_nor_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, answer: str
) -> None:
    url = f"memory://packed-{answer}-{part.partition('/')[0]}/c"
    make_cache(tmp_path / "c")
    _pack(str(tmp_path / "c"), url)
    with monkeypatch.context() as patch:
        _refusing(patch, url, part, UNREACHABLE[answer])
        with pytest.raises(UnreachableError, match=part):
            _copy(url, tmp_path / "copy")
        with TeacherCache.open(url) as cache, pytest.raises(UnreachableError, match=part):
            list(verify_digests(cache))
        MemoryFileSystem().rm_file(f"{url}/zarr.json")
        before = _objects(url)
        if part == "ledger/c/0/0":
            with pytest.raises(UnreachableError, match=part):
                _pack(str(tmp_path / "c"), url)  # one that was stopped does not begin anew
            assert _objects(url) == before


@pytest.mark.parametrize("part", PARTS[:3])
def test_what_a_server_says_is_not_there_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    url = _memory(f"gone-{part}".replace("/", "-"))
    with monkeypatch.context() as patch:
        _refusing(patch, url, part, FileNotFoundError)
        _repair(url, tmp_path)
    with TeacherCache.open(url) as cache:
        assert cache.missing() == [(0, 1)]


# Forks


def _touch(answer: Any, cache: TeacherCache | None, url: str) -> None:
    try:
        cache.read_unit(0, 0) if cache is not None else TeacherCache.open(url)
        answer.put("read")
    except CacheError as error:
        answer.put(str(error))


@pytest.mark.parametrize("inherited", [True, False])
def test_a_forked_child_never_touches_the_network(tmp_path: Path, inherited: bool) -> None:
    """Neither with the parent's open cache nor with one of its own; on a local disk it may read."""
    make_cache(tmp_path / "c")
    fork = multiprocessing.get_context("fork")
    for url, asked in _serve(_Files, tmp_path):
        for place_of, remote in ((f"{url}/c", True), (str(tmp_path / "c"), False)):
            with TeacherCache.open(place_of) as cache:
                before = len(asked)
                answer = fork.SimpleQueue()
                child = fork.Process(target=_touch, args=(answer, cache if inherited else None, place_of))
                child.start()
                message = answer.get()
                child.join()
                assert child.exitcode == 0
                if remote:
                    assert "was forked and must not touch a remote cache" in message and "spawn" in message
                    assert url in message and len(asked) == before
                else:
                    assert message == "read"
                assert_unit(cache, 0, 0)  # the parent goes on


# Places


@pytest.mark.parametrize("url", ["ftp://there/c", "sftp://there/c", "gopher://there"])
def test_unknown_schemes_are_refused(url: str) -> None:
    """Also those that fsspec knows as file servers: they do not replace objects whole, many at once."""
    with pytest.raises(ValueError, match=r"expected a path or one of s3://"):
        Place.parse(url, writable=False)


def test_the_hub_is_read_only_and_says_how_to_publish() -> None:
    with pytest.raises(ValueError, match=r"hf:// is read-only.*upload that folder in one commit"):
        TeacherCache.open("hf://datasets/me/it/c", writable=True)


def test_an_object_store_whose_package_is_missing_names_the_package() -> None:
    """Of any scheme that fsspec knows: here Alibaba's, which nobody has installed."""
    with pytest.raises(CacheError, match=r"oss://there/c: Install ossfs"):
        TeacherCache.open("oss://there/c")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_timeout_must_be_positive(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Place.parse("s3://there/c", writable=False, timeout_s=timeout_s)


def test_a_missing_client_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(CacheError, match=r"gs://there/c: Please install gcsfs.*'remote' extra"):
        TeacherCache.open("gs://there/c")
    assert not place._forked
