"""The feed in a loop of one's own: what the door costs, and such a loop beside timm's loader with the teacher in it.

    python -m benchmarks.feed [--json] [--rounds N] [--loops N] [--epochs N] [--teacher NAME] [--student NAME]

Everything real, on one CPU core and in one process: JPEGs of 500×375 are decoded and augmented with the DeiT recipe at
224, 64-byte records of 1,000 classes are gathered, compared digest by digest and decoded at τ = 3.

    ratio        images/s of a loop over `Feed` that takes images, soft targets, log p and keys ÷ images/s of the path
                 below the door that the trainer's batches come from (plan → rendering → normalise, mix, join → log p).
                 No network runs, so nothing hides what the door adds; pairs of neighbouring epochs in turning order,
                 median of their ratios
    feed_loop    images/s of the same loop with a student's step (forward, backward, SGD)
    timm_loop    images/s of that student on timm's transforms and Mixup through a DataLoader, and the teacher, with
                 random weights, answering in the loop
    speedup      feed_loop ÷ timm_loop, median of the ratios of neighbouring epochs

and what the host pays beside a GPU, with four workers (benchmarks/feed_host.py): main_us_per_image, worker_us_per_view.
--rounds 0 and --loops 0 leave out the parts above.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import DataLoader, Dataset

from benchmarks.feed_host import host_costs
from benchmarks.together import CLASSES, make_cache, make_shards
from benchmarks.views import timm_transform, work_around_posterize
from shards.errors import RunError
from shards.index.reader import ShardReader
from shards.views.rendering import render_ahead
from student.feed.answers import CachedTeacher
from student.feed.batch import ready
from student.feed.feed import Feed
from teacher_cache.network.heap import keep_freed_memory
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher

BATCH, TAU = 32, 3.0


class Photos(Dataset[tuple[Tensor, int]]):
    """The images of shards as timm's datasets give them: Pillow decode, timm's transform, label."""

    def __init__(self, reader: ShardReader) -> None:
        """Read by offset, as ours does."""
        self._reader, self._transform = reader, timm_transform()

    def __len__(self) -> int:
        """Samples."""
        return self._reader.index.num_samples

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        """One view, normalised, and its label; the shards are one."""
        image = Image.open(io.BytesIO(self._reader.image_bytes(0, n))).convert("RGB")
        return self._transform(image), int(self._reader.index.label_N[n])


def loop(feed: Feed, epoch: int, step: Callable[[Tensor, Tensor, Tensor], object]) -> int:
    """A loop of one's own; returns the images seen."""
    seen = 0
    for batch in feed.epoch(epoch):
        step(batch.images, batch.targets, batch.teacher.log_prob(TAU))
        seen += len(batch.keys)
    return seen


def below(feed: Feed, source: CachedTeacher, reader: ShardReader, epoch: int) -> int:
    """The trainer's batches without the door: the parts of the same epoch, put together by hand."""
    source.begin_epoch(epoch)
    seen, recipe = 0, feed.views.recipe
    tasks = [feed.plan(epoch).blocks(step) for step in range(feed.order.steps)]
    for rendered in render_ahead(tasks, reader=reader, recipe=recipe, workers=0, died=RunError):
        images, _, answer = ready(rendered, recipe, source, feed.device)
        assert answer is not None, "there is a cache"
        answer.log_prob(TAU)
        seen += len(images)
    return seen


