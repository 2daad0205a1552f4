"""The exact rotation beside the first one, and beside Pillow's: how long each takes, and how far off it is.

    python -m benchmarks.rotation [--photos DIR] [--json]

Alone: both in turns, CPU time of one thread, memory warm. In views (with --photos): DeiT's recipe in the two versions,
in turns, 1, 3 and 8 views per decode. Distances are inside the image; outside all three are the fill colour.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from shards.views.operations.rotate import rotate, rotate2
from shards.views.view import render_views
from shards.views.view_recipe import recipe_named

ANGLES = (-27.0, -25.3, 25.3, 28.1, -3.3, 12.0)
_KERNELS = {"rotate": rotate, "rotate2": rotate2}
_BLACK = (0, 0, 0)


def photos() -> list[NDArray[np.uint8]]:
    """Four photos at 224 pixels."""
    taken = (getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket"))
    return [np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.BICUBIC)) for photo in taken]


def _pillow(image_HWC: NDArray[np.uint8], degrees: float) -> NDArray[np.int64]:
    turned = Image.fromarray(image_HWC).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_BLACK)
    return np.asarray(turned).astype(np.int64)


def distances() -> dict[str, dict[str, float]]:
    """Mean absolute distance and mean difference to Pillow, levels."""
    differences: dict[str, list[NDArray[np.int64]]] = {name: [] for name in _KERNELS}
    for image_HWC in photos():
        for degrees in ANGLES:
            inside_HW = _pillow(np.full_like(image_HWC, 255), degrees)[..., 0] > 0
            expected_HWC = _pillow(image_HWC, degrees)
            for name, kernel in _KERNELS.items():
                differences[name].append((kernel(image_HWC, degrees, _BLACK) - expected_HWC)[inside_HW].ravel())
    joined = {name: np.concatenate(parts) for name, parts in differences.items()}
    return {name: {"mean": float(abs(off).mean()), "bias": float(off.mean())} for name, off in joined.items()}


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each call, in turns."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            took[name].append(1e3 * (time.process_time() - start))
    return took


def in_views(folder: Path) -> dict[str, float]:
    """Time of DeiT's views with the new rotation ÷ with the first, for so many views per decode; medians."""
    data = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    recipes = {"rotate": recipe_named("deit", versions=()), "rotate2": recipe_named("deit")}
    ratios = {}
    for count in (1, 3, 8):
        each = []
        for turn in range(6):
            total = dict.fromkeys(recipes, 0.0)
            for n, photo in enumerate(data[:60]):
                views = range(turn * 8, turn * 8 + count)
                for name, recipe in recipes.items():
                    start = time.process_time()
                    render_views(photo, recipe, str(n), views, "benchmark")
                    total[name] += time.process_time() - start
            each.append(total["rotate2"] / total["rotate"])
        ratios[f"{count} views per decode"] = statistics.median(each)
    return ratios


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG files, searched recursively")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    image_HWC = photos()[0]
    calls: dict[str, Callable[[], Any]] = {
        name: partial(kernel, image_HWC, 26.3, _BLACK) for name, kernel in _KERNELS.items()
    }
    calls["pillow"] = partial(_pillow, image_HWC, 26.3)
    took = in_turns(calls, 200)
    off = distances()
    for name in calls:
        distance = f"; {off[name]['mean']:.3f} levels from Pillow, {off[name]['bias']:+.3f}" if name in off else ""
        print(f"{name:8s} median {statistics.median(took[name]):.3f} ms, least {min(took[name]):.3f}{distance}")
    result: dict[str, Any] = {"ms": {name: statistics.median(ms) for name, ms in took.items()}, "distance": off}
    if args.photos:
        result["views"] = in_views(args.photos)
        for name, ratio in result["views"].items():
            print(f"views with rotate2 ÷ with rotate, {name}: {ratio:.3f}")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
