"""What distillation costs in a training step: without a teacher, from the cache, with the teacher in the loop.

    python -m benchmarks.step [--json] [--rounds N] [--batch B] [--distill hard|soft]

One run on the CPU, RegNetY-16GF (random weights) and DeiT-Ti distilled at 224. A step starts with a rendered batch in
memory (rendering is the same in all three) and ends with updated weights: normalise and mix, the teacher's answer,
forward, backward, AdamW, EMA. The cached step gathers from a slab of ImageNet's size, compares every pixel digest and
decodes 64-byte records for the loss. Steps are interleaved: ratios are medians of ratios of neighbouring steps (join)
or of ratios inside a round (the others).

    join_ratio           cached ÷ plain
    speedup              online ÷ cached
    speedup_over_bound   speedup ÷ ((teacher forward + plain step) / plain step)
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from shards.rng import stream
from shards.views.blocks import ViewBatch
from shards.views.mixing import block_mix
from shards.views.view_recipe import ViewRecipe
from shards.world import World
from student.feed.answers import CachedTeacher, OnlineTeacher, TeacherSource
from student.feed.batch import ready
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.heap import keep_freed_memory
from teacher_cache.network.teacher import TeacherOptions, load_teacher
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis

CLASSES, ROWS, SHARDS = 1000, 1251, 1024
VIEWS = ViewRecipe()


def slab_cache(logit_NC: np.ndarray) -> Any:
    """A cache of ImageNet's shape whose units repeat the records of some logits; only what the join asks for."""
    record = RecordFormat.chosen("lowrank", CLASSES, num_bytes=64)
    basis = fit_basis(logit_NC, record)
    fields = RecordCodec(record, basis).encode(logit_NC[np.arange(ROWS) % len(logit_NC)])

    def read_unit(view_block: int, shard: int) -> dict[str, np.ndarray]:
        digest = np.arange(shard * ROWS, (shard + 1) * ROWS, dtype=np.uint32)
        return {name: values[None] for name, values in {**fields, "pixel_digest": digest}.items()}

    spec = SimpleNamespace(record=record, recipe=VIEWS)
    rows_S = np.full(SHARDS, ROWS, np.int64)
    return SimpleNamespace(
        spec=spec,
        basis=basis,
        rows_S=rows_S,
        views_per_unit=1,
        url="memory",
        identity="benchmark",
        row_fields={
            **{name: (values.dtype, values.shape[1:]) for name, values in fields.items()},
            "pixel_digest": (np.dtype(np.uint32), ()),
        },
        read_unit=read_unit,
    )


