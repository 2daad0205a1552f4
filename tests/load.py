"""Many readers of one cache at once, from a disk and over http from a server that fails now and then.

    python -m tests.load [--units 2000] [--readers 20] [--faults 0.02]

Every reader is a process that opens the cache and reads every unit, checked against the ledger. Prints seconds, units
per second of all readers, and the readers that failed; exits with 1 if any did.
"""

import argparse
import functools
import http.server
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from teacher_cache.store import place
from teacher_cache.store.cache import TeacherCache
from tests.cache_maker import make_cache

SHARDS = 40


def main() -> None:
    """Make a cache, read it both ways, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--faults", type=float, default=0.02, help="share of requests that end in a fault")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        blocks = options.units // SHARDS
        units = blocks * SHARDS
        maker = _forked(lambda: make_cache(folder, rows=(8,) * SHARDS, num_views=3 * blocks))
        assert os.waitpid(maker, 0)[1] == 0
        failed = report("disk", str(folder), units, options.readers)
        server = os.fork()  # before any client of http is in this process
        if server == 0:
            _serve(Path(name), options.faults)
        while not (Path(name) / "port").exists():
            time.sleep(0.01)
        url = f"http://127.0.0.1:{(Path(name) / 'port').read_text()}/cache"
        failed += report("http", url, units, options.readers)
        os.kill(server, 9)
    sys.exit(1 if failed else 0)


def report(label: str, url: str, units: int, readers: int) -> int:
    """Read with so many processes at once; the number that failed."""
    began = time.monotonic()
    pids = [_reader(url, units) for _ in range(readers)]
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
    seconds = time.monotonic() - began
    print(
        f"{label}: {readers} readers × {units} units in {seconds:.1f} s, {readers * units / seconds:.0f} units/s, "
        f"{failed} failed"
    )
    return failed


def _reader(url: str, units: int) -> int:
    return _forked(lambda: read(url, units))


def _forked(work: Callable[[], object]) -> int:
    """The process id of a child; this process has no network client, so a child may have one."""
    pid = os.fork()
    if pid:
        return pid
    place._forked = False
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def read(url: str, units: int) -> None:
    """Open the cache and read all of it."""
    with TeacherCache.open(url) as cache:
        assert cache.missing() == [] and cache.num_view_blocks * cache.num_shards == units
        for block in range(cache.num_view_blocks):
            for shard in range(cache.num_shards):
                cache.read_unit(block, shard)


class _Failing(http.server.SimpleHTTPRequestHandler):
    """Drops, cuts or refuses a share of what it is asked for."""

    protocol_version = "HTTP/1.1"
    faults = 0.0

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        kind = random.random() / self.faults if self.faults else 1.0
        if kind >= 1.0:
            return super().do_GET()
        self.close_connection = True
        if kind < 0.4:
            self.send_error(503)
        elif kind < 0.7:
            self.connection.close()
        else:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])


def _serve(folder: Path, faults: float) -> None:
    handler = functools.partial(type("Handler", (_Failing,), {"faults": faults}), directory=str(folder))
    try:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.request_queue_size = 256
            server.handle_error = lambda *_: None  # type: ignore[method-assign]
            (folder / "port").write_text(str(server.server_port))
            threading.current_thread().name = "server"
            server.serve_forever()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
