"""What only a GPU can tell, in one command, in at most eight minutes, with no network and random weights.

    python -m benchmarks.gpu [--json] [--photos DIR] [--tiny] [--device cuda|cpu] [--only SECTION,…]

Sections, in this order; one that fails says why, and the others go on (exit code 1 at the end):

    machine     the device as nvidia-smi names it, versions, flags
    rendering   views/s of stage 1 with a teacher that costs nothing: what the CPU can render
    stage1      RegNetY-16GF: bare forward per batch and precision; stage 1 ÷ bare forward in bf16
    compiled    the same with --compile, at one batch
    students    DeiT-Ti, -S, -B: a step plain, from the cache, with the teacher in the loop; ratios; peak memory
    precisions  fp32, bf16, fp16 with GradScaler: losses, skipped steps
    overlap     feed and student as they run: idle time between steps
    truth       cached = online and killed = uninterrupted on this device: bits, or the largest difference

--tiny is the same code with small networks, on the CPU, in seconds. Needs torch, timm, zarr, webdataset, simplejpeg,
OpenCV and google-crc32c, and msgspec and click; what else is imported comes with those.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import machine, material, stage1_rates, student_rates, truth
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import TINY, Sizes
from shards.index.shard_index import ShardIndex

Section = Callable[[Path, Sizes, ShardIndex, Clock, int], dict[str, Any]]
SECTIONS: dict[str, Section] = {
    "machine": lambda folder, sizes, index, clock, workers: machine.facts(clock.device),
    "rendering": stage1_rates.rendering,
    "stage1": stage1_rates.stage1,
    "compiled": stage1_rates.compiled,
    "students": student_rates.students,
    "precisions": student_rates.precisions,
    "overlap": student_rates.overlap,
    "truth": truth.truth,
}
_LEAST_S = 20.0


def main() -> None:
    """Run the sections and print them; with --json one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--photos", type=Path, help="a folder of images; default: synthetic ones")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--workers", type=int, help="rendering processes; default: all cores but one")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated; rendering is needed")
    options = parser.parse_args()
    sizes = TINY if options.tiny else Sizes()
    name = options.device or ("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    device = torch.device("cuda:0" if name == "cuda" else "cpu")
    workers = options.workers
    if workers is None:
        workers = 0 if options.tiny else max(1, len(os.sched_getaffinity(0)) - 1)
    if options.tiny:
        torch.set_num_threads(1)
    unknown = set(options.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: expected {', '.join(SECTIONS)}; got {', '.join(sorted(unknown))}")
    figures, failed = run(sizes, device, workers, options.photos, [n for n in SECTIONS if n in options.only.split(",")])
    if options.json:
        print(json.dumps(figures))
    sys.exit(bool(failed))


def run(
    sizes: Sizes, device: torch.device, workers: int, photos: Path | None, names: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """The sections' findings by name, and the names of those that failed."""
    began, failed = time.monotonic(), []
    clock = Clock(device, sizes.budget_s)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        index = material.write_shards(folder / "shards", sizes, photos)
        for name in names:
            if clock.left_s < _LEAST_S:
                figures[name] = {"left_out": "no time left"}
                continue
            at = time.monotonic()
            try:
                figures[name] = SECTIONS[name](folder, sizes, index, clock, workers)
            except Exception as error:  # one section must not cost the others their one chance
                traceback.print_exc()
                figures[name] = {"failed": f"{type(error).__name__}: {error}"}
                failed.append(name)
            print(f"{name} ({time.monotonic() - at:.1f} s)\n{_lines(figures[name])}", flush=True)
    return figures | {"seconds": time.monotonic() - began, "failed": failed}, failed


def _lines(value: Any, indent: str = "  ") -> str:
    """Findings as indented lines."""
    if not isinstance(value, dict):
        return f"{indent}{value}"
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [f"{indent}{key}", _lines(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key:32s} {f'{item:.5g}' if isinstance(item, float) else item}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
