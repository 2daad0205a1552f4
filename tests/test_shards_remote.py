"""Remote shards: fetched once, checked, and every failing server is an error within its time."""

import http.server
import importlib
import itertools
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cli import cli
from shards.errors import ShardError
from shards.index import remote, server_rules, transfer
from shards.index.reader import ShardReader
from shards.index.remote import Fetched, cached_path, fetch_missing, local_shard
from shards.index.shard_index import ShardIndex, index_path, open_index
from shards.index.sources import expand_shards
from shards.pool.workers import in_workers
from shards.tars.scan import scan_shards
from shards.tars.writer import write_samples
from shards.world import World
from tests.object_servers import use_s3

NUM_SHARDS = 3
ROOT = Path(__file__).parent.parent


def image(n: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"%d" % n * (n + 1)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_samples(((f"k{n}", n % 2, "png", image(n)) for n in range(6)), tmp_path / "shards", samples_per_shard=2)
    return tmp_path / "shards"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder in one of several moods and counts what it sends."""

    mood = "good"
    requests: list[str] = []  # noqa: RUF012 - one server per test, which clears it
    together = threading.Barrier(NUM_SHARDS)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        """One request."""
        Handler.requests.append(self.path)
        path = Path(self.directory) / self.path.lstrip("/").partition("?")[0]
        if Handler.mood.startswith("to "):
            self._send_on()
        elif Handler.mood == "500" or Handler.mood == f"500 {self.path}":
            self.send_error(500)
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(path.read_bytes())

    def _send_on(self) -> None:
        self.send_response(302)
        self.send_header("Location", Handler.mood.removeprefix("to ") + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes) -> None:
        ranged = self.headers.get("Range") if Handler.mood == "ranges" else None
        if ranged:
            first, _, last = ranged.removeprefix("bytes=").partition("-")
            total, data = len(data), data[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        else:
            self.send_response(200)
        if Handler.mood == "ranges":
            self.send_header("Accept-Ranges", "bytes")
        if not Handler.mood.endswith(("no_length", "endless")):
            self.send_header("Content-Length", str(10**15 if Handler.mood == "huge" else len(data)))
        self.end_headers()
        if Handler.mood == "together":
            Handler.together.wait(20)
        if Handler.mood == "flaky":
            Handler.mood = "good" if len(Handler.requests) > 2 else "flaky"
            self.wfile.write(data if Handler.mood == "good" else data[:100])
        elif Handler.mood == "drip":
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
        elif Handler.mood.endswith("endless"):
            while True:
                self.wfile.write(bytes(1 << 16))
        elif Handler.mood == "slow":
            self.wfile.write(data[:1000])
            self.wfile.flush()
            time.sleep(1.5)
            self.wfile.write(data[1000:])
        elif Handler.mood == "cut":
            self.wfile.write(data[:1000])
        elif Handler.mood == "stall":
            self.wfile.write(data[:1000])
            self.wfile.flush()
            time.sleep(4)
        else:
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        """The size, unless the mood keeps it secret."""
        path = Path(self.directory) / self.path.lstrip("/").partition("?")[0]
        if Handler.mood.startswith("to "):
            self._send_on()
            return
        if Handler.mood == "500" or not path.is_file():
            self.send_error(500 if Handler.mood == "500" else 404)
            return
        self.send_response(200)
        if Handler.mood == "ranges":
            self.send_header("Accept-Ranges", "bytes")
        if not Handler.mood.startswith("no_length"):
            self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    """The address of a server of the shards on this machine."""
    Handler.mood, Handler.requests = "good", []

    def handler(*args: object) -> Handler:
        return Handler(*args, directory=str(shards))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        web.daemon_threads = True
        web.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is the test
        thread = threading.Thread(target=web.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_rules, "PAUSE_S", 0.01)


def pattern_of(server: str) -> str:
    return f"{server}/shard-{{000000..{NUM_SHARDS - 1:06d}}}.tar"


def scan(pattern: str, cache: Path) -> ShardIndex:
    index = [*scan_shards(expand_shards(pattern), cache_dir=cache)][-1].index
    assert index is not None
    return index


def read_all(index: ShardIndex, cache: Path) -> bool:
    with ShardReader(index, cache) as reader:
        return all(reader.image_bytes(s, r) == image(2 * s + r) for s in range(NUM_SHARDS) for r in range(2))


@pytest.mark.parametrize("mood", ["good", "ranges"])
@pytest.mark.slow
def test_http_shards_are_the_local_ones(mood: str, server: str, shards: Path, tmp_path: Path) -> None:
    Handler.mood = mood
    index = scan(pattern_of(server), tmp_path / "cache")
    assert index.fingerprint == open_index(str(shards)).fingerprint
    assert read_all(index, tmp_path / "cache")


def test_each_shard_is_fetched_once(server: str, shards: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pattern = pattern_of(server)
    scan(pattern, cache).save(index_path(pattern, cache))
    assert read_all(open_index(pattern, cache), cache)
    assert read_all(open_index(pattern, cache), cache)
    assert sorted(Handler.requests) == [f"/shard-{n:06d}.tar" for n in range(NUM_SHARDS)]


def test_an_index_beside_the_remote_shards_spares_the_scan(server: str, shards: Path, tmp_path: Path) -> None:
    pattern = pattern_of(server)
    with pytest.raises(
        ShardError, match=r"shard\.index: no index of these shards here or beside them; run check-shards"
    ):
        open_index(pattern, tmp_path / "cache")
    (shards / "shards.index").rename(shards / "shard.index")
    Handler.mood = "500"
    with pytest.raises(ShardError, match=r"shard\.index: cannot be fetched: .*500.*Where no index lies") as failing:
        open_index(pattern, tmp_path / "cache")
    assert "no index of these shards here" not in str(failing.value)
    Handler.mood = "good"
    index = open_index(pattern, tmp_path / "cache")
    assert index.urls == tuple(expand_shards(pattern))
    assert read_all(index, tmp_path / "cache")


def test_a_shard_that_changed_on_the_server_is_scanned_anew_and_refused_by_readers(
    server: str, shards: Path, tmp_path: Path
) -> None:
    index = scan(pattern_of(server), tmp_path / "cache")
    with open(shards / "shard-000001.tar", "ab") as file:
        file.write(bytes(10240))
    assert scan(pattern_of(server), tmp_path / "cache").tar_bytes_S.tolist() == [10240, 20480, 10240]
    with ShardReader(index, tmp_path / "other") as reader:
        with pytest.raises(ShardError, match=r"shard-000001\.tar: expected 10240 bytes, got (20480|\d+ and more)"):
            reader.image_bytes(1, 0)
        assert reader.image_bytes(0, 0) == image(0)


def test_many_threads_that_need_one_shard_fetch_it_once(server: str, shards: Path, tmp_path: Path) -> None:
    url = f"{server}/shard-000000.tar"
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: local_shard(url, 10240, tmp_path / "cache"), range(8)))
    assert paths == {cached_path(url, tmp_path / "cache")}
    assert Handler.requests == ["/shard-000000.tar"]


def _read_in_child(index: ShardIndex, cache: Path, queue: "multiprocessing.Queue[bool]") -> None:
    queue.put(read_all(index, cache))


def test_a_forked_worker_fetches_after_its_parent_did(server: str, shards: Path, tmp_path: Path) -> None:
    """fsspec's event loop lives in a thread that a fork does not copy: a worker must not wait for it."""
    index = scan(pattern_of(server), tmp_path / "one")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bool] = context.Queue()
    child = context.Process(target=_read_in_child, args=(index, tmp_path / "two", queue))
    child.start()
    assert queue.get(timeout=30)
    child.join(30)


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("500", "cannot be fetched: .*500"),
        ("cut", "cannot be fetched|expected 10240 bytes, got"),
        ("stall", r"only 1000 bytes came in 0\.6 s after 0 bytes"),
    ],
)
def test_a_failing_server_is_an_error_that_names_the_shard(
    mood: str, message: str, server: str, tmp_path: Path
) -> None:
    Handler.mood = mood
    url = f"{server}/shard-000001.tar"
    start = time.monotonic()
    with pytest.raises(ShardError, match=message) as caught:
        local_shard(url, 10240, tmp_path / "cache", stall_s=0.6)
    assert str(caught.value).startswith(url)
    assert time.monotonic() - start < 15
    assert not cached_path(url, tmp_path / "cache").exists()
    Handler.mood = "good"
    assert local_shard(url, 10240, tmp_path / "cache").stat().st_size == 10240, "the next try succeeds"


