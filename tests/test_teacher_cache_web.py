"""A cache over http from a server that drops, stalls, lies or never ends: tried again, bounded, then one error."""

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from shards.errors import ArtefactError, CacheError, ShardError
from shards.index import server_rules, transfer
from shards.index.remote import local_shard
from shards.index.server_rules import ALLOWED, open_azure, session_options
from teacher_cache.store import zarr_objects
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.schemes import SCHEMES, open_filesystem
from teacher_cache.store.web import bounded_google
from tests.cache_maker import assert_unit, make_cache
from tests.object_servers import use_s3


class _Moody(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; every second request for an object of units, or every one, meets its mood."""

    protocol_version = "HTTP/1.1"
    mood = "good"
    always = False
    asked: ClassVar[dict[str, int]] = {}

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        times = self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if "/class_index/" not in self.path or not (self.always or times % 2):
            return super().do_GET()
        getattr(self, f"_{self.mood}")(Path(self.translate_path(self.path)).read_bytes())
        self.close_connection = True

    def _send(self, data: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(data)

    def _good(self, data: bytes) -> None:
        self._send(data, len(data))

    def _error(self, _: bytes) -> None:
        self.send_error(503)

    def _drop(self, _: bytes) -> None:
        self.connection.close()

    def _cut(self, data: bytes) -> None:
        self._send(data[: len(data) // 2], len(data))

    def _lie(self, data: bytes) -> None:
        self._send(data, len(data) + 1000)

    def _stall(self, data: bytes) -> None:
        self._send(data[:10], len(data))
        time.sleep(3)

    def _drip(self, data: bytes) -> None:
        self._send(b"", len(data))
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)

    def _endless(self, _: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        sent = 0
        while sent < 1 << 31:
            sent += self.wfile.write(bytes(1 << 16))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[_Moody]]]:
    make_cache(tmp_path / "c")
    handler: type[_Moody] = type("Handler", (_Moody,), {"asked": {}})
    monkeypatch.setattr(server_rules, "PAUSE_S", 0.01)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path))
    ) as running:
        running.daemon_threads = True
        running.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is the test
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/c", handler
        running.shutdown()


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """The address of another server, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_redirects_stay_with_the_server_that_was_named(
    server: tuple[str, type[_Moody]], elsewhere: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own other paths are followed; another address is asked only where the user has named it."""
    url, handler = server
    target = ""

    def redirected(self: _Moody) -> None:
        if self.path.startswith("/old/"):
            self.send_response(302)
            self.send_header("Location", target + self.path.replace("/old/", "/c/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            http.server.SimpleHTTPRequestHandler.do_GET(self)

    handler.do_GET = redirected  # type: ignore[method-assign]
    old = url.removesuffix("/c") + "/old"
    with TeacherCache.open(old, timeout_s=20) as cache:
        assert_unit(cache, 0, 0)
    other, asked = elsewhere
    target = other
    with pytest.raises(CacheError, match=r"sends a request on to http://127\.0\.0\.1:\d+; only the address"):
        TeacherCache.open(old, timeout_s=20)
    target = "ftp://127.0.0.1"
    with pytest.raises(CacheError, match=r"expected a redirect to http:// or https://, got one to 'ftp:"):
        TeacherCache.open(old, timeout_s=20)
    assert asked == []
    target = other
    monkeypatch.setenv(ALLOWED, f"https://cdn.example.org,{other}")
    with pytest.raises(CacheError, match="no cache here"):
        TeacherCache.open(old, timeout_s=20)
    assert asked == ["/c/zarr.json"]


def _send_all_to(handler: type[_Moody], other: str) -> None:
    """Let the server send every request on to another one."""

    def redirected(self: _Moody) -> None:
        self.send_response(302)
        self.send_header("Location", f"{other}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    handler.do_GET = handler.do_HEAD = redirected  # type: ignore[method-assign]


def test_the_s3_client_follows_no_redirect_to_another_address(
    server: tuple[str, type[_Moody]],
    elsewhere: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiobotocore would let aiohttp follow it."""
    (url, handler), (other, asked) = server, elsewhere
    _send_all_to(handler, other)
    use_s3(monkeypatch, url.removesuffix("/c"))
    with pytest.raises(CacheError, match="sends a request on to http://127"):
        TeacherCache.open("s3://c/", timeout_s=20)
    with pytest.raises(ShardError, match="sends a request on to http://127"):
        local_shard("s3://c/shard-000000.tar", None, tmp_path / "fetched")
    assert asked == []


def test_googles_client_has_the_same_rule_for_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be installed: a stub stands for it."""
    opened: list[dict[str, Any]] = []

    class Client(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        cachable = False

        def __init__(self, **options: Any) -> None:
            opened.append(options)
            super().__init__()

    monkeypatch.setitem(_registry, "gs", Client)
    bounded_google()()
    assert opened[0]["session_kwargs"]["trace_configs"] == session_options(CacheError)["trace_configs"]


class _Redirects:
    """Stands for the policy of azure-core, which the pipeline of a client asks where an answer sends it on to."""

    def get_redirect_location(self, response: Any) -> Any:
        return response.location


def test_azures_client_has_the_same_rule_for_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be installed: a stub stands for it. One without a known policy is not used at all."""
    policies: list[object] = [object(), _Redirects()]

    class Client(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        cachable = False

        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.do_connect()

        def do_connect(self) -> None:
            self.service_client = SimpleNamespace(_pipeline=SimpleNamespace(_impl_policies=policies))

    monkeypatch.setitem(_registry, "az", Client)
    asked = SimpleNamespace(url="https://a.blob.core.windows.net/c/x")
    for opened in (
        partial(open_filesystem, scheme=SCHEMES["az"]),
        partial(open_azure, error=CacheError),
        transfer._open,
    ):
        policies[1] = policy = _Redirects()
        opened("az://c/x.zarr")
        for location in (None, False, "/c/y", "https://a.blob.core.windows.net/c/y"):
            answer = SimpleNamespace(location=location, http_request=asked)
            assert policy.get_redirect_location(answer) == location
        for location in ("https://b.blob.core.windows.net/c/x", "http://169.254.169.254/", "file:///etc/passwd"):
            with pytest.raises(ArtefactError, match=r"redirect|sends a request on to"):
                policy.get_redirect_location(SimpleNamespace(location=location, http_request=asked))
    policies.pop()
    with pytest.raises(ImportError, match="pip install -U adlfs"):
        open_azure("az://c/x.zarr", CacheError)


def test_azures_client_is_made_once_for_all_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """adlfs closes none before the process ends: one for each shard would use up the files that may be open."""

    class Client(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.do_connect()

        def do_connect(self) -> None:
            self.service_client = SimpleNamespace(_pipeline=SimpleNamespace(_impl_policies=[_Redirects()]))

    monkeypatch.setitem(_registry, "az", Client)
    first, second, of_cache = (open_azure("az://c/x", error)[0] for error in (ShardError, ShardError, CacheError))
    assert first is second and of_cache is not first


def test_azures_real_client_follows_no_redirect_to_another_address(
    server: tuple[str, type[_Moody]],
    elsewhere: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("adlfs")
    (url, handler), (other, asked) = server, elsewhere
    _send_all_to(handler, other)
    account = f"AccountName=x;AccountKey=eHg=;BlobEndpoint={url.removesuffix('/c')}/x;"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"DefaultEndpointsProtocol=http;{account}")
    with pytest.raises(CacheError, match="sends a request on to http://127"):
        TeacherCache.open("az://c/", timeout_s=20)
    with pytest.raises(ShardError, match="sends a request on to http://127"):
        local_shard("az://c/shard-000000.tar", None, tmp_path / "fetched")
    assert asked == []


def test_an_object_of_an_s3_server_is_cut_off_as_well(
    server: tuple[str, type[_Moody]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that never ends, of a server that was named for a bucket."""
    pytest.importorskip("s3fs")
    url, handler = server
    use_s3(monkeypatch, url.removesuffix("/c"))
    with TeacherCache.open("s3://c/", timeout_s=20) as cache:
        assert_unit(cache, 0, 0)
        handler.mood, handler.always = "endless", True
        with pytest.raises(CacheError, match=r"class_index.*expected at most \d+ bytes, got more"):
            cache.read_unit(0, 0)


class _Large(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An honest object store: whatever lies there is handed out, as much as was asked for."""

    cachable = False
    taken: ClassVar[list[int]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(f"memory://{path.partition('://')[2] or path}"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end, **options)
        self.taken.append(len(data))
        return data


_OWN_CLIENTS = ("http", "https", "s3", "gs", "gcs")
"""Their clients cut off what comes, whatever was asked for."""


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in _OWN_CLIENTS])
def test_an_object_of_any_other_store_is_asked_for_up_to_its_largest_size(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk and a document that somebody made enormous: not read to their ends, and an error."""
    monkeypatch.setattr(_Large, "taken", [])
    monkeypatch.setattr(zarr_objects, "METADATA_BYTES", 1 << 16)
    monkeypatch.setitem(_registry, scheme, _Large)
    store: dict[str, Any] = {}
    monkeypatch.setattr(_Large, "store", store)
    monkeypatch.setattr(_Large, "pseudo_dirs", [""])
    make_cache(tmp_path / "c")
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file():
            _Large().pipe_file(f"/box/{path.relative_to(tmp_path)}", path.read_bytes())
    url = f"{scheme}://box/c"
    with TeacherCache.open(url, timeout_s=20) as cache:
        assert_unit(cache, 0, 0)
        for name in [name for name in store if "/class_index/c/" in name]:
            _Large().pipe_file(name, bytes(1 << 20))
        _Large.taken.clear()
        with pytest.raises(CacheError, match=r"class_index.*expected at most \d+ bytes, got more"):
            cache.read_unit(0, 0)
    assert max(_Large.taken) < 1 << 17
    _Large().pipe_file("/box/c/zarr.json", b" " * (1 << 20))
    with pytest.raises(CacheError, match=r"zarr.json: expected at most \d+ bytes, got more"):
        TeacherCache.open(url, timeout_s=20)
    assert max(_Large.taken) < 1 << 17


@pytest.mark.parametrize("mood", ["error", "drop", "cut", "lie"])
def test_what_goes_away_by_itself_is_tried_again(server: tuple[str, type[_Moody]], mood: str) -> None:
    url, handler = server
    handler.mood = mood
    with TeacherCache.open(url, timeout_s=20) as cache:
        assert_unit(cache, 0, 0)
        assert_unit(cache, 1, 1)
    assert max(handler.asked.values()) == 2


@pytest.mark.parametrize("mood", ["error", "drop", "cut", "lie", "stall", "drip", "endless"])
def test_what_stays_is_one_error_in_bounded_time(server: tuple[str, type[_Moody]], mood: str) -> None:
    """Also a body that never ends: it is cut off at the size of the object."""
    url, handler = server
    handler.mood, handler.always = mood, True
    began = time.monotonic()
    with pytest.raises(CacheError, match="class_index"), TeacherCache.open(url, timeout_s=1.5) as cache:
        cache.read_unit(0, 0)
    assert time.monotonic() - began < 10
    assert (
        max(handler.asked.values()) <= 2 * server_rules.TRIES
    )  # a dropped connection its client tries once more by itself