def student_step(net: nn.Module) -> Callable[[Tensor, Tensor, Tensor], object]:
    """Forward, backward and SGD on half labels, half teacher."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

    def step(images: Tensor, targets: Tensor, teacher_log_prob: Tensor) -> None:
        logits = net(images)
        soft = kl_div((logits / TAU).log_softmax(-1), teacher_log_prob, log_target=True, reduction="batchmean")
        loss = 0.5 * cross_entropy(logits, targets) + 0.5 * TAU**2 * soft
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def timm_batches(reader: ShardReader) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of timm's: images and soft targets, mixed in batches."""
    mixup: Any = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES
    )
    loader = DataLoader(Photos(reader), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
    for images, labels in loader:
        yield mixup(images, labels)


def timm_loop(reader: ShardReader, teacher: Teacher, step: Callable[[Tensor, Tensor, Tensor], object]) -> int:
    """The same loop with the teacher online; returns the images seen."""
    seen = 0
    for images, targets in timm_batches(reader):
        step(images, targets, torch.log_softmax(teacher.logits(images) / TAU, -1))
        seen += len(images)
    return seen


def rate(work: Callable[[], int]) -> float:
    """Images per second of one call."""
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


def measure(folder: Path, *, rounds: int, loops: int, teacher: str, student: str) -> dict[str, Any]:
    """Rates and ratios of one run; medians."""
    index = make_shards(folder / "shards")
    with (
        make_cache(folder, index) as opened,
        ShardReader(index) as reader,
        Feed(index, cache=opened, batch_size=BATCH, repeats=1, workers=0, device="cpu") as feed,
        CachedTeacher(opened, [range(0, 1), range(1, 2)], name_of=lambda s, r: (str(s), str(r))) as source,
    ):

        def door(epoch: int) -> float:
            return rate(lambda: loop(feed, epoch, lambda *_: None))

        def parts(epoch: int) -> float:
            return rate(lambda: below(feed, source, reader, epoch))

        result = _door(door, parts, rounds) if rounds else {}
        if loops:
            result |= _loops(feed, reader, loops=loops, teacher=teacher, student=student)
        return result


def _door(door: Callable[[int], float], parts: Callable[[int], float], rounds: int) -> dict[str, Any]:
    """The feed against its parts, in pairs of epochs."""
    door(0), parts(0), door(1), parts(1)
    pairs = []
    for number in range(rounds):
        epoch = number // 2 % 2
        if number % 2:
            pairs.append((door(epoch), parts(epoch)))
        else:
            pairs.append((parts(epoch), door(epoch))[::-1])
    ratios = [ours / bare for ours, bare in pairs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
        "feed_images_per_s": statistics.median(ours for ours, _ in pairs),
        "trainer_path_images_per_s": statistics.median(bare for _, bare in pairs),
        "rounds": rounds,
    }


def _loops(feed: Feed, reader: ShardReader, *, loops: int, teacher: str, student: str) -> dict[str, Any]:
    """Both loops with a student's step, one after the other in turning order."""
    work_around_posterize()
    torch.manual_seed(0)
    keep_freed_memory()
    network = load_teacher(teacher, num_classes=CLASSES, options=TeacherOptions(pretrained=False))
    step = student_step(timm.create_model(student, num_classes=CLASSES))
    sides = {"feed_loop": lambda: loop(feed, 0, step), "timm_loop": lambda: timm_loop(reader, network, step)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(loops):
        for name in sorted(sides, reverse=bool(number % 2)):
            rates[name].append(rate(sides[name]))
    speedups = [ours / theirs for ours, theirs in zip(rates["feed_loop"], rates["timm_loop"], strict=True)]
    return {
        "speedup": statistics.median(speedups),
        **{name: statistics.median(values) for name, values in rates.items()},
        "teacher": teacher,
        "student": student,
        "batch_size": BATCH,
        "loops": loops,
    }


def main() -> None:
    """Print the table, and with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of epochs without a network")
    parser.add_argument("--loops", type=int, default=3, help="pairs of epochs with a student's step")
    parser.add_argument("--epochs", type=int, default=14, help="epochs of two batches without a network")
    parser.add_argument("--teacher", default="regnety_032", help="of the timm loop; random weights")
    parser.add_argument("--student", default="resnet10t", help="a timm model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder), rounds=options.rounds, loops=options.loops, teacher=options.teacher, student=options.student
        )
        if options.epochs:
            result |= host_costs(Path(folder), epochs=options.epochs)
    result |= {"torch": torch.__version__, "timm": timm.__version__}
    for name, value in result.items():
        print(f"{name:>26}  {value:.3f}" if isinstance(value, float) else f"{name:>26}  {value}")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
