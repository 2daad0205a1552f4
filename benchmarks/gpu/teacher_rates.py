"""The teacher: its bare forward per batch, layout and choice of kernels; stage 1 as a user starts it."""

import re
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.gpu import material
from benchmarks.gpu.bench import Bench, output_of, start_command
from teacher_cache.network.arithmetic import arithmetic, autocast, faster_channels_last
from teacher_cache.network.timm_network import timm_network

_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_DONE = re.compile(r"teacher forwards?, (?P<views>[\d,]+) views? in (?P<seconds>[\d.]+) s;")


def teacher(bench: Bench) -> dict[str, Any]:
    """Images/s of the forward in bf16 at two batches, in both layouts, and which one `load_teacher` chooses."""
    network: Any = material.teacher(bench.sizes, bench.sizes.teacher, "bf16", bench.device)._network
    began = time.perf_counter()
    is_last = faster_channels_last(network, bench.sizes.views.size, "bf16", bench.device)
    figures: dict[str, Any] = {"chosen": "channels_last" if is_last else "contiguous"}
    figures["seconds_of_choosing"] = time.perf_counter() - began
    rates = _rates(bench, network, bench.sizes.teacher_batches)
    return {**figures, "images_per_s": rates, "fastest": max(rates, key=lambda name: rates[name])}


def layouts(bench: Bench) -> dict[str, Any]:
    """Images/s channels last ÷ contiguous of other teachers, in bf16 at the largest batch."""
    batch, ratios = max(bench.sizes.teacher_batches), {}
    for name in bench.sizes.other_teachers:
        network: Any = material.teacher(bench.sizes, name, "bf16", bench.device)._network
        last, contiguous = _rates(bench, network, (batch,)).values()
        ratios[name] = last / contiguous
    return {"channels_last_over_contiguous": ratios}


def _rates(bench: Bench, network: nn.Module, batches: Sequence[int]) -> dict[str, float]:
    rates = {}
    for layout, memory_format in _LAYOUTS.items():
        network.to(memory_format=memory_format)
        for batch in batches:
            rates[f"{layout}, {batch}"] = _rate(bench, network, _images(bench, batch), memory_format)
    return rates


def stage1(bench: Bench) -> dict[str, Any]:
    """`cache-teacher` as a user types it, for some seconds, ended by SIGTERM: views/s with start and commits."""
    weights = bench.folder / "teacher.safetensors"
    torch.manual_seed(0)
    bare = timm_network(
        bench.sizes.teacher, {}, None, num_classes=bench.sizes.num_classes, input_size=bench.sizes.views.size,
        pretrained=False,
    ).network  # fmt: skip
    save_file({name: value.contiguous() for name, value in bare.state_dict().items()}, weights)
    views = bench.sizes.stage1_views
    words = ["cache-teacher", "--shards", str(bench.folder / "shards"), "--cache", str(bench.folder / "stage1.zarr")]
    words += ["--views", str(views), "--teacher", bench.sizes.teacher, "--teacher-weights", str(weights)]
    words += ["--precision", "bf16", "--batch-size", str(max(bench.sizes.teacher_batches)), *_machine(bench)]
    seconds, printed = _interrupted(bench, [*words, *bench.sizes.view_words])
    done = _DONE.search(printed)
    if done is None:
        raise RuntimeError(f"cache-teacher: expected its last line, got {printed[-300:]}")
    views_done, own_s = int(done["views"].replace(",", "")), float(done["seconds"])
    return {"wall_s": seconds, "views_done": views_done, "seconds": own_s, "views_per_s": views_done / own_s}


def _interrupted(bench: Bench, words: list[str]) -> tuple[float, str]:
    """Seconds from the first unit's start to the end, and what was printed; SIGTERM after `stage1_s`."""
    process = start_command(words, device=bench.device.type)
    assert process.stdout is not None
    printed, began = [], time.monotonic()
    for line in process.stdout:
        printed.append(line)
        if line.startswith("views: "):  # said when the cache is open and the first chunk begins
            began = time.monotonic()
            break
    else:
        raise RuntimeError(f"cache-teacher: no unit was begun: {''.join(printed)[-800:]}")
    timer = threading.Timer(bench.sizes.stage1_s, process.send_signal, [signal.SIGTERM])
    timer.start()
    try:
        printed.append(output_of(process, expected=(0, 75)))
    finally:
        timer.cancel()
    return time.monotonic() - began, "".join(printed)


def _machine(bench: Bench) -> list[str]:
    return ["--device", bench.device.type, "--workers", str(bench.workers), "--size", str(bench.sizes.views.size)]


def _rate(bench: Bench, network: nn.Module, image_BCHW: torch.Tensor, layout: torch.memory_format) -> float:
    image_BCHW = image_BCHW.contiguous(memory_format=layout)

    def forward() -> None:
        kind = bench.device.type
        # Always with benchmark: torch keeps the kernels that it first picked for a shape.
        with torch.inference_mode(), arithmetic(kind, "bf16", benchmark=True), autocast(kind, "bf16"):
            network(image_BCHW)

    return len(image_BCHW) / bench.clock.median_s(forward, bench.sizes.seconds / 2)


def _images(bench: Bench, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, bench.sizes.views.size, bench.sizes.views.size, device=bench.device)