def test_what_goes_away_by_itself_is_tried_again(server: str, tmp_path: Path) -> None:
    """Two cut transfers, then a whole one."""
    Handler.mood = "flaky"
    assert local_shard(f"{server}/shard-000001.tar", 10240, tmp_path).stat().st_size == 10240
    assert len(Handler.requests) == 3


def test_what_will_not_change_is_asked_once(server: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"none\.tar: cannot be fetched: FileNotFoundError"):
        local_shard(f"{server}/none.tar", 7, tmp_path)
    assert len(Handler.requests) == 1


def test_a_server_that_drips_is_given_up(server: str, tmp_path: Path) -> None:
    """Every gap between two bytes is short, and the transfer would take for ever: the rate has a floor."""
    Handler.mood = "drip"
    with pytest.raises(ShardError, match=r"only \d+ bytes came in 0\.4 s .*\(4 tries\)"):
        local_shard(f"{server}/shard-000001.tar", 10240, tmp_path, stall_s=0.4)


def test_a_body_that_never_ends_is_cut_at_its_size(server: str, tmp_path: Path) -> None:
    """It was read for gigabytes before its length was compared."""
    Handler.mood = "endless"
    with pytest.raises(ShardError, match=r"expected 10240 bytes, got \d+ and more"):
        local_shard(f"{server}/shard-000001.tar", 10240, tmp_path)
    time.sleep(0.3)
    assert not list(tmp_path.glob("*.tar")) and sum(p.stat().st_size for p in tmp_path.iterdir()) < 1 << 20


