"""What only a GPU can tell, in one command, in four to five minutes, with no network and random weights.

    python -m benchmarks.gpu [--json] [--photos DIR] [--tiny] [--device cuda|cpu] [--only SECTION,…] [--long]

Sections, in this order, each with a JSON object on a line of its own; one that fails says why, and the others go on
(exit code 1 at the end):

    start     machine, versions; seconds of imports; workers that are forked after the device is open render a cache
    same      records, pixels, losses on the device against the CPU's; pixels copied while the device is busy
    waiting   three training steps in which torch raises where the host waits
    student   DeiT-Ti from the cache: fp32, bf16, fp16, memory against the check
    teacher   RegNetY-16GF at 64 and 256, both layouts, and which one is chosen
    stage1    `cache-teacher` for ten seconds
    ranks     NCCL in a world of one; two ranks on the GPU over gloo, killed and resumed
    files     a run moved to the CPU and back; evaluation against the CPU's; the message of a full memory
    feed      feed and student as they run: images/s, waiting, time between steps
    compile   seconds of the compilation, eager ÷ compiled, number of graphs
    kernels   of a step of DeiT-Ti: how many, their share of the time, and which take the longest
    layouts   with --long alone: other teachers in both layouts
    truth     with --long alone: cached = online and killed = uninterrupted in one process: bits, or the difference

--tiny is the same code with small networks, on the CPU. Needs what the project needs, and nothing from a network.
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

from benchmarks.gpu import correctness, files, material, ranks, student_rates, teacher_rates, truth
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.sizes import TINY, Sizes

Section = Callable[[Bench], dict[str, Any]]
SECTIONS: dict[str, Section] = {
    "start": correctness.start,
    "same": correctness.same,
    "waiting": correctness.waiting,
    "student": student_rates.student,
    "teacher": teacher_rates.teacher,
    "stage1": teacher_rates.stage1,
    "ranks": ranks.ranks,
    "files": files.files,
    "feed": student_rates.feed,
    "compile": student_rates.compiled,
    "kernels": student_rates.kernels,
    "layouts": teacher_rates.layouts,
    "truth": truth.truth,
}
_LONG = ("layouts", "truth")
_LONG_S = 300.0
"""Seconds that --long may take beyond the others."""


def main() -> None:
    """Run the sections and print them; with --json one object with all of them as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="JSON alone, and all of it again as the last line")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--long", action="store_true", help="also cached = online, which takes minutes")
    parser.add_argument("--photos", type=Path, help="a folder of images; default: synthetic ones")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--workers", type=int, help="rendering processes; default: all cores but one")
    parser.add_argument("--only", default="", help="sections, comma-separated; most need start")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [n for n in SECTIONS if options.long or n not in _LONG]
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"--only: expected {', '.join(SECTIONS)}; got {', '.join(sorted(unknown))}")
    kind = options.device or ("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    workers = options.workers
    if workers is None:
        workers = 1 if options.tiny else max(1, len(os.sched_getaffinity(0)) - 1)
    if options.tiny:
        torch.set_num_threads(1)
    sizes = TINY if options.tiny else Sizes()
    device = torch.device("cuda:0" if kind == "cuda" else "cpu")
    clock = Clock(device, sizes.budget_s + _LONG_S * options.long)
    figures = run(sizes, clock, workers, options.photos, [n for n in SECTIONS if n in names], quiet=options.json)
    if options.json:
        print(json.dumps(figures))
    sys.exit(bool(figures["failed"]))


def run(
    sizes: Sizes, clock: Clock, workers: int, photos: Path | None, names: list[str], *, quiet: bool = True
) -> dict[str, Any]:
    """Return what the sections found, by name, with the names of those that failed; each is printed when it ends."""
    began = time.monotonic()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        index = material.write_shards(folder / "shards", sizes, photos)
        bench = Bench(folder=folder, sizes=sizes, index=index, workers=workers, clock=clock)
        for name in names:
            figures[name] = _section(bench, name)
            print(json.dumps({"section": name, **figures[name]}), flush=True)
            if not quiet:
                print(_lines({name: figures[name]}), flush=True)
    failed = [name for name in names if not figures[name]["ok"]]
    return figures | {"seconds": time.monotonic() - began, "failed": failed}


def _section(bench: Bench, name: str) -> dict[str, Any]:
    """Run one section; what it raises is its result: it must not cost the others their one chance."""
    if bench.clock.left_s < 0:
        return {"ok": False, "left_out": "no time left"}
    began = time.monotonic()
    try:
        figures = SECTIONS[name](bench)
        figures = {"ok": not figures.get("wrong"), **figures}
    except Exception as error:
        traceback.print_exc()
        figures = {"ok": False, "failed": f"{type(error).__name__}: {error}"}
    return {**figures, "section_s": time.monotonic() - began}


def _lines(value: Any, indent: str = "") -> str:
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
