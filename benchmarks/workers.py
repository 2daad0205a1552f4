"""How long until the first result of a worker: forked from this process, or started anew by multiprocessing.

    python -m benchmarks.workers [--json] [--workers 4] [--rounds 5]

The work needs what rendering needs: the view code with PyTorch, and an index that lies in a file. Both sides in turns,
medians over the rounds, the first round of the fork server (which imports for all) apart.
JSON: `fork_s`, `forkserver_first_s`, `forkserver_s`, `spawn_s`.
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.pool.workers import in_workers
from shards.tars.writer import write_samples
from shards.views.resample import without_threads


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        samples = ((f"k{n:06d}", n % 10, "png", b"\x89PNG\r\n\x1a\n%d" % n) for n in range(20_000))
        index = write_samples(samples, Path(name), samples_per_shard=20_000, num_classes=10)
        times: dict[str, list[float]] = {"fork": [], "forkserver": [], "spawn": []}
        for _ in range(options.rounds):
            times["fork"].append(forked(index, options.workers))
            for method in ("forkserver", "spawn"):
                times[method].append(started(index, options.workers, method))
    seconds_by_label = {
        "fork_s": statistics.median(times["fork"]),
        "forkserver_first_s": times["forkserver"][0],
        "forkserver_s": statistics.median(times["forkserver"][1:] or times["forkserver"]),
        "spawn_s": statistics.median(times["spawn"]),
    }
    for label, seconds in seconds_by_label.items():
        print(f"{label:20} {seconds:8.3f}")
    if options.json:
        print(json.dumps({label: round(seconds, 4) for label, seconds in seconds_by_label.items()}))


def forked(index: ShardIndex, workers: int) -> float:
    """Seconds until every worker of the pool has given a result."""
    began = time.perf_counter()
    with ShardReader(index) as reader:
        work = lambda n: len(reader.image_bytes(0, n))  # noqa: E731 - what it closes over is the point
        assert all(in_workers(work, range(2 * workers), workers=workers, start=without_threads))
    return time.perf_counter() - began


def started(index: ShardIndex, workers: int, method: str) -> float:
    """The same with processes that begin with nothing: the reader is pickled, the code imported."""
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["benchmarks.workers"])
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=context) as pool, ShardReader(index) as reader:
        assert all(pool.map(_read, [reader] * 2 * workers, range(2 * workers)))
    return time.perf_counter() - began


def _read(reader: ShardReader, row: int) -> int:
    without_threads()
    return len(reader.image_bytes(0, row))


if __name__ == "__main__":
    main()
