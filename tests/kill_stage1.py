"""Kill stage 1 at random moments, many times, with one to three writers and a changing world size.

    python -m tests.kill_stage1 --kills 50 [--seed 0] [--folder DIR]

After every kill each committed unit must verify and none may have gone; in the end the cache must equal an undisturbed
one, and one more run must do no forward. When a cache is complete before the kills are spent, the next one is begun.

Every process is forked from this one, which has everything imported and has opened no cache: a start costs
milliseconds, so most kills fall into the work and not into the imports. Prints one line per cache.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.index.shard_index import ShardIndex
from shards.world import World
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import array_digest
from tests.stage1_tiny import CLASSES, build, end_of, make_shards, opened, tiny_teacher

FORK = multiprocessing.get_context("fork")
NUM_VIEWS = 8
RECORD = RecordFormat.chosen("topk", CLASSES, k=3, num_bytes=24)


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that ran in a process of its own."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: send.send(work(*arguments)))
    process.start()
    send.close()
    try:
        result = receive.recv()
    except EOFError:
        raise AssertionError(f"{work.__name__}{arguments} failed; its traceback is above") from None
    process.join()
    return result


def stage1(url: Path, index: ShardIndex, world: World) -> int:
    """One run of the command; the number of its teacher forwards."""
    teacher = tiny_teacher()
    with opened(url, index, teacher, num_views=NUM_VIEWS, record=RECORD) as cache:
        return end_of(build(cache, index, teacher, world=world)).num_forwards


def verified(url: Path) -> dict[tuple[int, int], str]:
    """Digest of every committed unit's arrays; CacheError if one does not verify. Empty before there is a cache."""
    if not TeacherCache.exists(url):
        return {}
    cache = TeacherCache.open(url)
    units = [(int(b), int(s)) for b, s in np.argwhere(cache.ledger() != 0)]
    return {unit: array_digest(cache.read_unit(*unit)).hex() for unit in units}


def start(url: Path, index: ShardIndex, world: World) -> BaseProcess:
    """A writer in a process of its own."""
    process = FORK.Process(target=stage1, args=(url, index, world))
    process.start()
    return process


def kill_some(url: Path, index: ShardIndex, rng: random.Random, most: int, within_s: float) -> int:
    """Start writers of some world size, kill some of them at random moments, let go of the others; the kills done."""
    size = rng.randint(1, 3)
    writers = [start(url, index, World(rank, size)) for rank in range(size)]
    kills = 0
    for writer in rng.sample(writers, size):
        time.sleep(rng.uniform(0.0, within_s))
        if writer.is_alive() and kills < most:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            kills += 1
        writer.join()
        assert writer.exitcode in (0, -signal.SIGKILL), f"a writer failed with {writer.exitcode}"
    return kills


def main() -> None:
    """Parse the arguments, run, and exit with 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the caches go (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fit_basis(np.eye(CLASSES, dtype=np.float32), RECORD)  # fills its tables of constants, which the children inherit
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        run(Path(name), options.kills, random.Random(options.seed))


def run(folder: Path, kills_wanted: int, rng: random.Random) -> None:
    """Kill until the kills are spent; AssertionError at the first thing that is not as it must be."""
    index = make_shards(folder / "shards", num_samples=64)
    began = time.monotonic()
    forwards = in_child(stage1, folder / "calm.zarr", index, World())
    calm_s = time.monotonic() - began
    expected = in_child(verified, folder / "calm.zarr")
    assert len(expected) == index.num_shards * NUM_VIEWS // 2
    kills = number = 0
    while kills < kills_wanted:
        url, before, rounds = folder / f"cache{number}.zarr", kills, 0
        done: dict[tuple[int, int], str] = {}
        while kills < kills_wanted and len(done) < len(expected):
            kills += kill_some(url, index, rng, kills_wanted - kills, calm_s / 4)
            rounds += 1
            now = in_child(verified, url)
            assert done.keys() <= now.keys(), "a committed unit has gone"
            assert now.items() <= expected.items(), "a committed unit differs from the undisturbed one"
            done = now
        last = in_child(stage1, url, index, World())
        assert in_child(verified, url) == expected
        assert in_child(stage1, url, index, World()) == 0, "a finished cache costs no forward"
        print(
            f"cache {number}: {kills - before} kills in {rounds} rounds, {len(done)} of {len(expected)} units survived "
            f"them, the last run did {last} of {forwards} forwards"
        )
        sys.stdout.flush()
        number += 1


if __name__ == "__main__":
    main()
