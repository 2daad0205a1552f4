"""What the host can feed: launches and milliseconds of a step, views a second, and from these what bounds a GPU.

    python -m benchmarks.host [--json] [--cores 128] [--batch-size 1024] [--gpu-rates '{"DeiT-Ti": 7600, …}']

Launches of a step are counted on the meta device, where every operation is dispatched and none is computed, with the
kernels of a GPU in the optimiser. What the host pays for one is measured on a DeiT so narrow that its arithmetic takes
no time; to it comes the driver's own time (--launch-us). Times are of the processor, so that other work beside it does
not count. Rendering is measured on one core. The rates of the GPU are given; the defaults are for an H200 in bf16:
DeiT-Ti and stage 1 as `benchmarks.gpu` measured them, the others estimated.

For 1 and 8 ranks on a machine with `--cores` cores, images/s of each rank are the least of

    GPU             as given
    rendering       (cores of the rank − 1) · views/s of a core
    main process    1 ÷ (main-us + host_ms ÷ batch of the rank)

JSON: `launches`, `host_ms`, `views_per_s` of a core, and per network and number of ranks `images_per_s` and `bound`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.synthetic_jpeg import synthetic_jpeg
from shards.index.reader import ShardReader
from shards.tars.writer import write_samples
from shards.views.blocks import BlockViews, render_blocks
from shards.views.mixing import num_blocks
from shards.views.view_recipe import recipe_named
from shards.world import World
from student.feed.answers import answer_from_logits
from student.feed.batch import Labels
from student.learn.process_group import ProcessGroup
from student.learn.trainer import Trainer
from student.recipe.papers import recipe_for
from student.recipe.settings import TrainSettings

META = torch.device("meta")
TEACHER = "regnety_160"
STUDENTS = {name: f"deit_{size}_distilled_patch16_224" for name, size in
            (("DeiT-Ti", "tiny"), ("DeiT-S", "small"), ("DeiT-B", "base"))}  # fmt: skip
STAGE_1 = "stage 1"
GPU_RATES = {"DeiT-Ti": 7_600.0, "DeiT-S": 4_700.0, "DeiT-B": 1_900.0, STAGE_1: 4_270.0}
"""Images/s of an H200 in bf16; those of DeiT-S and DeiT-B are estimated from published figures of similar networks."""
RANKS = (1, 8)


class Launches(TorchDispatchMode):
    """Counts operations that compute: each is one kernel of a GPU, or a few; views are none."""

    def __init__(self) -> None:
        """Count from zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        aliases = [value.alias_info for value in func._schema.returns]
        self.count += not (aliases and all(info is not None and not info.is_write for info in aliases))
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cores", type=int, default=128, help="of the machine")
    parser.add_argument("--batch-size", type=int, default=1024, help="of a step, over all ranks")
    parser.add_argument("--stage1-batch", type=int, default=256, help="of a forward of the teacher")
    parser.add_argument("--main-us", type=float, default=12.0, help="an image; benchmarks.feed measures it")
    parser.add_argument("--launch-us", type=float, default=2.5, help="of the driver, for each launch")
    parser.add_argument("--gpu-rates", type=json.loads, default={}, help="images/s by name, as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    if unknown := set(options.gpu_rates) - set(GPU_RATES):
        parser.error(f"--gpu-rates: expected {', '.join(GPU_RATES)}; got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    steps: dict[str, Callable[[], object]] = {
        name: step_of(model, options.size, META) for name, model in STUDENTS.items()
    }
    steps |= {STAGE_1: forward_of(options.size)}
    launches = {name: launches_of(step) for name, step in steps.items()}
    host_us = host_us_of_a_launch(options.rounds) + options.launch_us
    host_ms = {name: count * host_us / 1e3 for name, count in launches.items()}
    views = {count: rendered(count, options.size) for count in (3, 6)}
    figures = {
        "launches": launches,
        "host_us_per_launch": host_us,
        "host_ms": host_ms,
        "views_per_s": {f"{count} views per decode": rate for count, rate in views.items()},
        "given": {
            "gpu_images_per_s": GPU_RATES | options.gpu_rates,
            "cores": options.cores,
            "main_us": options.main_us,
        },
    }
    for name in steps:
        of_stage_1 = name == STAGE_1
        figures[name] = {
            f"{ranks} ranks" if ranks > 1 else "1 rank": bound(
                gpu=(GPU_RATES | options.gpu_rates)[name],
                cores=options.cores / ranks,
                views_per_s=views[6 if of_stage_1 else 3],
                main_us=options.main_us,
                host_ms=host_ms[name],
                batch=options.stage1_batch if of_stage_1 else options.batch_size // ranks,
            )
            for ranks in RANKS
        }
    print(json.dumps(figures, indent=None if options.json else 2))


def bound(
    *, gpu: float, cores: float, views_per_s: float, main_us: float, host_ms: float, batch: int
) -> dict[str, Any]:
    """Return images/s of a rank, which part is the least, and all three."""
    parts = {
        "GPU": gpu,
        "rendering": max(1.0, cores - 1) * views_per_s,
        "main process": 1 / (main_us / 1e6 + host_ms / 1e3 / batch),
    }
    least = min(parts, key=lambda name: parts[name])
    return {"images_per_s": parts[least], "bound": least, **parts}


def step_of(model: str, size: int, device: torch.device, *, batch: int = 128, **model_args: Any) -> Callable[[], None]:
    """Return a training step of a student with soft distillation, float32, with the optimiser's kernels of a GPU."""
    recipe = replace(recipe_for(model, with_cache=True), distill="soft", image_size=size, epochs=300)
    recipe = replace(recipe, model_args=tuple(sorted(model_args.items())))
    settings = TrainSettings(log_every=10**6)
    supported = mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["meta", "cpu"])
    no_autocast = mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    student = Trainer(recipe, settings, num_classes=1000, steps_per_epoch=1000, group=ProcessGroup(World(), device))
    for group in student.optimizer.param_groups:
        group["fused" if recipe.optimizer == "adamw" else "foreach"] = True

    def step() -> None:
        image_BCHW = torch.empty(batch, 3, size, size, device=device)
        label_B = torch.zeros(batch, dtype=torch.int64, device=device)
        labels = Labels(label_B, label_B, torch.ones(batch, device=device))
        with supported, no_autocast:
            answer = answer_from_logits(torch.zeros(batch, 1000, device=device))
            student.feed(image_BCHW.zero_(), labels, answer, step=1)

    step()  # makes the moments
    return step


