"""Kills, faults, damage and hostile input at random, through the command line, for as long as you like.

    python -m tests.campaign [--minutes 1] [--seed 0] [--only KIND] [--trial N] [--folder DIR]

Every trial takes a copy of small artefacts (tests/golden), does something bad, and looks at what the commands make of
it. A trial fails when something is *lost* (a finished artefact differs from an undisturbed one, or a finished part has
gone), *silent* (damage to what is checksummed goes unnoticed), *unclear* (a refusal without the file or the remedy),
*hanging* (no end), or *unclean* (a traceback, a "defect", an unknown exit code, a process left behind,
more than 2 GiB of memory, something that a terminal obeys). Prints a table; exits with 1 if any did. A failure names
the words that repeat it alone: `--seed`, `--only` and `--trial`.

The kinds of what strangers and slips bring are in `campaign_hostile`, how commands are run in `campaign_process`.
"""

import argparse
import math
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.index.shard_index import ShardIndex
from shards.text.escapes import visible
from tests.campaign_hostile import HOSTILE_KINDS
from tests.campaign_process import TrialError, command, light
from tests.damage import DOCUMENTS, damaged
from tests.golden import SETS
from tests.golden.make import cache_command, student_command, sweep_command
from tests.poison import KINDS, not_finite

_FRESH = 0.3
"""The share of runs that get a process of their own; all others are forks of the campaign, for the sake of time."""


class Kind(NamedTuple):
    """What is tried, and how often in a turn; 0: only where it is asked for, as its end depends on the machine."""

    trial: Callable[[Path, random.Random], None]
    times: int = 1


def _finish(words: Sequence[str], folder: Path, rng: random.Random, calm_s: float) -> None:
    """Run a command again and again, killing it at random, until it ends by itself; undisturbed it takes `calm_s`."""
    for kills in range(6):
        after_s = rng.uniform(0.01, calm_s) if kills < 5 else 0.0
        ended = command(words, folder, kill_after_s=after_s, fresh=rng.random() < _FRESH)
        if ended.code is not None:
            if ended.code:
                raise TrialError(f"lost: after {kills} kills: {' '.join(words)}: {ended.said[-400:]}")
            return
    raise AssertionError("the last run is not killed")


def _bytes(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern)) if path.is_file()}


