"""The first sections: does it start, does the device compute what the CPU computes, does a step wait for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import google_crc32c
import numpy as np
import psutil
import torch
from torch import Tensor

from benchmarks.gpu import machine, material
from benchmarks.gpu.bench import Bench, differing
from shards.index.reader import ShardReader
from shards.views.mixing import prepare
from shards.world import World
from student.feed.answers import answer_from_logits
from student.feed.batch import Labels
from student.feed.feed import Feed
from student.feed.feed_options import FeedOptions
from student.learn.loss import student_loss
from student.learn.losses.table import LOSSES
from student.learn.network import Heads
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import Precision, TrainSettings
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.stage1.build import build_cache

_MOST_ROUNDING = 1e-4  # between float32 on two devices: log p, pixels (in units of their std), losses relative to 1
_BATCHES = 4
_TEMPERATURES = (1.0, 3.0)


def start(bench: Bench) -> dict[str, Any]:
    """The machine, and seconds to here; workers that are forked after the device is open render a cache."""
    figures = {"seconds_of_imports": time.time() - psutil.Process().create_time(), **machine.facts(bench.device)}
    torch.ones(8, device=bench.device).sum()
    bench.clock.wait()
    sizes, teacher = bench.sizes, material.free_teacher(bench.sizes, bench.device)
    began = time.perf_counter()
    with (
        material.new_cache(bench.cache, sizes, bench.index, teacher, "lowrank", sizes.num_views) as cache,
        ShardReader(bench.index) as reader,
    ):
        for _ in build_cache(
            cache, bench.index, teacher, reader=reader, world=World(), workers=bench.workers,
            batch_size=sizes.student_batch,
        ):  # fmt: skip
            pass
    rate = bench.index.num_samples * sizes.num_views / (time.perf_counter() - began)
    return figures | {"workers": bench.workers, "rendered_views_per_s": rate}


def same(bench: Bench) -> dict[str, Any]:
    """Records, pixels and losses on the device against the CPU's, and pixels that were copied while it computed."""
    records, losses = _records(bench), _losses(bench)
    pixels = {"prepared": _prepared(bench), "fed_under_load": _fed_under_load(bench)}
    damaged, repeated = _damaged_copies(bench), _repeated(bench)
    wrong = [line for part in (records, losses, pixels) for line in differing(part, _MOST_ROUNDING)]
    wrong += [f"{damaged} batches of pixels were changed by their copy"] * bool(damaged)
    wrong += [f"--deterministic: weights of two equal runs differ by {repeated:.3g}"] * (repeated != 0)
    same_parts = {"records": records, "losses": losses, "pixels": pixels}
    return {**same_parts, "damaged_copies": damaged, "repeated_minus_first": repeated, "wrong": wrong}


def waiting(bench: Bench) -> dict[str, Any]:
    """Three steps of each kind in which torch raises where the host waits for the device; on a CPU they just run."""
    figures: dict[str, Any] = {"checked": bench.device.type == "cuda", "wrong": []}
    sizes = bench.sizes
    kinds: dict[str, tuple[Precision, dict[str, Any]]] = {
        **{precision: (precision, {"clip_grad": 1.0}) for precision in sizes.precisions},
        "lamb": (sizes.precision, {"optimizer": "lamb", "weight_decay": 0.02}),
    }
    for name, (precision, changes) in kinds.items():
        student = trainer(bench, sizes.students[0][1], precision, **changes)
        with feed_of(bench, bench.device) as feed:
            for step, batch in enumerate(batches_of(feed, 6)):
                with _no_waiting(bench.device, after=step >= 3):
                    student.feed(batch.images, batch.labels, batch.answer, step=step)
        figures[name] = student.interval_metrics()["loss"]
    return figures


def feed_of(bench: Bench, device: torch.device) -> Feed:
    """Batches of the cache that "start" made; CacheError where it is missing."""
    return Feed(
        bench.index, cache=bench.cache, batch_size=bench.sizes.student_batch, repeats=1, device=device,
        workers=bench.workers, options=FeedOptions(rank=0, world_size=1, scratch=bench.folder),
    )  # fmt: skip


def batches_of(feed: Feed, count: int) -> Iterator[Any]:
    """Yield a number of batches, across the ends of epochs."""
    return islice((batch for epoch in range(count) for batch in feed.epoch(epoch)), count)


def trainer(
    bench: Bench,
    model: str,
    precision: Precision,
    *,
    compile: bool = False,
    deterministic: bool = False,
    **changes: Any,
) -> Trainer:
    """Return a student of the soft recipe, alone."""
    settings = TrainSettings(
        precision=precision, device=bench.device.type, log_every=50, compile=compile, deterministic=deterministic
    )
    return Trainer(
        bench.sizes.recipe(model, **changes), settings, num_classes=bench.sizes.num_classes, steps_per_epoch=100,
        group=ProcessGroup(World(), bench.device),
    )  # fmt: skip