def loaded_batch(size: int, number: int) -> ViewBatch:
    """A batch as the loader gives it: one block after the other from random places, random pixels."""
    rng = stream(number, "batch")
    shard_B = np.array([rng.below(SHARDS) for _ in range(size)], np.int32)
    row_B = np.array([rng.below(ROWS) for _ in range(size)], np.int32)
    mixes = [block_mix(VIEWS, "shard", block, 16, number) for block in range(size // 16)]
    pixels = torch.randint(0, 256, (size, 224, 224, 3), dtype=torch.uint8).numpy()
    return ViewBatch(
        shard_B=shard_B,
        row_B=row_B,
        view_B=np.zeros(size, np.int32),
        label_B=np.array([rng.below(CLASSES) for _ in range(size)], np.int64),
        pixel_digest_B=(shard_B.astype(np.uint32) * ROWS + row_B.astype(np.uint32)),
        partner_B=np.concatenate([mix.partner_N + 16 * n for n, mix in enumerate(mixes)]).astype(np.int32),
        lam_B=np.concatenate([mix.lam_N for mix in mixes]),
        box_B4=np.concatenate([mix.box_N4 for mix in mixes]),
        view_BHWC=pixels,
    )


def student(distill: str, group: ProcessGroup) -> Trainer:
    """DeiT-Ti distilled with its recipe."""
    recipe = StudentRecipe(model="deit_tiny_distilled_patch16_224", distill=distill, temperature=3.0)
    settings = TrainSettings(log_every=50)
    return Trainer(recipe, settings, num_classes=CLASSES, steps_per_epoch=1000, group=group)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(*, rounds: int, batch_size: int, distill: str) -> dict[str, Any]:
    """Medians in seconds, and the ratios of a run."""
    torch.manual_seed(0)
    group = ProcessGroup(World(), torch.device("cpu"))
    logit_NC = np.stack([stream(0, "logits", n).uniforms(CLASSES) for n in range(2000)]).astype(np.float32) * 8
    cached = CachedTeacher(slab_cache(logit_NC), [range(1)], name_of=lambda s, r: (str(s), str(r)))
    cached.begin_epoch(0)
    keep_freed_memory()
    network = load_teacher("regnety_160.deit_in1k", num_classes=CLASSES, options=TeacherOptions(pretrained=False))
    batches = [loaded_batch(batch_size, n) for n in range(4)]
    taught, untaught = student(distill, group), student("none", group)
    taught_online = student(distill, group)
    clock = iter(range(10**6))

    def step(trainer: Trainer, source: TeacherSource) -> float:
        n = next(clock)

        def one() -> None:
            trainer.feed(*ready(batches[n % len(batches)], VIEWS, source, group.device), step=n)

        return seconds(one)

    none, online = TeacherSource(), OnlineTeacher(network)
    x_BCHW = ready(batches[0], VIEWS, none, group.device)[0]
    for trainer, source in ((untaught, none), (taught, cached), (taught_online, online)):
        step(trainer, source)
    times: dict[str, list[float]] = {"plain": [], "cached": [], "online": [], "teacher": []}
    join: list[float] = []
    for _ in range(rounds):
        # Cheap steps alternate several times a round, in turning order, so that drift of the machine cancels.
        pairs = [(step(untaught, none), step(taught, cached)) for _ in range(4)]
        swapped = [(step(taught, cached), step(untaught, none)) for _ in range(4)]
        pairs += [(plain_s, cached_s) for cached_s, plain_s in swapped]
        join += [cached_s / plain_s for plain_s, cached_s in pairs]
        times["plain"].append(statistics.median(plain for plain, _ in pairs))
        times["cached"].append(statistics.median(taught_s for _, taught_s in pairs))
        times["online"].append(step(taught_online, online))
        times["teacher"].append(seconds(lambda: network.logits(x_BCHW)))
    return summary(times, join, batch_size=batch_size, distill=distill)


def summary(times: dict[str, list[float]], join: list[float], *, batch_size: int, distill: str) -> dict[str, Any]:
    """Medians over rounds, and ratios; `join` are the ratios of neighbouring steps."""
    rounds = list(zip(times["plain"], times["cached"], times["online"], times["teacher"], strict=True))
    speedup = [online / cached for _, cached, online, _ in rounds]
    # online ÷ cached ÷ ((teacher + plain) ÷ plain) = online ÷ (teacher + plain) ÷ (cached ÷ plain), and the last is
    # the join ratio, of which there are many more measurements than of a step with the teacher in it.
    over = [online / (teacher + plain) for plain, _, online, teacher in rounds]
    return {
        "join_ratio": statistics.median(join),
        "speedup": statistics.median(speedup),
        "speedup_over_bound": statistics.median(over) / statistics.median(join),
        **{f"{name}_s": statistics.median(values) for name, values in times.items()},
        "join_ratio_quartiles": statistics.quantiles(join, n=4),
        "rounds": len(rounds),
        "batch_size": batch_size,
        "distill": distill,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Print the table, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--distill", choices=("hard", "soft"), default="soft")
    options = parser.parse_args()
    result = measure(rounds=options.rounds, batch_size=options.batch, distill=options.distill)
    for name, value in result.items():
        print(f"{name:>20}  {value:.4f}" if isinstance(value, float) else f"{name:>20}  {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