def _require_same(found: Path, expected: Path, pattern: str, what: str) -> None:
    """`TrialError` unless both folders hold the same bytes in the files of a pattern, and nothing half written."""
    if _bytes(found, pattern) != _bytes(expected, pattern) or not _bytes(found, pattern):
        raise TrialError(f"lost: {what}: not the bytes of an undisturbed run")
    if partial := [path.name for path in found.rglob("*.partial")]:
        raise TrialError(f"unclean: {what}: left {partial[:5]}")


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
        self.seconds: dict[str, float] = {}
        for words in (self.shards(), self.cache(), self.train(), self.copy(), self.sweep()):
            began = time.monotonic()
            if light(words, self.calm).code:  # in a fork, and the trials in processes of their own: both must agree
                raise AssertionError("undisturbed, everything succeeds")
            self.seconds[words[0]] = time.monotonic() - began
        self.kinds: dict[str, Kind] = {
            "make-shards killed": Kind(self.make_shards_killed),
            "cache-teacher killed": Kind(self.cache_killed),
            "train-student killed": Kind(self.train_killed),
            "copy-cache killed": Kind(self.copy_killed),
            "Ctrl-C, several times": Kind(self.interrupted, 2),
            "numbers not finite": Kind(self.numbers),
            "documents damaged": Kind(self.documents),
            "bytes damaged": Kind(self.flips),
            "disk full": Kind(self.disk_full),
            "few open files": Kind(self.few_files, 2),
            "little memory": Kind(self.little_memory, 0),
            **{name: Kind(*kind) for name, kind in HOSTILE_KINDS.items()},
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

    def copy(self) -> list[str]:
        """A copy of the set's cache."""
        return ["copy-cache", "lowrank.zarr", "copy.zarr"]

    def sweep(self) -> list[str]:
        """The sweep of the set, anew and shorter."""
        return [*sweep_command(Path(), Path("swept")), "--epochs", "2", "--workers", "1"]

    def make_shards_killed(self, folder: Path, rng: random.Random) -> None:
        """The same tars and index, whatever was killed on the way."""
        shutil.rmtree(folder / "made")
        _finish(self.shards(), folder, rng, self.seconds["make-shards"])
        _require_same(folder / "made", self.calm / "made", "*.tar", "shards")
        _require_same(folder / "made", self.calm / "made", "shards.index", "index")

    def cache_killed(self, folder: Path, rng: random.Random) -> None:
        """The same units."""
        shutil.rmtree(folder / "new.zarr")
        _finish(self.cache(), folder, rng, self.seconds["cache-teacher"])
        _require_same(folder / "new.zarr", self.calm / "new.zarr", "*/c/**/*", "cache")
        if "0 teacher forwards" not in light(self.cache(), folder).said:
            raise TrialError("lost: a finished cache costs forwards")

    def train_killed(self, folder: Path, rng: random.Random) -> None:
        """The same weights."""
        shutil.rmtree(folder / "trained")
        _finish(self.train(), folder, rng, self.seconds["train-student"])
        _require_same(folder / "trained", self.calm / "trained", "weights*.safetensors", "weights")

    def copy_killed(self, folder: Path, rng: random.Random) -> None:
        """The same objects, and nothing half written."""
        shutil.rmtree(folder / "copy.zarr")
        _finish(self.copy(), folder, rng, self.seconds["copy-cache"])
        _require_same(folder / "copy.zarr", self.calm / "copy.zarr", "**/*", "copy")

    def interrupted(self, folder: Path, rng: random.Random) -> None:
        """Ctrl-C once to four times, then the same command: said as what it is, and the same result."""
        words, made, pattern = rng.choice([
            (self.shards(), "made", "*.tar"),
            (self.cache(), "new.zarr", "*/c/**/*"),
            ([*self.train(), "--checkpoint-every", "1"], "trained", "weights*.safetensors"),
            (self.sweep(), "swept", "cells/*/weights*.safetensors"),
            (self.copy(), "copy.zarr", "**/*"),
        ])  # fmt: skip
        shutil.rmtree(folder / made)
        first_s = rng.uniform(0.05, 1.2 * self.seconds[words[0]])
        presses_s = [
            first_s + sum(rng.choice([0.0, 0.01, 0.05, 0.3]) for _ in range(n)) for n in range(rng.randint(1, 4))
        ]
        ended = command(words, folder, interrupts_s=presses_s, fresh=rng.random() < _FRESH)
        if ended.code not in (0, 130) or "could not be written" in ended.said:
            raise TrialError(f"unclean: Ctrl-C in {words[0]}: exit code {ended.code}: {ended.said[-400:]}")
        if (again := command(words, folder)).code:
            raise TrialError(f"lost: after Ctrl-C: {' '.join(words)}: {again.said[-400:]}")
        _require_same(folder / made, self.calm / made, pattern, f"{words[0]} after Ctrl-C")

    def numbers(self, folder: Path, rng: random.Random) -> None:
        """NaN or Inf in a weight, the loss, the teacher's answer or a state: not in a checkpoint; a rerun is calm."""
        shutil.rmtree(folder / "trained")
        kind, step, value = rng.choice(KINDS), rng.randrange(8), rng.choice([math.nan, math.inf, -math.inf])
        value = math.nan if (kind, value) == ("answer", -math.inf) else value  # log p of a class without any mass
        words = [*self.train(), "--checkpoint-every", str(rng.choice([1, 2, 3]))]
        ended = command(words, folder, fresh=False, fault=(kind, step, value))
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
            if light(words, folder).code not in (0, 1):
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
        if light(words, folder).code != 1:
            raise TrialError(f"silent: {' '.join(words)} does not see damage to {path.name}")

    def disk_full(self, folder: Path, rng: random.Random) -> None:
        """Files may not grow beyond a limit: one clean line, and what was there stays."""
        shutil.rmtree(folder / "new.zarr")
        words = rng.choice([self.cache(), ["report", "run", "--html", "x.html"], self.shards()])
        if words == self.shards():
            shutil.rmtree(folder / "made")
        command(words, folder, fresh=False, limits={resource.RLIMIT_FSIZE: rng.choice([0, 100, 1000, 5000, 20000])})
        if light(words, folder).code:
            raise TrialError(f"lost: {' '.join(words)} does not go on when there is room")

    def few_files(self, folder: Path, rng: random.Random) -> None:
        """A limit on open files: done with few, or one line that says so and names the remedy.

        With 8, asyncio prints a traceback of an event loop that it could not make.
        """
        words, made = rng.choice([
            (self.shards(), "made"), (self.cache(), "new.zarr"), (self.train(), "trained"), (self.copy(), "copy.zarr"),
            (["report", "run"], ""), (["verify-cache", "dense.zarr"], ""), (["check-shards", "train"], ""),
        ])  # fmt: skip
        if made:
            shutil.rmtree(folder / made)
        ended = command(words, folder, fresh=False, limits={resource.RLIMIT_NOFILE: rng.randint(9, 40)})
        if ended.code and "ulimit -n" not in ended.said:
            raise TrialError(f"unclear: {words[0]} with few open files: exit code {ended.code}: {ended.said[-400:]}")
        if light(words, folder).code:
            raise TrialError(f"lost: {' '.join(words)} does not go on when files can be opened")

    def little_memory(self, folder: Path, rng: random.Random) -> None:
        """A limit on memory: done with little, or one line that says so; nothing half written."""
        words, made = rng.choice([
            (self.shards(), "made"), (self.cache(), "new.zarr"), (self.train(), "trained"), (self.copy(), "copy.zarr"),
            (["report", "run"], ""), (["verify-cache", "dense.zarr"], ""), (["check-shards", "train"], ""),
            (["predict", "image.png", "--weights", "run/weights.safetensors"], ""),
            (["export", "run/weights.safetensors", "out/x.safetensors"], "out"),
        ])  # fmt: skip
        shutil.rmtree(folder / made, ignore_errors=not (self.calm / made).exists()) if made else None
        room = int(2 ** rng.uniform(18, 29))
        ended = command(words, folder, fresh=False, limits={resource.RLIMIT_AS: room})
        if ended.code and "memory" not in ended.said:
            raise TrialError(f"unclear: {words[0]} with {room} bytes: exit code {ended.code}: {ended.said[-400:]}")
        if light(words, folder).code:
            raise TrialError(f"lost: {' '.join(words)} does not go on when there is memory")


def run(folder: Path, *, minutes: float, seed: int, only: str = "", trial: int | None = None) -> int:
    """Trials until the time is up, each kind in turn; the number that failed."""
    trials = Trials(folder)
    counts = {name: [0, 0] for name in trials.kinds if only in name}
    turn = [name for name in counts for _ in range(trials.kinds[name].times or bool(only))]
    until, number = time.monotonic() + 60 * minutes, trial or 0
    while number < len(turn) or time.monotonic() < until or trial is not None:
        name = turn[number % len(turn)]
        copy = folder / f"trial{number}"
        shutil.copytree(trials.calm, copy)
        counts[name][0] += 1
        try:
            trials.kinds[name].trial(copy, random.Random(f"{seed} {number}"))
        except TrialError as failure:
            counts[name][1] += 1
            again = f"--seed {seed} --only '{only}' --trial {number}"
            sys.stdout.write(f"FAILED {name}, {again}: {visible(str(failure))}\n")
        sys.stdout.flush()
        shutil.rmtree(copy)
        number += 1
        if trial is not None:
            break
    print(f"{'kind':24} {'trials':>7} {'failed':>7}")
    for name, (tried, failed) in counts.items():
        print(f"{name:24} {tried:7} {failed:7}")
    print(f"{'together':24} {sum(n for n, _ in counts.values()):7} {sum(n for _, n in counts.values()):7}")
    return sum(failed for _, failed in counts.values())


def main() -> None:
    """Parse the arguments, run, and exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--trial", type=int, help="only the trial of this number")
    parser.add_argument("--folder", type=Path, help="where copies go (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        chosen = {"minutes": options.minutes, "seed": options.seed, "only": options.only, "trial": options.trial}
        sys.exit(1 if run(Path(name), **chosen) else 0)


if __name__ == "__main__":
    main()
