"""How hard labels and teacher pull at a student's logits, per loss: at its first step, and once it has learned.

    python -m benchmarks.losses --evaluation development.npz [--json]

The file holds `teacher` (N, C) logits and `student` (N, C), those of another trained network on the same views. Labels
are the teacher's first classes. Ratios are ‖λ · ∂distill‖ ÷ ‖(1 − λ) · ∂base‖ on the logits, λ = ½, as every run prints
at its step 0 (`student.learn.loss.gradient_balance`), of a batch of 256. Takes seconds.

    start     logits of a student that has learned nothing, N(0, 10⁻³)
    bias      the same when it has learned how rare a class is: the sigmoids, or the softmax, of a row sum to 1
    trained   the logits of the file, shifted in the same way
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from student.feed.batch import Labels
from student.feed.teacher_source import answer_from_logits
from student.learn.loss import gradient_balance
from student.learn.network import Heads
from student.recipe.student_recipe import StudentRecipe

_ROWS = 256
_LOSSES = (("hard", 1.0), ("soft", 1.0), ("soft", 3.0), ("dist", 1.0), ("soft-std", 2.0))
_BASES = (("cross_entropy", 0.1, "textbook"), ("binary", 0.0, "textbook"), ("binary", 0.0, "per_class"))


def balances(teacher_BC: Tensor, student_BC: Tensor) -> list[dict[str, float | str]]:
    """One row per loss and base: the three ratios."""
    start_BC = torch.randn(teacher_BC.shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    labels, answer = Labels.of(teacher_BC.argmax(-1)), answer_from_logits(teacher_BC)
    rows: list[dict[str, float | str]] = []
    for distill, temperature in _LOSSES:
        for base, smoothing, reduction in _BASES:
            recipe = StudentRecipe(
                distill=distill,
                temperature=temperature,
                base_loss=base,  # type: ignore[arg-type]
                label_smoothing=smoothing,
                reduction=reduction,  # type: ignore[arg-type]
            )
            at = {"start": start_BC, "bias": _summing_to_one(start_BC), "trained": _summing_to_one(student_BC)}
            ratios = {name: gradient_balance(Heads(z, None), labels, answer, recipe) for name, z in at.items()}
            rows.append({"distill": distill, "tau": temperature, "base": base, "reduction": reduction, **ratios})
    return rows


def _summing_to_one(logit_BC: Tensor) -> Tensor:
    """The logits with a constant per row, which no softmax sees, so that their sigmoids sum to 1; by bisection."""
    low_B1, high_B1 = torch.full((len(logit_BC), 1), -60.0), torch.full((len(logit_BC), 1), 20.0)
    for _ in range(60):
        middle_B1 = (low_B1 + high_B1) / 2
        few = torch.sigmoid(logit_BC + middle_B1).sum(-1, keepdim=True) < 1
        low_B1, high_B1 = torch.where(few, middle_B1, low_B1), torch.where(few, high_B1, middle_B1)
    return logit_BC + low_B1


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True, help=".npz with `teacher` and `student`")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    known = np.load(args.evaluation)
    teacher_BC, student_BC = (torch.from_numpy(known[key][:_ROWS].astype(np.float32)) for key in ("teacher", "student"))
    rows = balances(teacher_BC, student_BC)
    print(f"{'teacher ÷ labels, λ = ½':44}{'start':>12}{'bias':>12}{'trained':>12}")
    for row in rows:
        name = f"{row['distill']} τ {row['tau']:g} beside {row['base']}, {row['reduction']}"
        print(f"{name:44}" + "".join(f"{row[at]:12.4g}" for at in ("start", "bias", "trained")))
    if args.json:
        print(json.dumps({"balance": rows}))


if __name__ == "__main__":
    main()