@pytest.mark.parametrize("mood", ["no_length", "no_length_endless"])
def test_without_any_size_nothing_is_fetched(mood: str, server: str, tmp_path: Path) -> None:
    """Neither the server nor an index says how large the shard is: nothing would end the transfer."""
    Handler.mood = mood
    with pytest.raises(ShardError, match=r"from the server \(Content-Length\)") as refused:
        scan(pattern_of(server), tmp_path / "cache")
    last = str(refused.value).splitlines()[-1]
    assert "…" not in last and "wget -P shards ADDRESS" in last and last.endswith("run check-shards shards")
    assert str(refused.value).count("wget") == 1, "said once for all shards"
    assert not [path for path in (tmp_path / "cache").glob("*") if path.stat().st_size]
    if mood == "no_length":
        assert local_shard(f"{server}/shard-000001.tar", 10240, tmp_path).stat().st_size == 10240, "of an index"


def test_a_worker_fetches_in_a_process_of_its_own(server: str, tmp_path: Path) -> None:
    """The network client of its parent is a thread that a fork does not have."""
    url = f"{server}/shard-000001.tar"
    assert [p.stat().st_size for p in in_workers(lambda _: local_shard(url, 10240, tmp_path), [0], workers=1)] == [
        10240
    ]
    with pytest.raises(ShardError, match=r"none\.tar: cannot be fetched: FileNotFoundError"):
        list(in_workers(lambda _: local_shard(f"{server}/none.tar", 7, tmp_path), [0], workers=1))


