"""Opening, planning and resuming at ImageNet's size (1,281,167 samples, 1,024 shards, 300 views), and at 14 M samples.

    python -m benchmarks.scale [--json] [--node]

The shards are sparse files, the cache has its metadata and ledger and no data chunks. Each size is measured in a
process of its own that has imported what a training run imports.

    open_s      open the index (sizes of all tars checked) and the cache, read the ledger, find that no unit is missing
    plan_s      the order of one epoch with repeated augmentation
    resume_s    from a step number to the items of that step, in the middle of epoch 150
    peak_mb     peak resident memory above what the process had after its imports; process_mb: all of it
    *_14m       the same with 14,000,000 samples in 11,191 shards

With --node also a node of eight ranks on a written cache (see benchmarks.slab): 1,281,167 samples in 1,024 shards, and
1,420,000 in 1,119 (`*_tenth_14m`), a tenth of ImageNet-21k, from which `*_21k` follows by arithmetic (times ten).
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.slab import measure_node
from shards.index.shard_index import open_index
from shards.tars.assemble import assemble
from shards.tars.shard_scan import ShardScan
from shards.views.view_recipe import ViewRecipe
from student.feed.order import Order
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.ledger import LEDGER, LEDGER_BLOCKS, UNKNOWN, encode_values
from teacher_cache.store.spec import CacheSpec, TeacherSpec

VIEWS, CLASSES, REPEATS, BATCH, EPOCHS = 300, 1000, 3, 1024, 300
RECIPE = ViewRecipe()
SIZES = {"": (1_281_167, 1_024), "_14m": (14_000_000, 11_191)}


def write(folder: Path, *, num_samples: int, num_shards: int) -> None:
    """Sparse shards, their index, and a cache of which only metadata and ledger exist."""
    rows = np.full(num_shards, num_samples // num_shards)
    rows[: num_samples % num_shards] += 1
    urls, scans = [], []
    for shard, num_rows in enumerate(rows.tolist()):
        path = folder / f"train-{shard:06d}.tar"
        with path.open("wb") as file:
            file.truncate(num_rows * 112_000)
        urls.append(str(path))
        scans.append(scan(path.name, shard, num_rows))
    index = assemble(urls, scans, num_classes=CLASSES)
    index.save(folder / "shards.index")
    spec = CacheSpec(
        index_fingerprint=index.fingerprint,
        teacher=TeacherSpec(
            name="regnety_160.deit_in1k",
            weights_sha256="0" * 64,
            precision="bf16",
            input_size=224,
            num_classes=CLASSES,
            mean=RECIPE.mean,
            std=RECIPE.std,
        ),
        recipe=RECIPE,
        record=RecordFormat.chosen("hard", CLASSES),
        behaviour="0" * 64,
    )
    cache = TeacherCache.create(str(folder / "cache.zarr"), spec, index, num_views=VIEWS)
    full_BS = np.full((LEDGER_BLOCKS, num_shards), UNKNOWN, np.uint64)
    full_BS[: VIEWS // RECIPE.block_views] = 1
    cache.objects.write(f"{LEDGER}/c/0/0", encode_values(full_BS))


def scan(name: str, shard: int, num_rows: int) -> ShardScan:
    """What the strict scan of a shard of ImageNet would have found."""
    numbers = np.arange(num_rows)
    return ShardScan(
        name=name,
        tar_bytes=num_rows * 112_000,
        key_bytes=b"".join(b"n%08d_%08d" % (shard, n) for n in range(num_rows)),
        key_end_N=((numbers + 1) * 18).astype(np.uint32),
        key_hash_N=(numbers + shard * 10_000_000).astype(np.uint64),
        offset_N=numbers.astype(np.int64) * 112_000 + 512,
        size_N=np.full(num_rows, 110_000, np.int64),
        crc32c_N=numbers.astype(np.uint32),
        label_N=(numbers % CLASSES).astype(np.int32),
        suffix_N=np.zeros(num_rows, np.uint8),
    )


def process_mb() -> float:
    """Peak resident memory of this program in MB (10^6 bytes); unlike ru_maxrss it does not inherit the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(folder: str, pipe: Any) -> None:
    """Time everything once, in a fresh process, and send the numbers."""
    before = process_mb()
    began = time.perf_counter()
    index = open_index(folder)
    with TeacherCache.open(f"{folder}/cache.zarr") as cache:
        order = Order(rows_S=index.rows_S, recipe=RECIPE, batch_size=BATCH, repeats=REPEATS, num_views=cache.num_views)
        needed = order.view_blocks(EPOCHS)
        assert cache.spec.index_fingerprint == index.fingerprint and (cache.ledger()[needed] != 0).all()
    opened = time.perf_counter()
    order = Order(rows_S=index.rows_S, recipe=RECIPE, batch_size=BATCH, repeats=REPEATS, num_views=VIEWS)
    plan = order.plan(0)
    planned = time.perf_counter()
    step = 150 * plan.steps + plan.steps // 2
    epoch, inside = divmod(step, plan.steps)
    items = order.plan(epoch).blocks(inside, 3, 8)
    resumed = time.perf_counter()
    assert items
    pipe.send(
        {
            "open_s": opened - began,
            "plan_s": planned - opened,
            "resume_s": resumed - planned,
            "peak_mb": process_mb() - before,
            "process_mb": process_mb(),
        }
    )


def node() -> dict[str, float]:
    """The slab of ImageNet-1k as measured, of ImageNet-21k as a tenth measured, times ten."""
    num_samples, num_shards = SIZES[""]
    result = measure_node(num_samples=num_samples, num_shards=num_shards)
    tenth = measure_node(num_samples=1_420_000, num_shards=1_119)
    result |= {f"{name}_tenth_14m": value for name, value in tenth.items()}
    grows = ("slab_s", "slab_mb_per_node", "slab_file_mb")
    return result | {f"{name}_21k": 10 * tenth[name] for name in grows}


def main() -> None:
    """Print both sizes, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--node", action="store_true", help="also the slab: writes .5 GB per case, takes minutes")
    parser.add_argument("--repeat", type=int, default=3, help="processes per size; medians are printed")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    result: dict[str, float] = {}
    for suffix, (num_samples, num_shards) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), num_samples=num_samples, num_shards=num_shards)
            runs = []
            for _ in range(options.repeat):
                ours, theirs = spawn.Pipe(duplex=False)
                process = spawn.Process(target=measure, args=(folder, theirs))
                process.start()
                theirs.close()
                runs.append(ours.recv())
                process.join()
        result |= {name + suffix: float(np.median([run[name] for run in runs])) for name in runs[0]}
    if options.node:
        result |= node()
    for name, value in result.items():
        print(f"{name:>26}  {value:.3f}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
