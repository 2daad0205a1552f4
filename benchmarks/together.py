"""What sharing a pass saves: N students on each rendered batch against N runs of one student.

    python -m benchmarks.together [--json] [--students N] [--rounds N] [--model NAME] [--set KEY=VALUE …] [--shards S]

One run on one CPU core, everything real: JPEGs are decoded and augmented with the DeiT recipe at 224, 64-byte records
of 1,000 classes are gathered and compared digest by digest, students of distinct τ take a step. Rendering happens in
the main process, so that data and step add up and the bound is exact; in training, workers hide rendering behind the
steps until they no longer can, which is when sharing begins to pay. Each round renders the same steps in both ways, in
turning order; ratios are medians over rounds of ratios inside a round.

    ratio        time of N students in one pass ÷ time of N runs
    bound        (data + N·step) / (N·(data + step)), with data and step measured in the N runs
    data_share   data ÷ (data + step) of one run; step_share is the rest

The default student is small, so that data and step weigh about the same, as they do when a GPU takes the steps; with
--model deit_tiny_distilled_patch16_224 and no --set the step weighs 98 % on a CPU, and the bound is close to 1.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.synthetic_jpeg import synthetic_jpeg
from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex, open_index
from shards.rng import stream
from shards.tars.writer import write_samples
from shards.views.behaviour import behaviour_digest
from shards.views.rendering import render_ahead
from shards.views.view_recipe import recipe_named
from shards.world import World
from student.feed.answers import CachedTeacher
from student.feed.batch import ready
from student.feed.cache_check import Views, views_of_caches
from student.feed.order import Order
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.overrides import override, parse_sets
from student.recipe.papers import recipe_for
from student.recipe.settings import TrainSettings
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.heap import keep_freed_memory
from teacher_cache.network.teacher import Teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.stage1.build import build_cache
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import CacheSpec, TeacherSpec

CLASSES, VIEWS, BATCH, STEPS = 1000, 2, 64, 2
SMALL = ("model_args.embed_dim=64", "model_args.depth=2", "model_args.num_heads=1")


def make_shards(folder: Path, count: int = BATCH * STEPS) -> ShardIndex:
    """Synthetic JPEGs of 500×375; by default enough for the steps of a round."""
    samples = [(f"s{n:04}", n % CLASSES, "jpg", synthetic_jpeg(n)) for n in range(count)]
    return write_samples(samples, folder, samples_per_shard=len(samples), num_classes=CLASSES)


def make_cache(folder: Path, index: ShardIndex, num_views: int = VIEWS) -> TeacherCache:
    """Records of 64 bytes from a teacher of one layer: what they say does not matter, what reading them costs does."""
    views = recipe_named("deit", block_views=num_views)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(147, index.num_classes))
    spec = TeacherSpec(
        name="linear",
        weights_sha256="0" * 64,
        precision="fp32",
        input_size=views.size,
        num_classes=index.num_classes,
        mean=views.mean,
        std=views.std,
    )
    record = RecordFormat.automatic(index.num_classes)
    logit_NC = np.stack([stream(0, "logits", n).uniforms(index.num_classes) for n in range(512)]).astype(np.float32)
    cache_spec = CacheSpec(
        index_fingerprint=index.fingerprint,
        teacher=spec,
        recipe=views,
        record=record,
        behaviour=behaviour_digest(views),
    )
    basis = fit_basis(logit_NC * 8, record) if record.needs_basis else None
    keep_freed_memory()
    teacher = Teacher(network, spec, device=torch.device("cpu"))
    url = str(folder / "cache.zarr")
    with TeacherCache.create(url, cache_spec, index, basis, num_views=num_views) as cache, ShardReader(index) as reader:
        for _ in build_cache(cache, index, teacher, reader=reader, world=World(), workers=0, batch_size=BATCH):
            pass
    return TeacherCache.open(url)


class Bench:
    """N students and the real way to a batch."""

    def __init__(
        self, stack: ExitStack, recipe: StudentRecipe, index: ShardIndex, cache: TeacherCache, num_students: int
    ) -> None:
        """Build the students, one per τ."""
        self.group = ProcessGroup(World(), torch.device("cpu"))
        self.views: Views = views_of_caches([cache], index, views_used=None)
        self.reader = stack.enter_context(ShardReader(index))
        names = (lambda shard, row: (index.names[shard], index.key(shard, row)),)
        self.source = stack.enter_context(CachedTeacher(cache, [range(1)], name_of=names[0]))
        self.source.begin_epoch(0)
        order = Order(rows_S=index.rows_S, recipe=self.views.recipe, batch_size=BATCH, num_views=VIEWS)
        self.plan = order.plan(0)
        self.steps = min(STEPS, self.plan.steps)
        self.trainers = [
            Trainer(
                replace(recipe, distill="soft", temperature=1.0 + n),
                TrainSettings(),
                num_classes=index.num_classes,
                steps_per_epoch=1000,
                group=self.group,
            )
            for n in range(num_students)
        ]
        self.clock = 0

    def run(self, students: Sequence[Trainer]) -> tuple[float, float]:
        """One pass over the steps for these students; seconds of data and of steps."""
        recipe = self.views.recipe
        tasks = [self.plan.blocks(step) for step in range(self.steps)]
        stream_ = self._timed(render_ahead(tasks, reader=self.reader, recipe=recipe, workers=0, died=RunError))
        data_s = step_s = 0.0
        for seconds, loaded in stream_:
            began = time.perf_counter()
            batch = ready(loaded, recipe, self.source, self.group.device)
            fed = time.perf_counter()
            for trainer in students:
                trainer.feed(*batch, step=self.clock)
            self.clock += 1
            data_s += seconds + fed - began
            step_s += time.perf_counter() - fed
        return data_s, step_s

    @staticmethod
    def _timed(loaded: Iterator[Any]) -> Iterator[tuple[float, Any]]:
        while True:
            began = time.perf_counter()
            try:
                item = next(loaded)
            except StopIteration:
                return
            yield time.perf_counter() - began, item


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Medians over rounds, in which both ways alternate in turning order."""
    rows = []
    bench.run(bench.trainers)  # warms up every student
    for number in range(rounds):
        alone: list[tuple[float, float]] = []
        together = (0.0, 0.0)
        for way in ("alone", "together") if number % 2 else ("together", "alone"):
            if way == "alone":
                alone = [bench.run([trainer]) for trainer in bench.trainers]
            else:
                together = bench.run(bench.trainers)
        data, step = (statistics.fmean(part) for part in zip(*alone, strict=True))
        count = len(alone)
        rows.append(
            {
                "ratio": sum(together) / (count * (data + step)),
                "bound": (data + count * step) / (count * (data + step)),
                "data_share": data / (data + step),
                "together_s": sum(together),
                "alone_s": count * (data + step),
            }
        )
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    figures["ratio_over_bound"] = statistics.median(row["ratio"] / row["bound"] for row in rows)
    return {**figures, "step_share": 1 - figures["data_share"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--shards", help="your own shards instead of synthetic images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = tuple(options.sets) if options.model or options.sets else SMALL
    model = options.model or "deit_tiny_distilled_patch16_224"
    recipe = override(recipe_for(model, stage=0, with_cache=True), parse_sets(sets))
    recipe = replace(recipe, batch_size=BATCH, repeats=1, epochs=VIEWS, warmup_epochs=0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        index = open_index(options.shards) if options.shards else make_shards(Path(folder) / "shards")
        cache = stack.enter_context(make_cache(Path(folder), index))
        bench = Bench(stack, recipe, index, cache, options.students)
        figures = measure(bench, options.rounds)
    figures = {"students": options.students, "batch": BATCH, "model": model, "set": list(sets), **figures}
    print(
        f"{options.students} students of {model} {' '.join(sets)}, batch {BATCH}, one core, torch {torch.__version__}\n"
        f"one pass {figures['together_s']:.2f} s, {options.students} runs {figures['alone_s']:.2f} s: "
        f"ratio {figures['ratio']:.3f}, bound {figures['bound']:.3f} "
        f"(ratio ÷ bound {figures['ratio_over_bound']:.3f})\n"
        f"of one run: data {100 * figures['data_share']:.0f} %, step {100 * figures['step_share']:.0f} %"
    )
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