def test_a_worker_starts_one_process_for_all_its_shards(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard cost a start of Python and of the network library."""
    start = transfer._start_helper

    def counted() -> "subprocess.Popen[str]":
        with open(tmp_path / "started", "a") as file:
            file.write("x")
        return start()

    monkeypatch.setattr(transfer, "_start_helper", counted)
    urls = expand_shards(pattern_of(server))
    list(in_workers(lambda url: local_shard(url, 10240, tmp_path), urls, workers=1))
    assert (tmp_path / "started").read_text() == "x"
    assert len(Handler.requests) == NUM_SHARDS


def fetched(server: str, cache: Path, **arguments: object) -> list[Fetched]:
    return [*fetch_missing(expand_shards(pattern_of(server)), [10240] * NUM_SHARDS, cache, **arguments)]  # type: ignore[arg-type]


def test_missing_shards_are_fetched_at_once_and_counted(server: str, tmp_path: Path) -> None:
    """The server answers nobody before all of them are asked for."""
    Handler.mood, Handler.together = "together", threading.Barrier(NUM_SHARDS)
    events = fetched(server, tmp_path / "cache")
    assert events[-1] == Fetched(NUM_SHARDS, NUM_SHARDS * 10240, NUM_SHARDS, NUM_SHARDS * 10240)
    assert all(a.num_bytes <= b.num_bytes for a, b in itertools.pairwise(events))
    Handler.requests.clear()
    assert fetched(server, tmp_path / "cache") == [] and Handler.requests == [], "all are here"


def test_each_rank_begins_elsewhere(server: str, tmp_path: Path) -> None:
    fetched(server, tmp_path / "cache", world=World(1, 3, local_size=8))
    assert Handler.requests == [f"/shard-{n:06d}.tar" for n in (1, 2, 0)]


def test_one_shard_that_cannot_be_fetched_is_named_and_ends_the_others(server: str, tmp_path: Path) -> None:
    Handler.mood = "500 /shard-000001.tar"
    with pytest.raises(ShardError, match=r"shard-000001\.tar: cannot be fetched: .*500"):
        fetched(server, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(".*.partial"))
    assert fetched(server, tmp_path / "two", patient=True)[-1].num_files == NUM_SHARDS - 1, "left for whoever reads it"


@pytest.mark.parametrize("allowed", [0, 1])
def test_fetching_does_with_the_threads_that_the_system_allows(
    allowed: int, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, begun = threading.Thread.start, itertools.count()

    def limited(thread: threading.Thread) -> None:
        if "(run)" in thread.name and next(begun) >= allowed:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    if allowed:
        assert fetched(server, tmp_path / "cache")[-1].num_files == NUM_SHARDS
        return
    with pytest.raises(ShardError, match=r"no thread can be started .*ulimit -u"):
        fetched(server, tmp_path / "cache")


def test_fetching_that_is_stopped_leaves_nothing_half_written(server: str, tmp_path: Path) -> None:
    Handler.mood = "stall"
    events = fetch_missing(
        expand_shards(pattern_of(server)),
        [10240] * NUM_SHARDS,
        tmp_path / "cache",
        should_stop=lambda: len(Handler.requests) > 2,
    )
    assert [*events][-1].num_files == 0
    time.sleep(0.2)
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]


def test_more_than_the_limit_is_refused_before_the_first_is_fetched(server: str, tmp_path: Path) -> None:
    """Copies that are complete count as well: the limit is of the folder's part of these shards."""
    fetched(server, tmp_path / "cache", limit_bytes=NUM_SHARDS * 10240)
    with pytest.raises(ShardError, match=r"at most 20,000 bytes, as --shard-cache-limit says, got 3 shards of 30,720"):
        fetched(server, tmp_path / "cache", limit_bytes=20_000)


def test_check_shards_shows_what_it_fetches(server: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["check-shards", pattern_of(server), "--shard-cache", str(tmp_path / "cache")])
    assert done.exit_code == 0, done.output
    assert re.search(r"fetch: 30,720 bytes of 30,720 bytes, .*3 of 3 shards\n", done.stderr), done.stderr
    assert sorted(Handler.requests) == [f"/shard-{n:06d}.tar" for n in range(NUM_SHARDS)]
    words = [
        "check-shards",
        pattern_of(server),
        "--shard-cache",
        str(tmp_path / "cache"),
        "--shard-cache-limit",
        "0.00002",
    ]
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 1 and "at most 20,000 bytes" in refused.stderr


@pytest.mark.slow
def test_an_interrupt_ends_fetching_at_once(server: str, tmp_path: Path) -> None:
    Handler.mood = "stall"
    words = [sys.executable, ROOT / "cli.py", "check-shards", pattern_of(server), "--shard-cache", tmp_path / "cache"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(Handler.requests) < NUM_SHARDS and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped while fetching shards" in said, said
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]
    assert len(Handler.requests) == NUM_SHARDS, "nothing is tried again"


def test_a_redirect_to_another_address_is_refused_at_once(server: str, tmp_path: Path) -> None:
    """Whether the size is asked for first or the file itself; the other server is asked for nothing."""
    asked: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        threading.Thread(target=other.serve_forever, args=(0.02,), daemon=True).start()
        Handler.mood = f"to http://127.0.0.1:{other.server_port}"
        for expected in (10240, None):
            with pytest.raises(ShardError, match=r"sends a request on to http://127.*export DEIT_TEACHER_CACHE_REDIR"):
                local_shard(f"{server}/shard-000001.tar", expected, tmp_path)
        other.shutdown()
    assert asked == [] and len(Handler.requests) <= 4


def test_more_than_the_disk_takes_is_refused_before_it_comes(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that says so would fill the disk."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    for expected in (10240, None):
        with pytest.raises(ShardError, match=r"shard-000001\.tar: expected a file that fits"):
            local_shard(f"{server}/shard-000001.tar", expected, tmp_path)
    assert not list(tmp_path.glob("*.tar"))


def test_shards_that_will_not_all_fit_are_refused_before_the_first_is_fetched(
    server: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full after the first hundred shards costs the night; copies that are there count nothing."""
    index = scan(pattern_of(server), tmp_path / "cache")
    free = SimpleNamespace(free=int(index.tar_bytes_S.sum()) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    with (
        ShardReader(index, tmp_path / "elsewhere") as reader,
        pytest.raises(ShardError, match=f"{NUM_SHARDS} of {NUM_SHARDS} remote shards"),
    ):
        reader.with_room()
    with ShardReader(index, tmp_path / "cache") as reader:  # the scan has fetched them
        reader.with_room()
    with ShardReader(open_index(str(shards))) as reader:
        reader.with_room()


def test_an_s3_server_that_lies_about_the_size_costs_nothing(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A length of 10^15 was made into a list of as many parts."""
    use_s3(monkeypatch, server)
    (Path(tmp_path) / "shards/b").mkdir()
    (tmp_path / "shards/shard-000001.tar").rename(tmp_path / "shards/b/shard-000001.tar")
    Handler.mood = "huge"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ShardError, match=r"s3://b/shard-000001\.tar"):
        local_shard("s3://b/shard-000001.tar", 10240, tmp_path / "cache", stall_s=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


@pytest.mark.parametrize("scheme", ["az", "abfs", "s3", "gs", "gcs"])
def test_shards_may_lie_in_every_object_store_that_is_named(
    scheme: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system of memory stands for each client: all of them are used alike; Google's follows no redirect."""
    from fsspec.implementations.memory import MemoryFileSystem

    opened: list[dict[str, Any]] = []

    class Memory(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = scheme
        cachable = False

        def __init__(self, **options: Any) -> None:
            opened.append(options)
            super().__init__()

        store: dict[str, object] = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + str(path).partition("://")[2] if "://" in str(path) else str(path)

    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, scheme, Memory)
    for path in shards.glob("*.tar"):
        Memory().pipe_file(f"/box/{path.name}", path.read_bytes())
    opened.clear()
    index = scan(pattern_of(f"{scheme}://box"), tmp_path / "cache")
    assert index.fingerprint == open_index(str(shards)).fingerprint
    assert read_all(index, tmp_path / "cache")
    watched = ["trace_configs" in options.get("session_kwargs", {}) for options in opened]
    assert watched and all(watched) == any(watched) == (scheme in ("gs", "gcs"))


FETCHES = """
import json, os, sys
from pathlib import Path
from shards.index import transfer
from shards.index.remote import local_shard

url, folder, who = sys.argv[1:]
if who == "helper":
    order, parent = json.dumps([url, folder + "/x", 10240, 60.0]), os.getppid()
    reading, writing = os.pipe()
    os.write(writing, order.encode() + b"\\n")
    os.dup2(reading, 0)
    os.set_inheritable(writing, True)
    os.execv(sys.executable, [sys.executable, "-m", "shards.index.transfer", str(parent)])
size = local_shard(url, 10240, Path(folder)).stat().st_size
Path(folder, "done").write_text(str(size))
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["command", "helper"])
def test_only_a_helper_process_ends_with_its_parent(who: str, server: str, tmp_path: Path) -> None:
    """A command that a shell has started goes on when the shell exits, whatever it waits for."""
    Handler.mood = "slow"
    script = tmp_path / "fetches.py"
    script.write_text(FETCHES)
    (tmp_path / "cache").mkdir()
    command = f"{sys.executable} {script} {server}/shard-000001.tar {tmp_path}/cache {who}"
    line = f"{command} & echo $!; while [ ! -e {tmp_path}/go ]; do sleep .05; done"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = subprocess.Popen(["sh", "-c", line], env=environment, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    until = time.monotonic() + 60
    while not Handler.requests and time.monotonic() < until:
        time.sleep(0.02)
    (tmp_path / "go").touch()
    shell.wait(10)
    while (
        Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text() and time.monotonic() < until
    ):
        time.sleep(0.02)
    shell.stdout.close()
    done = tmp_path / "cache/done"
    assert done.exists() == (who == "command"), "the command goes on, its helper does not"
    assert who == "helper" or done.read_text() == "10240"


def test_what_a_killed_process_left_of_a_transfer_goes_with_the_next(server: str, tmp_path: Path) -> None:
    url = f"{server}/shard-000001.tar"
    left = cached_path(url, tmp_path).with_name(f".{cached_path(url, tmp_path).name}.123.partial")
    left.write_bytes(b"x")
    local_shard(url, 10240, tmp_path)
    assert not left.exists()


def test_a_missing_shard_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"none\.tar: cannot be fetched: FileNotFoundError"):
        scan(f"{server}/none.tar", tmp_path)


def test_nobody_listening_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ShardError, match=r"a\.tar: cannot be fetched"):
        local_shard(f"http://127.0.0.1:{port}/a.tar", 1, tmp_path)


def test_a_server_that_accepts_and_says_nothing_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar"
        for expected in (1, None):
            with pytest.raises(ShardError, match=r"a\.tar: nothing came for 0\.3 s after 0 bytes"):
                local_shard(url, expected, tmp_path, stall_s=0.3)


def test_urls_with_one_base_name_do_not_share_a_copy(tmp_path: Path) -> None:
    assert cached_path("s3://a/x.tar", tmp_path) != cached_path("s3://b/x.tar", tmp_path)
    assert cached_path("s3://a/x.tar").parent == remote.default_cache_dir()


def test_a_local_path_is_itself(tmp_path: Path) -> None:
    assert local_shard("/a/b.tar", 7, tmp_path) == Path("/a/b.tar")


@pytest.fixture
def bucket(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 server on this machine that holds the shards."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    use_s3(monkeypatch, f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="images")
    for path in shards.glob("*.tar"):
        client.upload_file(str(path), "images", f"set/{path.name}")
    client.close()
    yield "s3://images/set"
    server.stop()


def test_s3_shards_are_the_local_ones(bucket: str, shards: Path, tmp_path: Path) -> None:
    index = scan(pattern_of(bucket), tmp_path / "cache")
    assert index.fingerprint == open_index(str(shards)).fingerprint
    assert read_all(index, tmp_path / "cache")
    with pytest.raises(ShardError, match=r"s3://images/set/none\.tar: cannot be fetched: FileNotFoundError"):
        local_shard("s3://images/set/none.tar", 1, tmp_path / "cache")
