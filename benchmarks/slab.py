"""A node of eight ranks before its first step, and at the change of its records, on a written cache of ImageNet's size.

The cache has one view block: six views of every sample in 64-byte records, written unit by unit with `commit_unit`.
All shards are one small tar under many names. Each rank is a process that does what a run does: open index and cache,
plan, start workers, map the slab, render the first batch, compare its digests; then it goes on to views 3–5.

    slab_s              from the opened cache to the mapped slab, the slowest rank
    first_step_s        from the start of a rank's process, imports apart, to its first batch with compared digests
    slab_mb_per_node    memory of the mapped slabs, proportional shares of all ranks added (Pss of smaps), the maximum
                        of the two super-epochs; MB = 10^6 bytes
    slab_file_mb        the file on scratch that they map
    read_ratio          bytes that all ranks read between opening the cache and the second super-epoch ÷ bytes on disk
                        of the six views they used (records, digests and ledger entries)
"""

import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import simplejpeg

from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex, open_index
from shards.tars.assemble import assemble
from shards.tars.shard_scan import ShardScan
from shards.views.behaviour import fixed_image
from shards.views.blocks import render_block
from shards.views.rendering import render_ahead
from shards.views.view_recipe import ViewRecipe
from student.feed.order import Order
from student.feed.pixel_check import PixelCheck
from student.feed.slab import SlabLoader
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import CacheSpec, TeacherSpec
from tests.logits_like import make_logits

RECIPE = ViewRecipe()
CLASSES, BATCH, REPEATS, RANKS = 1000, 1024, 3, 8
RECORD = RecordFormat.chosen("lowrank", CLASSES, num_bytes=64)
Unit = dict[str, np.ndarray[Any, Any]]


def measure_node(*, num_samples: int, num_shards: int, ranks: int = RANKS) -> dict[str, float]:
    """Write shards and cache, run the ranks of one node, and give the figures of the module's docstring."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used_bytes = _write(folder, num_samples=num_samples, num_shards=num_shards)
        (folder / "scratch").mkdir()
        spawn = multiprocessing.get_context("spawn")
        pipes, processes = [], []
        for rank in range(ranks):
            ours, theirs = spawn.Pipe()
            processes.append(spawn.Process(target=_rank, args=(name, rank, ranks, theirs)))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        first = _told(pipes)
        second = _told(pipes)
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
    return {
        "slab_s": max(rank["slab_s"] for rank in first),
        "first_step_s": max(rank["first_step_s"] for rank in first),
        "slab_mb_per_node": max(sum(rank["pss"] for rank in some) for some in (first, second)) / 1e6,
        "slab_file_mb": first[0]["file"] / 1e6,
        "read_ratio": sum(rank["read"] for rank in second) / used_bytes,
    }


def _told(pipes: list[Connection]) -> list[dict[str, float]]:
    """What every rank says, once all have come to the same point and looked at their memory there."""
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("look")
    return [pipe.recv() for pipe in pipes]


def _rank(name: str, rank: int, ranks: int, pipe: Connection) -> None:
    began = time.perf_counter()
    index = open_index(name)
    order = _order(index)
    plan, schedule = order.plan(0), [order.views(epoch) for epoch in range(6)]
    with (
        TeacherCache.open(f"{name}/cache.zarr") as cache,
        ShardReader(index) as reader,
        SlabLoader(cache, schedule, scratch=Path(name) / "scratch") as slabs,
    ):
        assert not cache.missing()
        before, opened = _read_bytes(), time.perf_counter()
        task = plan.blocks(0, rank, ranks)
        loaded = render_ahead([task, task], reader=reader, recipe=RECIPE, workers=1, died=RunError)
        slab = slabs.epoch(0)
        mapped = time.perf_counter()
        batch = next(loaded)
        record = slab.gather(batch)
        PixelCheck(lambda shard, row: (str(shard), str(row))).compare(batch, record["pixel_digest"])
        stepped = time.perf_counter()
        figures: dict[str, float] = {"slab_s": mapped - opened, "first_step_s": stepped - began, "file": slab.num_bytes}
        for epoch in (0, 3):
            slab = slabs.epoch(epoch)
            for view in schedule[epoch]:  # every record is used in the course of a super-epoch
                for shard in range(cache.num_shards):
                    slab.gather(_whole_shard(batch, shard, int(cache.rows_S[shard]), view))
            pipe.send("there")
            pipe.recv()
            pipe.send({**figures, "read": _read_bytes() - before, "pss": _slab_pss()})
        pipe.recv()
        loaded.close()


def _whole_shard(batch: Any, shard: int, rows: int, view: int) -> Any:
    """A batch of all rows of a shard in one view, as far as a gather looks at it."""
    return batch._replace(
        shard_B=np.full(rows, shard, np.int32),
        row_B=np.arange(rows, dtype=np.int32),
        view_B=np.full(rows, view, np.int32),
    )


def _order(index: ShardIndex) -> Order:
    return Order(rows_S=index.rows_S, recipe=RECIPE, batch_size=BATCH, repeats=REPEATS, num_views=RECIPE.block_views)


def _read_bytes() -> int:
    """What this process has read through system calls: a mapped slab costs none."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


