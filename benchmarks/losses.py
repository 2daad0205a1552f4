"""Each loss: how hard it pulls at a student's logits beside the labels, and what a record costs its gradient.

    python -m benchmarks.losses --evaluation development.npz [--calibration calibration.npz] [--bytes N] [--json]

The evaluation file holds `teacher` (N, C) logits and, of another trained network on the same views, `student` (N, C)
and `student_feature` (N, D); without them errors are against an untrained student. Labels are the teacher's first
classes. Takes seconds; with --calibration, whose `teacher` fits the basis of the records, half a minute.

Balance: ‖λ · ∂distill‖ ÷ ‖(1 − λ) · ∂base‖ on the logits, λ = ½, as every run prints at its step 0
(`student.learn.loss.gradient_balance`), of a batch of 256, for

    start     logits of a student that has learned nothing, N(0, 10⁻³)
    bias      the same when it has learned how rare a class is: the sigmoids, or the softmax, of a row sum to 1
    trained   the logits of the file, shifted in the same way

Record error: that of the gradient of the student's last layer (`teacher_cache.record.loss_error`). The last line is
`soft-std` with the teacher's true standard deviation for each view, which no record keeps.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from student.feed.answers import answer_from_logits
from student.feed.batch import Labels
from student.learn.loss import gradient_balance
from student.learn.losses.soft import soft_loss
from student.learn.losses.soft_std import z_score
from student.learn.network import Heads
from student.learn.record_errors import loss_gradients
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.fidelity import LogProb, decoder_of
from teacher_cache.record.loss_error import KnownAnswer, LossGradient, loss_errors
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis

_ROWS = 256
_LOSSES = (("hard", 1.0), ("soft", 1.0), ("soft", 3.0), ("dist", 1.0), ("soft-std", 2.0))
_STUDENT = (("student_BC", "student"), ("feature_BD", "student_feature"))
_TAUS = (1.0, 2.0, 3.0, 4.0, 8.0)
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


def record_errors(calibration_NC: NDArray[Any], known: Any, kind: str, num_bytes: int) -> list[dict[str, Any]]:
    """The error of each loss's gradient with records of a kind and so many bytes, a row per loss and τ."""
    logit_BC = known["teacher"].astype(np.float32)
    record = RecordFormat.chosen(kind, logit_BC.shape[1], num_bytes=num_bytes)
    codec = RecordCodec(record, fit_basis(calibration_NC, record) if record.needs_basis else None)
    decoded = decoder_of(codec, codec.encode(logit_BC))
    student = {name: known[key] for name, key in _STUDENT if key in known.files}
    measured = loss_errors(logit_BC, decoded, loss_gradients(), temperatures=_TAUS, **student)
    with_true_spread = LossGradient(loss="soft-std, true σ", uses_temperature=True, gradient=_against_z_scores)
    spread, true_BC = _with_true_spread(logit_BC, decoded), z_score(torch.from_numpy(logit_BC).double()).numpy()
    measured += loss_errors(true_BC, spread, [with_true_spread], temperatures=_TAUS, **student)
    return [row.to_json() for row in measured]


def _with_true_spread(logit_BC: NDArray[np.float32], decoded: LogProb) -> LogProb:
    """Decodes z-scores whose mean is the record's and whose standard deviation is the teacher's own, over τ."""

    def z_score_over(rows: slice, temperature: float) -> NDArray[np.float64]:
        z_BC = np.asarray(decoded(rows, 1.0), np.float64)
        spread_B1 = logit_BC[rows].std(axis=1, keepdims=True, dtype=np.float64)
        return np.asarray((z_BC - z_BC.mean(axis=1, keepdims=True)) / spread_B1 / temperature)

    return z_score_over


def _against_z_scores(student_BC: Tensor, answer: KnownAnswer, temperature: float) -> Tensor:
    """The gradient of `soft-std` where the answer is made of z-scores already, up to a constant per row."""
    leaf_BC = student_BC.clone().requires_grad_()
    target_BC = (answer.log_prob(1.0) / temperature).log_softmax(-1)
    loss = soft_loss(z_score(leaf_BC), target_BC, temperature=temperature, reduction="textbook")
    return torch.autograd.grad(loss, leaf_BC)[0]


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True, help=".npz with `teacher` and a `student`")
    parser.add_argument("--calibration", type=Path, help=".npz with `teacher`; fits the basis of the records")
    parser.add_argument("--kind", default="auto", help="of the records, as in cache-teacher --record")
    parser.add_argument("--bytes", type=int, default=0, help="bytes per view on disk; default: the kind's own")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    known = np.load(args.evaluation)
    rows, errors = [], []
    if "student" in known.files:
        rows = balances(*(torch.from_numpy(known[key][:_ROWS].astype(np.float32)) for key in ("teacher", "student")))
        print(f"{'teacher ÷ labels, λ = ½':44}{'start':>12}{'bias':>12}{'trained':>12}")
    for row in rows:
        name = f"{row['distill']} τ {row['tau']:g} beside {row['base']}, {row['reduction']}"
        print(f"{name:44}" + "".join(f"{row[at]:12.4g}" for at in ("start", "bias", "trained")))
    if args.calibration is not None:
        errors = record_errors(np.load(args.calibration)["teacher"], known, args.kind, args.bytes)
        title = f"record error, {args.kind}" + (f", {args.bytes} bytes" if args.bytes else "")
        print(f"\n{title:32}" + "".join(f"{f'τ = {tau:g}':>9}" for tau in _TAUS))
        for loss in dict.fromkeys(row["loss"] for row in errors):
            cells = (row["gradient_error"] for row in errors if row["loss"] == loss)
            print(f"{loss:32}" + "".join(f"{error:9.3f}" for error in cells))
    if args.json:
        print(json.dumps({"balance": rows, "kind": args.kind, "bytes": args.bytes, "record_errors": errors}))


if __name__ == "__main__":
    main()
