"""Kills, faults and damage at random, through the command line, for as long as you like.

    python -m tests.campaign [--minutes 1] [--seed 0] [--only KIND] [--folder DIR]

Every trial takes a copy of small artefacts (tests/golden), does something bad, and looks at what the commands make of
it. A trial fails when something is *lost* (a finished artefact differs from an undisturbed one, or a finished part has
gone), *silent* (damage to what is checksummed goes unnoticed), *hanging* (no end within `LIMIT_S`), or *unclean* (a
traceback, a "defect", an unknown exit code, a process left behind). Prints a table; exits with 1 if any did. A trial
is repeated with the seed that its failure names.

Every command runs in a fresh Python process: what differs from process to process, such as the seeds of hash maps, must
not show in a result. The process is started ahead and gets its command after its imports, so that kills hit the work.
"""

import argparse
import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import student.commands.ablate
import student.commands.export
import student.commands.predict
import student.commands.report
import student.commands.train_student
import student.run.loop  # noqa: F401 - imported once, here, for all commands
from cli import cli
from shards.index.shard_index import ShardIndex
from tests.damage import DOCUMENTS, damaged
from tests.golden import SETS
from tests.golden.make import cache_command, student_command
from tests.poison import KINDS, not_finite, poisoned

LIMIT_S = 120.0
_CODES = (0, 1, 2, 75, 130)
_CHILD = "--child"


class TrialError(Exception):
    """What a trial found: lost, silent, hanging or unclean, and how."""


class Ended(NamedTuple):
    """How a command ended; `code` is None when it was killed."""

    code: int | None
    said: str


def command(
    words: Sequence[str],
    folder: Path,
    *,
    kill_after_s: float = 0.0,
    limits: dict[int, int] | None = None,
    fault: tuple[str, int, float] | None = None,
) -> Ended:
    """Run a command in `folder`, in a process group of its own; kill its main process after a while if asked to.

    Args:
        limits: of the process's resources. fault: a number that goes wrong (`poisoned`).
    """
    out = folder / "said.txt"
    out.touch()
    child = _waiting.pop() if _waiting else _fresh()
    assert child.stdin is not None and child.stdout is not None
    child.stdout.readline()  # its imports are done
    _waiting.append(_fresh())
    child.stdin.write(json.dumps([[str(word) for word in words], str(folder), str(out), limits or {}, fault]).encode())
    child.stdin.close()
    child.stdout.close()
    pid = child.pid
    ends = time.monotonic() + LIMIT_S
    kill_at = time.monotonic() + kill_after_s if kill_after_s else ends
    killed = False
    while (code := child.poll()) is None:
        if time.monotonic() > kill_at and not killed:
            os.kill(pid, signal.SIGKILL)
            killed = True
        if time.monotonic() > ends:
            os.killpg(pid, signal.SIGKILL)
            raise TrialError(f"hanging: {' '.join(words)}: no end within {LIMIT_S:g} s")
        time.sleep(0.005)
    _require_nobody_left(pid, words)
    said = out.read_text(errors="replace")
    if killed and code == -signal.SIGKILL:
        return Ended(None, said)
    if code not in _CODES or "Traceback" in said or "defect" in said or (code and "rror: " not in said + "error: "):
        raise TrialError(f"unclean: {' '.join(words)}: exit code {code}: {said[-600:]}")
    return Ended(code, said)


_waiting: list[subprocess.Popen[bytes]] = []


def _fresh() -> subprocess.Popen[bytes]:
    """A process that imports everything, says so with a line, and waits for its command."""
    words = [sys.executable, "-m", "tests.campaign", _CHILD]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


