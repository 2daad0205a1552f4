"""Under the real torchrun: a rank is lost, torchrun starts all anew, the run goes on; also with fewer ranks."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shards.errors import RunError, ShardError
from shards.index.shard_index import open_index
from shards.world import World
from student.learn.evaluation import eval_batches
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.run import validation
from teacher_cache.store.cache import TeacherCache
from tests import stage1_tiny
from tests.student_tiny import (
    CLASSES,
    final_weights,
    in_children,
    kill_self,
    make_cache,
    run_to_end,
    student_recipe,
    views,
    write_shards,
)

ROOT = Path(__file__).parent.parent
RANKS = 2
FATAL_STEP = 5
SETTINGS = TrainSettings(log_every=1, checkpoint_every=2)
# What each rank runs: the training of this file, in which rank 1 dies once, after a step, as a machine would.
SCRIPT = """
import os, sys
from pathlib import Path
from shards.world import world_from_env
from student.learn.trainer import Trainer
from tests.test_student_torchrun import FATAL_STEP, trained

folder, out, die = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "die"
feed = Trainer.feed

def fatal(self, *batch, step, micro=0):
    feed(self, *batch, step=step, micro=micro)
    mark = folder / "died"
    if die and step == FATAL_STEP and os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)

Trainer.feed = fatal
trained(folder, out, world_from_env())
"""


def trained(folder: Path, out: Path, world: World) -> None:
    """The run that all ways must end in: no drop path, which is drawn per part of the batch."""
    torch.set_num_threads(1)
    index = open_index(str(folder / "shards"))
    with TeacherCache.open(folder / "cache") as cache:
        recipe = student_recipe(epochs=4, drop_path=0.0)
        run_to_end(out, index, cache, recipe=recipe, settings=SETTINGS, world=world)


def torchrun(folder: Path, out: Path, ranks: int, *, restarts: int = 0, die: bool = False) -> str:
    """What torchrun said; it must succeed."""
    words = [folder, out, "die" if die else "live"]
    return under_torchrun(folder, SCRIPT, words, ranks=ranks, restarts=restarts).stderr


def under_torchrun(
    folder: Path, text: str, words: list[Any], *, ranks: int, restarts: int = 0
) -> "subprocess.CompletedProcess[str]":
    """What a script and torchrun said; it must succeed."""
    script = folder / "rank.py"
    script.write_text(text)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    flags = ["--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, script, *words]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def said_twice(text: str) -> list[str]:
    """The lines that several ranks have said."""
    lines = Counter(line for line in text.splitlines() if line.strip())
    return [line for line, times in lines.items() if times > 1]


def logged_steps(out: Path) -> list[int]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and their cache."""
    folder = tmp_path_factory.mktemp("torchrun")
    index = write_shards(folder / "shards")
    make_cache(folder / "cache", index, views(), num_views=4).close()
    return folder


def calm(folder: Path) -> dict[str, tuple[list[int], bytes]]:
    """Weights of two ranks that nothing disturbs, started by hand."""
    out = folder / "calm"
    if not (out / "summary.json").exists():
        meet = f"file://{folder}/meet"
        in_children([partial(trained, folder, out, World(rank, RANKS, rank, meeting=meet)) for rank in range(RANKS)])
    return final_weights(out)


@pytest.mark.slow
def test_a_lost_rank_is_restarted_and_the_run_equals_an_undisturbed_one(folder: Path) -> None:
    """To the bit, from the last checkpoint: steps after it are done again, and logged once."""
    said = torchrun(folder, folder / "lost", RANKS, restarts=1, die=True)
    assert (folder / "died").exists() and "exitcode: -9" in said, said
    assert final_weights(folder / "lost") == calm(folder)
    assert logged_steps(folder / "lost") == logged_steps(folder / "calm")


def dying(folder: Path, out: Path, rank: int) -> None:
    """A rank of a job that ends after a step as a power cut ends it."""
    feed = Trainer.feed

    def fatal(self: Trainer, *batch: Any, step: int, micro: int = 0) -> None:
        if step == FATAL_STEP:
            kill_self()
        feed(self, *batch, step=step, micro=micro)

    Trainer.feed = fatal  # type: ignore[method-assign]
    trained(folder, out, World(rank, RANKS, rank, meeting=f"file://{folder}/meet too"))


def test_a_run_goes_on_with_fewer_ranks_and_the_same_batches(folder: Path) -> None:
    """Only the rounding of sums is another."""
    out = folder / "fewer"
    in_children([partial(dying, folder, out, rank) for rank in range(RANKS)], killed=True)
    assert max(logged_steps(out)) == FATAL_STEP
    in_children([partial(trained, folder, out, World())])  # it chooses the threads of its process
    assert logged_steps(out) == list(range(1, max(logged_steps(out)) + 1))
    two = calm(folder)
    for name, (shape, data) in final_weights(out).items():
        assert shape == two[name][0]
        np.testing.assert_allclose(np.frombuffer(data, "<f4"), np.frombuffer(two[name][1], "<f4"), atol=1e-3)