def forward_of(size: int) -> Callable[[], object]:
    """Return a forward of the teacher on the meta device."""
    with META:
        network = timm.create_model(TEACHER, pretrained=False).eval()
    image_BCHW = torch.empty(8, 3, size, size, device=META)

    def forward() -> object:
        with torch.inference_mode():
            return network(image_BCHW)

    return forward


def launches_of(step: Callable[[], object]) -> int:
    """Return the operations of a step that compute."""
    with Launches() as counted:
        step()
    total: int = counted.count
    return total


def host_us_of_a_launch(rounds: int) -> float:
    """Return microseconds of the processor for one operation of a step: Python, dispatch, autograd."""
    narrow = step_of(STUDENTS["DeiT-Ti"], 32, torch.device("cpu"), batch=2, embed_dim=12, num_heads=3)
    count, seconds = launches_of(narrow), []
    for _ in range(rounds):
        began = time.process_time()
        narrow()
        seconds.append(time.process_time() - began)
    return 1e6 * statistics.median(seconds) / count


def rendered(views_per_decode: int, size: int) -> float:
    """Return views/s of one core, each image decoded once for several views."""
    recipe = recipe_named("deit", size=size, block_views=views_per_decode)
    photos = [synthetic_jpeg(number) for number in range(16)]
    with tempfile.TemporaryDirectory() as name:
        samples = ((f"k{n:04d}", n % 10, "jpg", photo) for n, photo in enumerate(photos))
        index = write_samples(samples, Path(name), samples_per_shard=16, num_classes=10)
        task = [
            BlockViews(0, block, list(range(views_per_decode)))
            for block in range(num_blocks(recipe, 16, full_only=False))
        ]
        with ShardReader(index) as reader:
            render_blocks(reader, recipe, task)
            began = time.process_time()
            render_blocks(reader, recipe, task)
            return 16 * views_per_decode / (time.process_time() - began)


if __name__ == "__main__":
    main()
