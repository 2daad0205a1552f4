"""Views with the CPU's vector instructions switched off, one library after the other: are the pixels the same?

    python -m benchmarks.portability [--views N] [--json]     this machine, with each switch
    python -m benchmarks.portability --write FILE             what this machine renders …
    python -m benchmarks.portability --against FILE           … and how another one, or other libraries, differ from it

Fixed pictures (tests/golden/pictures: JPEG baseline and progressive, grey, CMYK, PNG, WebP) go through every recipe.
Each switch is an environment variable that a library reads when it is loaded, so each has a process of its own. The
first rotation, which caches of version 0.1 go on rendering, is counted apart: it is known to differ.
"""

import argparse
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import simplejpeg
import torch

from shards.views.decode import read_header, shrunk_size
from shards.views.view import render_views, shrink_of, view_params
from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named

PICTURES = Path(__file__).parents[1] / "tests" / "golden" / "pictures"
FIRST = "deit of 0.1"
_SIZES = {"finetune384": 112, "eval": 64, "plain": 64}
# One view: checksum of its pixels, of its parameters, and the operations in it.
View = tuple[int, int, tuple[str, ...]]


def recipes() -> dict[str, ViewRecipe]:
    """Every recipe, small; and the one of version 0.1 that rotates."""
    named = {name: recipe_named(name, size=_SIZES.get(name, 96)) for name in RECIPES}
    return named | {FIRST: recipe_named("deit", size=96, versions=())}


def rendered(num_views: int) -> dict[str, list[View]]:
    """So many views of each picture in each recipe."""
    pictures = sorted(path for path in PICTURES.iterdir() if path.suffix != ".txt")
    return {
        name: [view for path in pictures for view in _of_picture(path, recipe, num_views)]
        for name, recipe in recipes().items()
    }


def _of_picture(path: Path, recipe: ViewRecipe, num_views: int) -> list[View]:
    data = path.read_bytes()
    header = read_header(data, path.name)
    size = (header.height, header.width)
    size = shrunk_size(*size, shrink_of(recipe, size))
    view_VHWC = render_views(data, recipe, path.name, range(num_views), path.name)
    views = []
    for number, view_HWC in enumerate(view_VHWC):
        params = view_params(recipe, path.name, number, size)
        names = (path.name, *(operation.name for operation in params.operations))
        drawn = zlib.crc32(json.dumps(params.to_json(), sort_keys=True).encode())
        views.append((zlib.crc32(view_HWC.tobytes()), drawn, names))
    return views


def switches() -> dict[str, dict[str, str]]:
    """Environments by what they switch off; only what this CPU has."""
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    numpy = {"NPY_DISABLE_CPU_FEATURES": " ".join(features)} if features else {}
    opencv = {"OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FMA3,AVX,FP16", "OPENCV_IPP": "disabled"}
    libm = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable"}
    table = {
        "libjpeg-turbo without SIMD": {"JSIMD_FORCENONE": "1"},
        **{f"PyTorch {level}": {"ATEN_CPU_CAPABILITY": level} for level in ("default", "avx2", "avx512")},
        "NumPy without SIMD": numpy,
        "OpenCV without AVX": opencv,
        "OpenCV without SSE4": opencv | {"OPENCV_CPU_DISABLE": opencv["OPENCV_CPU_DISABLE"] + ",SSE4.2,SSE4.1,SSSE3"},
        "libm without FMA": libm,
    }
    everything: dict[str, str] = {}
    for name in ("libjpeg-turbo without SIMD", "PyTorch default", "NumPy without SIMD", "OpenCV without SSE4"):
        everything |= table[name]
    return {**table, "all at once": everything | libm}


def together() -> dict[str, dict[str, str]]:
    """The same switches in few environments: each is read by one library, so they can be thrown together."""
    table = switches()
    wide = {"PyTorch avx2", "OpenCV without AVX"}
    return {
        "all at once": table["all at once"],
        ", ".join(sorted(wide)): {name: value for key in wide for name, value in table[key].items()},
        "PyTorch avx512": table["PyTorch avx512"],
    }


def in_environment(environment: Mapping[str, str], num_views: int) -> dict[str, list[View]]:
    """What a process with these variables renders; RuntimeError with what it said if it fails."""
    command = [sys.executable, "-m", "benchmarks.portability", "--write", "-", "--views", str(num_views)]
    where = Path(__file__).parents[1]
    inherited = {name: value for name, value in os.environ.items() if name not in _read_by_libraries()}
    run = subprocess.run(command, cwd=where, env=inherited | dict(environment), capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{dict(environment)}: exit code {run.returncode}: {run.stderr[-2000:]}")
    return _loaded(run.stdout)


def _read_by_libraries() -> set[str]:
    return {name for environment in switches().values() for name in environment}


def _loaded(text: str) -> dict[str, list[View]]:
    data = json.loads(text)
    return {name: [(pixels, drawn, tuple(names)) for pixels, drawn, names in views] for name, views in data.items()}


def difference(expected: Mapping[str, list[View]], got: Mapping[str, list[View]]) -> dict[str, Any]:
    """How many views differ, those of the first rotation apart, and what they have in common."""
    result: dict[str, Any] = {"views": 0, "differing": 0, "drawn_differently": 0, "first_rotation": 0, "in": {}}
    for name, views in expected.items():
        for mine, theirs in zip(views, got[name], strict=True):
            result["views"] += name != FIRST
            result["drawn_differently"] += mine[1] != theirs[1]
            if mine[0] == theirs[0]:
                continue
            result["first_rotation" if name == FIRST else "differing"] += 1
            for part in mine[2] if name != FIRST else ():
                result["in"][part] = result["in"].get(part, 0) + 1
    return result


def main() -> None:
    """Parse the command line, render, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=48, help="of each picture in each recipe")
    parser.add_argument("--write", metavar="FILE", help="- is standard output")
    parser.add_argument("--against", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if args.write:
        text = json.dumps(rendered(args.views))
        print(text) if args.write == "-" else Path(args.write).write_text(text)
        return
    if args.against:
        results = {"this machine": difference(_loaded(args.against.read_text()), rendered(args.views))}
    else:
        expected = in_environment({}, args.views)
        results = {name: difference(expected, in_environment(e, args.views)) for name, e in switches().items()}
    for name, result in results.items():
        print(f"{name:28s} {result['differing']:5d} of {result['views']} views differ; first rotation", end=" ")
        print(f"{result['first_rotation']}; drawn differently {result['drawn_differently']}", result["in"] or "")
    print(", ".join(f"{module.__name__} {module.__version__}" for module in (cv2, np, PIL, simplejpeg, torch)))
    if args.json:
        views = min(result["views"] for result in results.values())
        print(json.dumps({"views": views, "differing": {n: r["differing"] for n, r in results.items()}}))


if __name__ == "__main__":
    main()
