"""Small things for the tests of stage 1: shards, a recipe with everything on, a teacher, and a cache made in one go."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.tars.writer import write_samples
from shards.views.view_recipe import ViewRecipe, recipe_named
from shards.world import World
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.network.timm_network import timm_network
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.stage1.build import build_cache
from teacher_cache.stage1.opening import open_or_create
from teacher_cache.stage1.stage1_events import BuildEvent, BuildFinished, CacheOpened
from teacher_cache.store.cache import TeacherCache

SIZE, CLASSES, BATCH = 32, 12, 8
TINY = "test_resnet.r160_in1k"


def make_shards(folder: Path, num_samples: int = 44, per_shard: int = 20, num_classes: int = CLASSES) -> ShardIndex:
    """Smooth random images; the last shard is shorter and ends in a block of its own size."""
    rng = np.random.default_rng(7)

    def samples() -> Iterator[tuple[str, int, str, bytes]]:
        for n in range(num_samples):
            small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image = cv2.resize(small, (48, 40), interpolation=cv2.INTER_CUBIC)
            yield f"photo{n:03d}", n % num_classes, "png", cv2.imencode(".png", image)[1].tobytes()

    return write_samples(samples(), folder, samples_per_shard=per_shard, num_classes=num_classes)


def views(**changes: Any) -> ViewRecipe:
    """The DeiT recipe, at 32 pixels, in blocks of 4 and units of 2 views."""
    return recipe_named("deit", **{"size": SIZE, "block_size": 4, "block_views": 2, **changes})


def tiny_teacher(seed: int = 0, num_classes: int = CLASSES, precision: str = "fp32") -> Teacher:
    """A small CNN with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return load_teacher(
        TINY, num_classes=num_classes, input_size=SIZE, precision=precision, options=TeacherOptions(pretrained=False)
    )


def save_weights(path: Path, num_classes: int = CLASSES) -> None:
    """Write random weights of that network, as a file of timm's."""
    torch.manual_seed(0)
    network = timm_network(TINY, {}, None, num_classes=num_classes, input_size=SIZE, pretrained=False).network
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def loaded(name: str, **arguments: Any) -> Teacher:
    """A teacher; fields of `TeacherOptions` may stand among the arguments."""
    options = {key: arguments.pop(key) for key in TeacherOptions.__slots__ if key in arguments}
    return load_teacher(name, **arguments, options=TeacherOptions(**options))


def opened(
    url: Path | str,
    index: ShardIndex,
    teacher: Teacher,
    *,
    num_views: int = 4,
    record: RecordFormat | None = None,
    recipe: ViewRecipe | None = None,
    world: World = World(),  # noqa: B008 - a value
) -> TeacherCache:
    """The cache, made if it is not there."""
    record = record or RecordFormat.chosen("dense8", index.num_classes)
    with ShardReader(index) as reader:
        events = open_or_create(
            url, index, teacher, recipe or views(), record, num_views=num_views, reader=reader, world=world
        )
        last = list(events)[-1]
    assert isinstance(last, CacheOpened)
    return last.cache


def build(
    cache: TeacherCache,
    index: ShardIndex,
    teacher: Teacher,
    *,
    world: World = World(),  # noqa: B008 - a value
    workers: int = 0,
    batch_size: int = BATCH,
    should_stop: Callable[[], bool] = bool,
) -> list[BuildEvent]:
    """Run stage 1 to its end; all its events."""
    with ShardReader(index) as reader:
        events = build_cache(
            cache,
            index,
            teacher,
            reader=reader,
            world=world,
            workers=workers,
            batch_size=batch_size,
            should_stop=should_stop,
        )
        return list(events)


def end_of(events: list[BuildEvent]) -> BuildFinished:
    """The last event."""
    assert isinstance(events[-1], BuildFinished)
    return events[-1]
