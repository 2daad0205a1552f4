"""A student as an ONNX file, compared with the network itself before it gets its name."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shards.errors import RunError
from shards.rng import stream
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe
from student.learn.evaluation import eval_views
from student.learn.network import heads
from student.run.export import ExportInfo, image_view
from teacher_cache.network.trial import reason_of

NUM_PICTURES = 8
TOLERANCE = 1e-3
"""Of the largest logit: another order of the same sums in float32 stays far below it."""


class OnnxReport(NamedTuple):
    """What was written and how it compares.

    Attributes:
        opset: version of the operators. num_views: how many were answered by both.
        largest_difference: of their logits; largest_logit: of the network, absolute.
    """

    opset: int
    num_views: int
    largest_difference: float
    largest_logit: float


class _Logits(nn.Module):
    """The answer at inference: the average of the heads, or the one head."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, image: Tensor) -> Tensor:
        return heads(self.student, image).average()


def write_onnx(model: nn.Module, info: ExportInfo, path: Path, pictures: Sequence[Path] = ()) -> OnnxReport:
    """Write a student as an ONNX file with a free batch axis; atomic, and only if onnxruntime answers as torch does.

    Input "image" (batch, 3, H, W) float32, normalised; output "logits" (batch, C). Mean, std, crop and class names
    stand in the file's metadata.

    Args:
        pictures: image files whose evaluation views are compared; none: generated pictures.

    Errors:
        RunError when the student cannot be exported, or the file answers differently.
    """
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std))
    image_BCHW = _prepared(views, pictures)
    answer = _Logits(model).cpu().eval()
    partial = path.with_name(f".{path.name}.partial")
    try:
        opset = _export(answer, image_BCHW, info, views, partial)
        report = _compared(answer, image_BCHW, partial, opset)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return report


def _prepared(views: ViewRecipe, pictures: Sequence[Path]) -> Tensor:
    """Normalised evaluation views of picture files, or of smooth coloured noise, (B, 3, H, W)."""
    if pictures:
        view_BHWC = torch.cat([image_view(path, views) for path in pictures])
    else:
        side = views.size
        numbers = stream(0, "onnx pictures").words(NUM_PICTURES * 8 * 8 * 3)
        coarse = (numbers >> np.uint64(56)).astype(np.float32).reshape(NUM_PICTURES, 8, 8, 3)
        fine = nn.functional.interpolate(torch.from_numpy(coarse).permute(0, 3, 1, 2), (side, side), mode="bilinear")
        view_BHWC = fine.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    count = len(view_BHWC)
    own, nothing = torch.arange(count), torch.zeros(count, 4, dtype=torch.int64)
    return prepare(view_BHWC, own, torch.ones(count), nothing, mean=views.mean, std=views.std)


def _export(answer: nn.Module, image_BCHW: Tensor, info: ExportInfo, views: ViewRecipe, path: Path) -> int:
    """Write the file with its metadata; returns the opset."""
    import onnx

    try:
        program = torch.onnx.export(
            answer,
            (image_BCHW[:1].repeat(2, 1, 1, 1),),  # of one image torch would take 1 for the size of every batch
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "torch.onnx returns the program"
        proto = program.model_proto
    except Exception as error:  # torch.export refuses networks with whatever it stumbles on
        reason = reason_of(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise RunError(f"--onnx: torch cannot export {info.recipe.model}: {reason}") from error
    properties = {"mean": info.mean, "std": info.std, "short_side": views.short_side, "centre_crop": views.size}
    properties |= {"class_names": info.class_names} if info.class_names else {}
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in properties.items()})
    onnx.save_model(proto, str(path))
    return int(proto.opset_import[0].version)


def _compared(answer: nn.Module, image_BCHW: Tensor, path: Path, opset: int) -> OnnxReport:
    """The answers of both to the same views, together and one alone; RunError where they differ."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        logit_BC = answer(image_BCHW).numpy()
    largest = float(np.abs(logit_BC).max())
    difference = 0.0
    for rows in (list(range(len(logit_BC))), [0], [0, 0, 0]):
        (onnx_logit_BC,) = session.run(["logits"], {"image": image_BCHW[rows].numpy()})
        difference = max(difference, float(np.abs(onnx_logit_BC - logit_BC[rows]).max()))
    if not difference <= TOLERANCE * max(1.0, largest):  # nor is nan
        raise RunError(
            f"--onnx: onnxruntime answers with logits up to {difference:.3g} away from torch's, whose largest is "
            f"{largest:.3g}; the file was not written: try another version of onnxruntime or torch"
        )
    return OnnxReport(opset, len(image_BCHW), difference, largest)
