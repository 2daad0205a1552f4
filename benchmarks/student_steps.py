"""One training step of every model of the table, at its real resolution, on two images (BatchNorm needs them).

    python -m benchmarks.student_steps [--json] [--models NAME …] [--meta NAME …]

Forward, loss against a label and a teacher's class, backward, optimiser; float32 on the CPU. Prints seconds of the step
(the first and only one: allocation included), the loss, and the largest memory of a process of its own per model.
Models named by --meta run on the meta device: shapes and parameters only, no numbers (default: the huge one, whose
weights, gradients and moments alone take 10 GB).
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from student.recipe.zoo import MODELS

_IMAGES = 2


def step(name: str, device: str) -> dict[str, Any]:
    """One step of one model in this process."""
    import torch

    from student.feed.answers import TeacherAnswer
    from student.feed.batch import Labels
    from student.learn.loss import student_loss
    from student.learn.network import heads, make_student
    from student.learn.optimiser import clip_gradients, make_optimizer
    from student.recipe.papers import recipe_for

    entry = MODELS[name]
    recipe = replace(recipe_for(name, stage=len(entry.recipes) - 1, with_cache=True), finetune=False)
    model = make_student(recipe, 1000, seed=0, device=device)
    optimizer = make_optimizer(model, recipe)
    with torch.device(device):
        x = torch.ones(_IMAGES, 3, entry.image_size, entry.image_size)
        label_B = torch.ones(_IMAGES, dtype=torch.int64)
    began = time.perf_counter()
    answer = heads(model, x)
    if device == "meta":
        loss = sum((head.sum() for head in answer if head is not None), torch.zeros((), device="meta"))
    else:
        loss = student_loss(answer, Labels.of(label_B), TeacherAnswer(label_B), recipe).total
    loss.backward()  # type: ignore[no-untyped-call]
    norm = clip_gradients(model.parameters(), recipe.clip_grad)
    optimizer.step()
    return {
        "name": name,
        "device": device,
        "image_size": entry.image_size,
        "params": sum(param.numel() for param in model.parameters()),
        "gradients": sum(param.grad is not None for param in model.parameters()),
        "parameters": len(list(model.parameters())),
        "seconds": round(time.perf_counter() - began, 3),
        "loss": None if device == "meta" else loss.item(),
        "gradient_norm": None if device == "meta" else norm.item(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Run each model in a process of its own, so that memory is that model's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="*", default=sorted(MODELS, key=lambda name: MODELS[name].gmacs or 0.0))
    parser.add_argument("--meta", nargs="*", default=["deit3_huge_patch14_224"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(options.one, "meta" if options.one in options.meta else "cpu")))
        return
    rows = []
    for name in options.models:
        command = [sys.executable, "-m", "benchmarks.student_steps", "--one", name, "--meta", *options.meta]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        good = row["gradients"] == row["parameters"] and (row["loss"] is None or math.isfinite(row["loss"]))
        rows.append(row | {"ok": good})
        loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
        print(
            f"{name:34} {row['image_size']} px  {row['device']:4} {row['params'] / 1e6:7.2f} M  loss {loss:>6}  "
            f"{row['seconds']:7.2f} s  {row['peak_mb']:6} MB  {'ok' if good else 'FAILED'}",
            flush=True,
        )
    if options.json:
        print(json.dumps({"models": rows, "all_ok": all(row["ok"] for row in rows)}))
    sys.exit(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    main()