def _slab_pss() -> int:
    """This process's proportional share of its mapped slabs, bytes."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and not line.startswith("Pss"):
            inside = "deit-teacher-cache" in line or ("(deleted)" in line and "/scratch/" in line)
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def _write(folder: Path, *, num_samples: int, num_shards: int) -> int:
    """Shards, index and a full cache of one view block; bytes on disk of what a student reads of it."""
    rows = np.full(num_shards, num_samples // num_shards)
    rows[: num_samples % num_shards] += 1
    index = _write_shards(folder, rows.tolist())
    logit_NC = make_logits(8192, CLASSES)
    basis = fit_basis(logit_NC, RECORD)
    spec = CacheSpec(
        index_fingerprint=index.fingerprint,
        teacher=TeacherSpec(
            name="none",
            weights_sha256="0" * 64,
            precision="fp32",
            input_size=RECIPE.size,
            num_classes=CLASSES,
            mean=RECIPE.mean,
            std=RECIPE.std,
        ),
        recipe=RECIPE,
        record=RECORD,
        behaviour="0" * 64,
    )
    with TeacherCache.create(f"{folder}/cache.zarr", spec, index, basis, num_views=RECIPE.block_views) as cache:
        _write_units(cache, index, logit_NC, basis)
        sizes = [cache.unit_bytes(0, shard) for shard in range(num_shards)]
    return sum(size for unit in sizes for name, size in unit.items() if not name.startswith("fidelity"))


def _write_shards(folder: Path, rows: list[int]) -> ShardIndex:
    """One file of images under the name of every shard; keys are those of a real set in length."""
    data = simplejpeg.encode_jpeg(fixed_image(96, 96), quality=75, colorspace="RGB", colorsubsampling="420")
    place = -(-len(data) // 512) * 512 + 512
    first, most = folder / "train-000000.tar", max(rows)
    first.write_bytes((bytes(512) + data.ljust(place - 512, b"\0")) * most)
    checksum = google_crc32c.value(data)
    scans = []
    for shard, num_rows in enumerate(rows):
        path = folder / f"train-{shard:06d}.tar"
        if shard:
            os.link(first, path)
        numbers = np.arange(num_rows)
        scans.append(
            ShardScan(
                name=path.name,
                tar_bytes=place * most,
                key_bytes=b"".join(b"n%08d_%08d" % (shard, n) for n in range(num_rows)),
                key_end_N=((numbers + 1) * 18).astype(np.uint32),
                key_hash_N=(numbers + shard * 10_000_000).astype(np.uint64),
                offset_N=numbers.astype(np.int64) * place + 512,
                size_N=np.full(num_rows, len(data), np.int64),
                crc32c_N=np.full(num_rows, checksum, np.uint32),
                label_N=(numbers % CLASSES).astype(np.int32),
                suffix_N=np.zeros(num_rows, np.uint8),
            )
        )
    index = assemble([str(folder / scan.name) for scan in scans], scans, num_classes=CLASSES)
    index.save(folder / "shards.index")
    return index


def _write_units(cache: TeacherCache, index: ShardIndex, logit_NC: Any, basis: TailBasis) -> None:
    """Every unit, with real records in another order each, and real digests where the first step will look."""
    encoded = RecordCodec(RECORD, basis).encode(logit_NC)
    rng = np.random.Generator(np.random.PCG64(0))
    wanted: dict[int, set[int]] = {}
    for part in _order(index).plan(0).blocks(0):
        wanted.setdefault(part.shard, set()).add(part.block)
    with ShardReader(index) as reader:
        for shard, num_rows in enumerate(index.rows_S.tolist()):
            pick_VR = rng.integers(0, len(logit_NC), (RECIPE.block_views, num_rows))
            unit: Unit = {name: values[pick_VR] for name, values in encoded.items()}
            unit["pixel_digest"] = rng.integers(0, 2**32, (RECIPE.block_views, num_rows), np.uint32)
            for block in wanted.get(shard, ()):
                batch = render_block(reader, RECIPE, shard, block, range(REPEATS))
                unit["pixel_digest"][batch.view_B, batch.row_B] = batch.pixel_digest_B
            places_F2 = cache.fidelity_positions(0, shard)
            if len(places_F2):
                unit["fidelity_logit"] = logit_NC[pick_VR[places_F2[:, 0], places_F2[:, 1]]]
            cache.commit_unit(0, shard, unit)