def _child() -> None:
    """Run the command that standard input gives."""
    print(flush=True)
    words, folder, out, limits, fault = json.load(sys.stdin)
    os.chdir(folder)
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    code = 1
    try:
        for kind, value in limits.items():
            resource.setrlimit(int(kind), (value, value))
        with poisoned(*fault) if fault else contextlib.nullcontext():
            cli.main(words, prog_name="cli.py")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _require_nobody_left(group: int, words: Sequence[str]) -> None:
    """Workers end with their main process: within a moment the group is empty."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    raise TrialError(f"unclean: {' '.join(words)}: processes of it outlived it")


def _finish(words: Sequence[str], folder: Path, rng: random.Random, most_s: float) -> int:
    """Run a command again and again, killing it at random, until it ends by itself; the kills."""
    for kills in range(6):
        ended = command(words, folder, kill_after_s=rng.uniform(0.01, most_s) if kills < 5 else 0.0)
        if ended.code is not None:
            if ended.code:
                raise TrialError(f"lost: after {kills} kills: {' '.join(words)}: {ended.said[-400:]}")
            return kills
    raise AssertionError("the last run is not killed")


def _bytes(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern)) if path.is_file()}


def _require_same(found: Path, expected: Path, pattern: str, what: str) -> None:
    if _bytes(found, pattern) != _bytes(expected, pattern) or not _bytes(found, pattern):
        raise TrialError(f"lost: {what}: not the bytes of an undisturbed run")


class Trials:
    """The kinds of trial; each takes a copy of the set and a source of chance."""

    def __init__(self, folder: Path) -> None:
        """Make what undisturbed commands give, once."""
        self.calm = folder / "calm"
        shutil.copytree(SETS[-1], self.calm)
        rng = np.random.default_rng(0)
        for n in range(40):
            path = self.calm / "pictures" / f"c{n % 4}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(path)
        shutil.copy(self.calm / "pictures/c0/0.png", self.calm / "image.png")
        for words in (self.shards(), self.cache(), self.train()):
            if command(words, self.calm).code:
                raise AssertionError("undisturbed, everything succeeds")
        self.kinds: dict[str, Callable[[Path, random.Random], None]] = {
            "make-shards killed": self.make_shards_killed,
            "cache-teacher killed": self.cache_killed,
            "train-student killed": self.train_killed,
            "numbers not finite": self.numbers,
            "documents damaged": self.documents,
            "bytes damaged": self.flips,
            "disk full": self.disk_full,
            "few open files": self.few_files,
        }

    def shards(self) -> list[str]:
        """Forty pictures in many small shards."""
        return ["make-shards", "pictures", "made", "--samples-per-shard", "4", "--workers", "2"]

    def cache(self) -> list[str]:
        """The cache of the set, anew."""
        return [*cache_command(Path(), "dense", cache=Path("new.zarr"))[:-2], "--workers", "2"]

    def train(self) -> list[str]:
        """The run of the set, anew."""
        return [*student_command(Path(), Path("trained")), "--workers", "1"]

    def make_shards_killed(self, folder: Path, rng: random.Random) -> None:
        """The same tars and index, whatever was killed on the way."""
        shutil.rmtree(folder / "made")
        _finish(self.shards(), folder, rng, 0.6)
        _require_same(folder / "made", self.calm / "made", "*.tar", "shards")
        _require_same(folder / "made", self.calm / "made", "shards.index", "index")

    def cache_killed(self, folder: Path, rng: random.Random) -> None:
        """The same units."""
        shutil.rmtree(folder / "new.zarr")
        _finish(self.cache(), folder, rng, 1.5)
        _require_same(folder / "new.zarr", self.calm / "new.zarr", "*/c/**/*", "cache")
        if "0 teacher forwards" not in command(self.cache(), folder).said:
            raise TrialError("lost: a finished cache costs forwards")

    def train_killed(self, folder: Path, rng: random.Random) -> None:
        """The same weights."""
        shutil.rmtree(folder / "trained")
        _finish(self.train(), folder, rng, 3.0)
        _require_same(folder / "trained", self.calm / "trained", "weights*.safetensors", "weights")

    def numbers(self, folder: Path, rng: random.Random) -> None:
        """NaN or Inf in a weight, the loss, the teacher's answer or a state: not in a checkpoint; a rerun is calm."""
        shutil.rmtree(folder / "trained")
        kind, step, value = rng.choice(KINDS), rng.randrange(8), rng.choice([math.nan, math.inf, -math.inf])
        words = [*self.train(), "--checkpoint-every", str(rng.choice([1, 2, 3]))]
        ended = command(words, folder, fault=(kind, step, value))
        bad = not_finite(folder / "trained/checkpoints")
        if ended.code == 0 or bad:
            raise TrialError(f"silent: {kind} {value} at step {step}: exit code {ended.code}, checkpoints {bad}")
        if command(words, folder).code:
            raise TrialError(f"lost: {kind} {value} at step {step}: the same command does not go on")
        _require_same(folder / "trained", self.calm / "trained", "weights*.safetensors", "weights")

    def documents(self, folder: Path, rng: random.Random) -> None:
        """Any document, changed anywhere and sealed again: its commands go on or say what is wrong."""
        document = DOCUMENTS[rng.choice(list(DOCUMENTS))]
        path = folder / document.path
        whole = path.read_bytes()
        path.write_bytes(document.seal(damaged(document.load(whole, path), rng), whole, path))
        for words in document.commands:
            if command(words, folder).code not in (0, 1):
                raise TrialError(f"unclean: {' '.join(words)}: an artefact is no wrong argument")

    def flips(self, folder: Path, rng: random.Random) -> None:
        """A bit, a cut or zeros in what is checksummed: never silent."""
        cache = [
            path for path in (folder / "dense.zarr").glob("*/c/**/*") if path.is_file() and "ledger" not in str(path)
        ]
        index = ShardIndex.load(folder / "train/shards.index")
        shard, row = rng.randrange(index.num_shards), 0
        places = [(path, 0, path.stat().st_size, ("verify-cache", "dense.zarr")) for path in rng.sample(cache, 2)]
        first, size = int(index.offset_N[index.row_number(shard, row)]), int(index.size_N[index.row_number(shard, row)])
        places.append((folder / "train" / index.names[shard], first, size, ("check-shards", "train")))
        path, first, size, words = rng.choice(places)
        data = bytearray(path.read_bytes())
        if rng.random() < 0.3:
            data = data[: first + rng.randrange(size)]
        else:
            data[first + rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        if command(words, folder).code != 1:
            raise TrialError(f"silent: {' '.join(words)} does not see damage to {path.name}")

    def disk_full(self, folder: Path, rng: random.Random) -> None:
        """Files may not grow beyond a limit: one clean line, and what was there stays."""
        shutil.rmtree(folder / "new.zarr")
        words = rng.choice([self.cache(), ["report", "run", "--html", "x.html"], self.shards()])
        if words == self.shards():
            shutil.rmtree(folder / "made")
        command(words, folder, limits={resource.RLIMIT_FSIZE: rng.choice([0, 100, 1000, 5000, 20000])})
        if command(words, folder).code:
            raise TrialError(f"lost: {' '.join(words)} does not go on when there is room")

    def few_files(self, folder: Path, rng: random.Random) -> None:
        """A limit on open files: a clean line, or done with few."""
        words = rng.choice([self.shards(), ["report", "run"], ["verify-cache", "dense.zarr"]])
        shutil.rmtree(folder / "made")
        command(words, folder, limits={resource.RLIMIT_NOFILE: rng.randint(8, 40)})
        if command(words, folder).code:
            raise TrialError(f"lost: {' '.join(words)} does not go on when files can be opened")


def run(folder: Path, *, minutes: float, seed: int, only: str = "") -> int:
    """Trials until the time is up, each kind in turn; the number that failed."""
    trials = Trials(folder)
    counts = {name: [0, 0] for name in trials.kinds if only in name}
    until, number = time.monotonic() + 60 * minutes, 0
    while number < len(counts) or time.monotonic() < until:
        name = list(counts)[number % len(counts)]
        copy = folder / f"trial{number}"
        shutil.copytree(trials.calm, copy)
        counts[name][0] += 1
        try:
            trials.kinds[name](copy, random.Random(f"{seed} {number}"))
        except TrialError as failure:
            counts[name][1] += 1
            print(f"FAILED {name}, --seed {seed}, trial {number}: {failure}")
        shutil.rmtree(copy)
        number += 1
    print(f"{'kind':24} {'trials':>7} {'failed':>7}")
    for name, (tried, failed) in counts.items():
        print(f"{name:24} {tried:7} {failed:7}")
    return sum(failed for _, failed in counts.values())


def main() -> None:
    """Parse the arguments, run, and exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--folder", type=Path, help="where copies go (default: a temporary folder)")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            sys.exit(1 if run(Path(name), minutes=options.minutes, seed=options.seed, only=options.only) else 0)
    finally:
        for child in _waiting:
            child.kill()
            child.wait()


if __name__ == "__main__":
    _child() if sys.argv[1:] == [_CHILD] else main()
