"""Fill a slab in a process of its own: threads that read units beside a training loop make its short calls slower.

The process fills the file of the slab (`node_file`), says so, and holds it until this one has mapped it. It ends with
the process that started it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shards.pool.worker_process import close_in_workers

_READY = b"ready\n"
_PATIENCE_S = 10.0
_WHOSE_END_IS_ANOTHERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class SlabOrder(NamedTuple):
    """The slab of the views from `first` to before `end` of a cache, in a file below `scratch`; "" is the default."""

    url: str
    first: int
    end: int
    scratch: str

    @classmethod
    def of(cls, url: str, views: range, scratch: Path | None) -> "SlabOrder":
        """The order of some consecutive views."""
        return cls(str(url), views.start, views.stop, "" if scratch is None else str(scratch))


@contextmanager
def filled_apart(order: SlabOrder) -> Iterator[None]:
    """Have the slab filled by another process, which holds it inside the `with`.

    Warns when that process fails: whoever looks for the slab then finds none, and fills it.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-m", "student.feed.slab_process", json.dumps(order)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        close_in_workers(process.stdin)
        try:
            if process.stdout.readline() != _READY:
                errors.seek(0)
                error_lines = ["nothing was said", *errors.read().decode(errors="replace").strip().splitlines()]
                warnings.warn(
                    f"the process that reads stored logits ahead ended with {process.wait()} "
                    f"({error_lines[-1]}); this process reads them now, which slows training",
                    RuntimeWarning,
                    stacklevel=2,
                )
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _end_with_parent(filled: threading.Event) -> None:
    """Wait for the end of standard input; it is no reason to go on filling."""
    sys.stdin.buffer.read()
    if not filled.is_set():
        os._exit(1)


def main() -> None:
    """Fill the slab of an order, given as JSON, say "ready", and hold it until standard input ends."""
    for number in _WHOSE_END_IS_ANOTHERS:
        signal.signal(number, signal.SIG_IGN)
    filled = threading.Event()
    watch = threading.Thread(target=_end_with_parent, args=(filled,), daemon=True)
    watch.start()
    from student.feed.slab import RecordSlab
    from teacher_cache.store.cache import TeacherCache

    order = SlabOrder(*json.loads(sys.argv[1]))
    scratch = Path(order.scratch) if order.scratch else None
    slab = RecordSlab.load(TeacherCache.open(order.url), range(order.first, order.end), scratch=scratch)
    filled.set()
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    watch.join()
    slab.close()


if __name__ == "__main__":
    main()
