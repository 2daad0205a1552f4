"""What three differences from the authors' code come to: the figures under "Differences" in docs/recipes.md.

    python -m benchmarks.author_differences --evaluation development.npz --photos DIR [--json]

The evaluation file holds `teacher` and `student`, (N, C) logits of two trained networks on the same views.

    soft-std    loss with standard deviations over C classes ÷ the same over C − 1, minus one; the first C classes
    dist        ‖g − g_ε‖ / ‖g_ε‖ of the intra part, where g_ε has the authors' ε = 1e-8 beside the product of norms
    blur        largest and mean difference, in levels, of our Gaussian from Pillow's three box passes, at 224 pixels
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from student.learn.losses.soft_std import soft_std_loss

_CLASSES, _ROWS = (10, 100, 1000), (16, 64, 256)
_RADII = (0.3, 0.5, 1.0, 1.5, 2.0)
_EPSILON = 1e-8


def soft_std_excess(teacher_BC: Tensor, student_BC: Tensor) -> float:
    """How much larger the loss is with the divisor C than with the authors' C − 1."""
    loss_of = partial(soft_std_loss, student_BC, teacher_BC, temperature=2.0, reduction="textbook")
    ours, theirs = (loss_of(ddof=ddof).item() for ddof in (0, 1))
    return ours / theirs - 1


def intra_difference(teacher_BC: Tensor, student_BC: Tensor, rows: int) -> float:
    """Relative difference of the gradient of DIST's intra part without ε from that with it, at τ = 1."""
    differences = []
    for first in range(0, len(teacher_BC) - rows + 1, rows):
        grads = []
        for epsilon in (0.0, _EPSILON):
            leaf_BC = student_BC[first : first + rows].clone().requires_grad_()
            a_BC, b_BC = (
                prob_BC - prob_BC.mean(0, keepdim=True)
                for prob_BC in (leaf_BC.softmax(-1), teacher_BC[first : first + rows].softmax(-1))
            )
            correlation_C = (a_BC * b_BC).sum(0) / (a_BC.norm(dim=0) * b_BC.norm(dim=0) + epsilon)
            grads.append(torch.autograd.grad((1 - correlation_C).mean(), leaf_BC)[0])
        differences.append(((grads[0] - grads[1]).norm() / grads[1].norm()).item())
    return float(np.mean(differences))


def blur_difference(photos: list[Path], radius: float) -> tuple[int, float]:
    """Largest and mean difference in levels."""
    differences = []
    for path in photos:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        ours = cv2.GaussianBlur(np.asarray(small), (0, 0), radius, borderType=cv2.BORDER_REPLICATE)
        theirs = np.asarray(small.filter(ImageFilter.GaussianBlur(radius)))
        differences.append(np.abs(np.subtract(ours, theirs, dtype=np.int64)))
    return int(np.max(differences)), float(np.mean(differences))


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with np.load(options.evaluation) as arrays:
        teacher_BC, student_BC = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("teacher", "student"))
    photos = sorted(options.photos.glob("*/*.*"))
    differences: dict[str, dict[Any, Any]] = {
        "soft_std": {n: soft_std_excess(teacher_BC[:, :n], student_BC[:, :n]) for n in _CLASSES},
        "dist_intra": {rows: intra_difference(teacher_BC, student_BC, rows) for rows in _ROWS},
        "blur": {radius: blur_difference(photos, radius) for radius in _RADII},
    }
    for n, excess in differences["soft_std"].items():
        print(f"soft-std, {n} classes: the loss is {100 * excess:.1f} % larger")
    for rows, difference in differences["dist_intra"].items():
        print(f"dist, {rows} rows: {100 * difference:.2g} % of the intra gradient")
    for radius, (largest, mean) in differences["blur"].items():
        print(f"blur, radius {radius:g}: up to {largest} levels, {mean:.2f} on average")
    if options.json:
        print(json.dumps(differences))


if __name__ == "__main__":
    main()
