"""Measure what images just below the limit of pixels cost to decode: CPU seconds, and the peak memory of a process.

    python -m benchmarks.largest_images

Each image is made and decoded in processes of its own, so that one peak is not another's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from shards.views.decode import decode_rgb

SIDE = 9_400
KINDS = ("baseline.jpg", "progressive.jpg", "cmyk.jpg", "webp", "rgba.png")


def make(kind: str, path: Path) -> None:
    """Write smoothed noise of SIDE × SIDE pixels."""
    channels = 4 if kind == "rgba.png" else 3
    noise_HWC = np.random.default_rng(0).integers(0, 255, (SIDE // 4, SIDE // 4, channels), dtype=np.uint8)
    image = Image.fromarray(noise_HWC).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    if kind == "rgba.png":
        image.save(path, "PNG", compress_level=1)
    elif kind == "webp":
        image.save(path, "WEBP", quality=80, method=0)
    else:
        whole = image.convert("CMYK") if kind == "cmyk.jpg" else image
        whole.save(path, "JPEG", quality=80, progressive=kind != "baseline.jpg")


def decode(path: Path) -> dict[str, float]:
    """Decode a file once in this process."""
    data = path.read_bytes()
    began = time.process_time()
    decode_rgb(data, path.name)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"file_mb": len(data) / 1e6, "cpu_s": seconds, "peak_mb": peak}


def main() -> None:
    """Print one line for each kind of image, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("STEP", "KIND", "PATH"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.one:
        step, kind, path = words.one
        if step == "make":
            make(kind, Path(path))
        else:
            print(json.dumps(decode(Path(path))))
        return
    costs_by_kind = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.largest_images", "--one"]
            path = str(Path(folder) / kind)
            subprocess.run([*command, "make", kind, path], check=True)
            done = subprocess.run([*command, "decode", kind, path], check=True, capture_output=True, text=True)
            costs_by_kind[kind] = json.loads(done.stdout)
            if not words.json:
                costs = costs_by_kind[kind]
                print(f"{kind:16} {costs['file_mb']:4.0f} MB {costs['cpu_s']:5.1f} s {costs['peak_mb']:6,.0f} MB peak")
    if words.json:
        print(json.dumps(costs_by_kind))


if __name__ == "__main__":
    main()