@contextmanager
def _no_waiting(device: torch.device, *, after: bool) -> Iterator[None]:
    if device.type != "cuda" or not after:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _records(bench: Bench) -> dict[str, float]:
    """Largest difference of log p for each kind of record."""
    classes, rng = bench.sizes.num_classes, np.random.default_rng(0)
    logit_BC = rng.normal(size=(64, classes)).astype(np.float32) * 3
    figures = {}
    for kind in KINDS:
        record = RecordFormat.chosen(kind, classes)
        noise_NC = rng.normal(size=(600, classes)).astype(np.float32)
        codec = RecordCodec(record, fit_basis(noise_NC, record) if record.needs_basis else None)
        fields = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in codec.encode(logit_BC).items()}
        moved = {name: value.to(bench.device) for name, value in fields.items()}
        if not torch.equal(codec.hard_label(moved).cpu(), codec.hard_label(fields)):
            figures[f"{kind}: first classes"] = float("nan")
        for temperature in _TEMPERATURES if record.entry.soft else ():
            gap_BC = codec.log_prob(moved, temperature).cpu() - codec.log_prob(fields, temperature)
            figures[f"{kind}, τ = {temperature:g}"] = float(gap_BC.abs().max())
    return figures


def _losses(bench: Bench) -> dict[str, float]:
    """Largest difference of each loss and of its gradient, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    classes = bench.sizes.num_classes
    cls_BC, dist_BC, teacher_BC = (torch.randn(32, classes, generator=generator) * 2 for _ in range(3))
    label_B = torch.randint(classes, (32,), generator=generator)

    def on(device: torch.device, distill: str, base: str) -> tuple[Tensor, Tensor]:
        leaves = [value.detach().to(device).requires_grad_() for value in (cls_BC, dist_BC)]
        recipe = bench.sizes.recipe(bench.sizes.students[0][1], distill=distill, base_loss=base, label_smoothing=0.0)
        answer = answer_from_logits(teacher_BC.to(device))
        loss = student_loss(Heads(*leaves), Labels.of(label_B.to(device)), answer, recipe).total
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]
        return loss.detach().cpu(), torch.cat(grads).cpu()

    figures = {}
    for distill in LOSSES:
        for base in ("cross_entropy", "binary"):
            pairs = zip(on(torch.device("cpu"), distill, base), on(bench.device, distill, base), strict=True)
            gaps = [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]
            figures[f"{distill}, {base}"] = max(gaps)
    return figures


def _prepared(bench: Bench) -> float:
    """Largest difference of a pixel that was normalised and mixed."""
    size, rng = bench.sizes.views.size, np.random.default_rng(0)
    view_BHWC = torch.from_numpy(rng.integers(0, 256, (16, size, size, 3), dtype=np.uint8))
    partner_B = torch.arange(16).flip(0)
    lam_B = torch.from_numpy(rng.random(16).astype(np.float32))
    box_B4 = torch.zeros(16, 4, dtype=torch.int32)
    box_B4[::2] = torch.tensor([size // 4, size // 2, 0, size // 3], dtype=torch.int32)
    how = {"mean": bench.sizes.views.mean, "std": bench.sizes.views.std}
    expected = prepare(view_BHWC, partner_B, lam_B, box_B4, **how)
    prepared = prepare(view_BHWC.to(bench.device), partner_B, lam_B, box_B4, **how)
    return float((prepared.cpu() - expected).abs().max())


def _fed_under_load(bench: Bench) -> float:
    """Largest difference of a pixel between a feed on the CPU and one whose device is busy."""
    gaps = []
    with feed_of(bench, torch.device("cpu")) as expected, feed_of(bench, bench.device) as feed:
        fed = []
        for batch in batches_of(feed, _BATCHES):
            fed.append(batch.images)
            _busy(bench.device)  # the copy of the next batch comes while this is computed
        for batch, image_BCHW in zip(batches_of(expected, _BATCHES), fed, strict=True):
            gaps.append(float((image_BCHW.cpu() - batch.images).abs().max()))
    return max(gaps)


def _damaged_copies(bench: Bench) -> int:
    """Batches of which the crc32c changed on the way to the busy device and back."""
    size, rng, damaged = bench.sizes.views.size, np.random.default_rng(1), 0
    for _ in range(8):
        view_BHWC = torch.from_numpy(rng.integers(0, 256, (64, size, size, 3), dtype=np.uint8))
        source = view_BHWC.pin_memory() if bench.device.type == "cuda" else view_BHWC
        _busy(bench.device)
        returned = source.to(bench.device, non_blocking=True).cpu()
        damaged += google_crc32c.value(returned.numpy().tobytes()) != google_crc32c.value(view_BHWC.numpy().tobytes())
    return damaged


def _repeated(bench: Bench) -> float:
    """Largest difference of a weight between two runs of three steps with `deterministic`."""
    weights = []
    for _ in range(2):
        student = trainer(bench, bench.sizes.students[0][1], bench.sizes.precision, deterministic=True)
        with feed_of(bench, bench.device) as feed:
            for step, batch in enumerate(batches_of(feed, 3)):
                student.feed(batch.images, batch.labels, batch.answer, step=step)
        weights.append(torch.cat([param.detach().flatten().cpu() for param in student.core.parameters()]))
    return float((weights[0] - weights[1]).abs().max())


def _busy(device: torch.device) -> None:
    """Queue some milliseconds of products."""
    side = 4096 if device.type == "cuda" else 64
    x_NN = torch.ones(side, side, device=device)
    for _ in range(8):
        x_NN = x_NN @ x_NN / side
