"""Stage 1 on an object store that answers late: its time on a local disk ÷ its time on the store.

    python -m benchmarks.object_store [--json] [--delay-ms 50] [--teacher-s 3] [--units 7] [--rounds 3]

A round makes the same cache twice, in a folder and in the store; the next round begins with the other side. The store
is fsspec's memory:// without a server, so that nothing else takes the processor: each request for an object waits
`--delay-ms` first, and is then answered at once. The teacher sleeps `--teacher-s` in the forwards of each unit (chunk
of a cache) instead of computing, so the ratio depends little on the machine. One worker renders JPEGs at 224 px;
records have 64 bytes.

Both times run from the end of the first forward to the end of `build_cache`. The last commit, which no later forward
hides, counts; the start of the worker and the opening of the cache do not. Bandwidth, errors and retries of a real
server are not in the figure.

JSON: `ratio` (median over the rounds), `ratios`, `local_s`, `store_s` (medians), `requests_per_unit`, and the settings.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.stage1 import CLASSES, VIEWS, new_cache, photo_shards
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.views.view_recipe import recipe_named
from shards.world import World
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.stage1.build import build_cache
from teacher_cache.stage1.stage1_events import BatchDone, BuildFinished
from teacher_cache.store.place import Place

_ROWS = 8
"""Images of the shard, and of a teacher batch: a forward for each view of a unit."""


def main() -> None:
    """Measure in turns and print the figures, with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--delay-ms", type=float, default=50, help="before each answer of the store")
    parser.add_argument("--teacher-s", type=float, default=3, help="of the forwards of one unit")
    parser.add_argument("--units", type=int, default=7, help="of one cache")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of caches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(
        units=options.units, rounds=options.rounds, delay_s=options.delay_ms / 1000, teacher_s=options.teacher_s
    )
    for name, value in result.items():
        print(f"{name:>18}  {value:.3f}" if isinstance(value, float) else f"{name:>18}  {value}")
    if options.json:
        print(json.dumps(result))


def measure(*, units: int, rounds: int, delay_s: float, teacher_s: float) -> dict[str, Any]:
    """Ratios, seconds and requests of one run."""
    store = LateStore(delay_s)
    seconds: dict[str, list[float]] = {"local": [], "store": []}
    with tempfile.TemporaryDirectory() as name, mock.patch.object(Place, "reach", store.reach_of(Place.reach)):
        index = photo_shards(Path(name) / "shards", _ROWS)
        teacher = sleeping_teacher(teacher_s / VIEWS)
        for number in range(rounds):
            places: dict[str, Path | str] = {
                "local": Path(name) / f"{number}.zarr",
                "store": f"memory://{Path(name).name}/{number}.zarr",
            }
            for side in sorted(places, reverse=bool(number % 2)):
                seconds[side].append(build_s(places[side], index, teacher, units))
                print(f"round {number + 1}: {side} {seconds[side][-1]:.2f} s", flush=True)
    ratios = [local / late for local, late in zip(seconds["local"], seconds["store"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        **{f"{side}_s": statistics.median(values) for side, values in seconds.items()},
        "requests_per_unit": store.num_requests / (units * rounds),
        "delay_ms": delay_s * 1000,
        "teacher_s": teacher_s,
        "units": units,
        "rounds": rounds,
    }


class LateStore:
    """Delays every request to a remote place.

    Attributes:
        num_requests: those to remote places so far.
    """

    def __init__(self, delay_s: float) -> None:
        """Set the delay before each request, in seconds."""
        self.num_requests, self._delay_s = 0, delay_s

    def reach_of(self, reach: Any) -> Any:
        """A `Place.reach` that waits first where the place is remote."""

        async def late(place: Place, key: str, work: Coroutine[Any, Any, Any]) -> Any:
            if place.folder is None:
                self.num_requests += 1
                await asyncio.sleep(self._delay_s)
            return await reach(place, key, work)

        return late


def sleeping_teacher(forward_s: float) -> Teacher:
    """A teacher that sleeps in each forward and repeats the logits of one random batch."""
    torch.manual_seed(0)
    teacher = load_teacher(
        "test_resnet.r160_in1k", num_classes=CLASSES, input_size=224, options=TeacherOptions(pretrained=False)
    )
    logit_BC = torch.randn((_ROWS, CLASSES))

    def asleep(image_BCHW: torch.Tensor) -> torch.Tensor:
        assert len(image_BCHW) == len(logit_BC), "stage 1 pads every batch"
        time.sleep(forward_s)
        return logit_BC.clone()

    teacher.logits = asleep  # type: ignore[method-assign]
    return teacher


def build_s(url: Path | str, index: ShardIndex, teacher: Teacher, units: int) -> float:
    """Seconds from the end of the first forward of a new cache to its last commit."""
    began = 0.0
    recipe = recipe_named("deit", block_size=4)
    with new_cache(url, index, teacher, recipe, num_views=VIEWS * units) as cache, ShardReader(index) as reader:
        for event in build_cache(cache, index, teacher, reader=reader, world=World(), workers=1, batch_size=_ROWS):
            if isinstance(event, BatchDone):
                began = began or time.perf_counter()
            elif isinstance(event, BuildFinished):
                assert event.missing_units == 0, "every unit was committed"
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
