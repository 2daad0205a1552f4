"""Is the cache the teacher, and is a killed run an uninterrupted one, on this device?

The runs are processes of their own, since one of them is killed with SIGKILL and since the flags of determinism must be
set before the device is opened. All are of one student on one schedule, with what `--deterministic` sets: from a
lossless cache; with the teacher in the loop; and from the cache, killed after a step and begun again.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import material
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.sizes import Sizes
from shards.atomic import atomic_file
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.world import World
from student.feed.feed import Feed
from student.feed.feed_options import FeedOptions
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from teacher_cache.stage1.build import build_cache

_RUN_TIMEOUT_S, _LEAST_RUN_S = 120.0, 30.0


def truth(bench: Bench) -> dict[str, Any]:
    """Cached against online, and killed against uninterrupted: equal bits, or how far apart."""
    _end(bench, _started(bench, _fill))
    runs = [_started(bench, _run, name, name == "killed") for name in ("cached", "online", "killed")]
    for run, expected in zip(runs, (0, 0, -signal.SIGKILL), strict=True):
        _end(bench, run, expected)
    _end(bench, _started(bench, _run, "killed", False))
    cached, online, resumed = (
        json.loads((bench.folder / f"{n}.json").read_text()) for n in ("cached", "online", "killed")
    )
    differences = [abs(a - b) for a, b in zip(cached["losses"], online["losses"], strict=True)]
    rest = cached["losses"][-len(resumed["losses"]) :]
    return {
        "steps": bench.sizes.compare_steps,
        "precision": bench.sizes.precision,
        "cached_is_online": cached == online,
        "cached_minus_online_loss": max(differences),
        "first_differing_step": next((n for n, gap in enumerate(differences) if gap), None),
        "killed_is_uninterrupted": cached["weights"] == resumed["weights"],
        "killed_minus_uninterrupted_loss": max(abs(a - b) for a, b in zip(rest, resumed["losses"], strict=True)),
        "steps_after_the_kill": len(resumed["losses"]),
    }


def _started(bench: Bench, work: Any, *words: Any) -> Any:
    """Begin work in a process of its own."""
    # A forked process starts at once, but has neither a GPU that its parent opened nor the threads it computed with.
    alone = bench.device.type == "cpu" and torch.get_num_threads() == 1
    context = multiprocessing.get_context("fork" if alone else "spawn")
    process = context.Process(target=work, args=(bench.folder, bench.sizes, bench.index, bench.device.type, *words))  # type: ignore[attr-defined]
    process.start()
    return process


def _end(bench: Bench, process: Any, expected: int = 0) -> None:
    """Wait for a process; RuntimeError unless it ends as expected."""
    process.join(min(_RUN_TIMEOUT_S, max(bench.clock.left_s, _LEAST_RUN_S)))
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode != expected:
        raise RuntimeError(f"{process.name}: expected exit code {expected}, got {process.exitcode}")


def _fill(folder: Path, sizes: Sizes, index: ShardIndex, device: str) -> None:
    """The lossless cache, with the batch of the student."""
    teacher = material.teacher(sizes, sizes.small_teacher, sizes.precision, torch.device(device), deterministic=True)
    with (
        material.new_cache(folder / "dense.zarr", sizes, index, teacher, "dense", sizes.views.block_views) as cache,
        ShardReader(index) as reader,
    ):
        for _ in build_cache(
            cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=sizes.compare_batch
        ):
            pass


def _run(folder: Path, sizes: Sizes, index: ShardIndex, device_type: str, name: str, die: bool) -> None:
    """One run: from its checkpoint if there is one; it kills itself after two thirds if it is to die."""
    device = torch.device(device_type)
    checkpoint, half, fatal = folder / f"{name}.pt", sizes.compare_steps // 2, sizes.compare_steps * 2 // 3
    answers: dict[str, Any] = {"cache": folder / "dense.zarr"}
    if name == "online":
        answers = {
            "teacher": material.teacher(sizes, sizes.small_teacher, sizes.precision, device, deterministic=True),
            "views": sizes.views,
        }
    recipe = sizes.recipe(sizes.students[0][1], batch_size=sizes.compare_batch)
    settings = TrainSettings(device=device_type, precision=sizes.precision, log_every=1, deterministic=True)
    group = ProcessGroup(World(), device)
    losses: list[float] = []
    with Feed(
        index, batch_size=sizes.compare_batch, repeats=1, views_used=sizes.views.block_views, workers=0,
        device=device, options=FeedOptions(rank=0, world_size=1, scratch=folder), **answers,
    ) as feed:  # fmt: skip
        trainer = Trainer(
            recipe, settings, num_classes=sizes.num_classes, steps_per_epoch=feed.order.steps, group=group
        )
        step = 0
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location=device)
            trainer.load_state_dict(state["trainer"])
            step = state["step"]
        while step < sizes.compare_steps:
            epoch, first = divmod(step, feed.order.steps)
            for batch in feed.epoch(epoch, first_step=first):
                trainer.feed(batch.images, batch.labels, batch.answer, step=step)
                losses.append(trainer.interval_metrics()["loss"])
                step += 1
                if step == half and name == "killed":
                    with atomic_file(checkpoint) as file:
                        torch.save({"trainer": trainer.state_dict(), "step": step}, file)
                if step == fatal and die:
                    os.kill(os.getpid(), signal.SIGKILL)
                if step == sizes.compare_steps:
                    break
    sha = hashlib.sha256()
    for tensor in trainer.core.state_dict().values():
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    (folder / f"{name}.json").write_text(json.dumps({"losses": losses, "weights": sha.hexdigest()}))