# What each rank runs: the command, with the student of these tests registered, and the images it has read.
EVALUATE = """
import os, sys
from pathlib import Path
import tests.student_tiny
from cli import cli
from shards.errors import ShardError
from shards.index.reader import ShardReader

read, ask = [], ShardReader.image_bytes

def noted(self, shard, row):
    if os.environ.get("DAMAGED_FOR") == os.environ.get("RANK"):
        raise ShardError(f"shard {shard}: damaged")
    read.append(f"{shard} {row}")
    return ask(self, shard, row)

ShardReader.image_bytes = noted
cli(sys.argv[2:], standalone_mode=False)
Path(sys.argv[1], os.environ.get("RANK", "alone")).write_text("\\n".join(read))
"""


@pytest.mark.slow
def test_an_evaluation_is_shared_out_and_equals_that_of_one_process(folder: Path) -> None:
    """Each image is read by one rank; counts, classes, confusion and the page with the worst answers are the same."""
    calm(folder)
    results = []
    for ranks in (1, 2, 3):
        place = folder / f"evaluated by {ranks}"
        place.mkdir()
        page = folder / "page.html"
        words = ["evaluate", "--shards", folder / "shards", "--weights", folder / "calm", "--workers", "0", "--json"]
        done = under_torchrun(folder, EVALUATE, [place, *words, "--html", page], ranks=ranks)
        assert said_twice(done.stderr) == []
        results.append((json.loads(done.stdout.splitlines()[0]), page.read_bytes()))
        reads = [path.read_text().splitlines() for path in place.iterdir()]
        assert len(reads) == ranks and all(reads)
        assert sum(map(len, reads)) == len({image for part in reads for image in part}) == 66, "none twice"
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cache-teacher", "train-student", "evaluate"])
def test_what_ranks_say_is_said_once(folder: Path, tmp_path: Path, name: str) -> None:
    """Eight ranks that each say everything hide the one line that matters; results of each are no remarks."""
    weights = tmp_path / "weights.safetensors"
    if name == "evaluate":  # weights that say nothing of themselves: their recipe and classes are assumed, and told
        calm(folder)
        save_file(load_file(folder / "calm" / "weights.safetensors"), weights)
    else:
        stage1_tiny.save_weights(weights, num_classes=CLASSES)
    data, model = ["--shards", folder / "shards"], ["--model", "student_tiny_distilled"]
    student = ["--val-shards", folder / "shards", "--cache", folder / "cache", *model, "--distill", "hard"]
    words = {
        "cache-teacher": ["--teacher", stage1_tiny.TINY, "--teacher-weights", weights, "--cache", tmp_path / "c.zarr",
                          "--size", "32", "--views", "6"],
        "train-student": [*student, "--epochs", "1", "--batch-size", "16", "--set", "repeats=1", "--out",
                          tmp_path / "run"],
        "evaluate": ["--weights", weights, *model],
    }[name]  # fmt: skip
    said = under_torchrun(tmp_path, EVALUATE, [tmp_path, name, *data, *words, "--workers", "0"], ranks=RANKS).stderr
    assert len(said.splitlines()) > 1 and said_twice(said) == [] and "error:" not in said


@pytest.mark.slow
def test_a_rank_that_fails_in_an_evaluation_ends_the_others(folder: Path) -> None:
    """Without torchrun, which would end them: they would wait for its counts for half an hour."""
    calm(folder)
    script, place = folder / "failing.py", folder / "failing"
    script.write_text(EVALUATE.replace("standalone_mode=False", "standalone_mode=True"))
    place.mkdir()
    words = ["evaluate", "--shards", folder / "shards", "--weights", folder / "calm", "--workers", "0"]
    ranks = [
        subprocess.Popen(
            list(map(str, [sys.executable, script, place, *words])),
            env={**os.environ, **_rank_of_two(rank), "DAMAGED_FOR": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    said = [process.communicate(timeout=400)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1], said
    assert (
        "error: rank 0 of 2: rank 1: shard 1: damaged" in said[0] and "error: rank 1 of 2: shard 1: damaged" in said[1]
    ), said


@cache
def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rank_of_two(rank: int) -> dict[str, str]:
    """The environment of a rank that nobody watches over."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**meet, "RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}


def _validated(folder: Path, rank: int) -> str:
    """What a rank of a training says where the second one fails in its part of the validation."""

    def damaged(*_: Any, world: World, **__: Any) -> Any:
        if world.rank == 1:
            raise ShardError("shard 0: damaged")
        return eval_batches(*_, world=world, **__)

    validation.eval_batches = damaged  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    index = open_index(str(folder / "shards"))
    with TeacherCache.open(folder / "cache") as cache, pytest.raises((ShardError, RunError)) as raised:
        world = World(rank, RANKS, rank, meeting=f"file://{folder}/meet to validate")
        recipe = student_recipe(epochs=1, drop_path=0.0)
        run_to_end(folder / "validated", index, cache, recipe=recipe, settings=SETTINGS, val_index=index, world=world)
    return str(raised.value)


@pytest.mark.slow
def test_a_rank_that_fails_in_a_validation_ends_the_others(folder: Path) -> None:
    """With the reason of that rank, not that the network is gone."""
    said = in_children([partial(_validated, folder, rank) for rank in range(RANKS)])
    assert said == ["rank 1: shard 0: damaged", "shard 0: damaged"]
