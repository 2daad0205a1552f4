"""`export`: write a student for other tools: a folder or a file for timm, an ONNX file."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import PATH, refuse_ignored
from shards.console import result, say
from shards.documents import matching
from shards.own_folder import FolderKind, named, require_file, require_own
from student.commands.flags import student_of
from student.commands.predict import image_files
from teacher_cache.network.weights_metadata import require_named, require_weights, trained_as

if TYPE_CHECKING:
    from torch import nn

    from student.run.export import ExportInfo

_MOST_PICTURES = 16
_NO_FOLDERS = (".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".json")


def _is_export(folder: Path) -> bool:
    """Whether a folder has a configuration, and weights with the metadata that `export` writes."""
    return (folder / "config.json").is_file() and trained_as(folder / "model.safetensors") is not None


EXPORT_FOLDER = FolderKind(
    what="an export", command="export", is_ours=_is_export, begun=named("model.safetensors", "README.md", ".*.tmp*")
)


@click.command("export")
@click.argument("weights", type=PATH)
@click.argument("dest", type=PATH, required=False)
@click.option("--model", help="Needed when the file does not say it.")
@click.option("--onnx", "onnx_file", type=PATH, metavar="FILE", help="Write an ONNX file; needs the extra `onnx`.")
@click.option("--images", type=PATH, help="With --onnx: a folder of images to compare on; default: generated ones.")
def export(weights: Path, dest: Path | None, model: str | None, onnx_file: Path | None, images: Path | None) -> None:
    """Write WEIGHTS, a file or the folder of a run, for other tools.

    DEST is a folder that timm and the Hugging Face hub read (model.safetensors, config.json, README.md), or a
    file name ending in .safetensors.
    """
    file = require_weights("WEIGHTS", weights)
    require_named(file, model)
    if dest is None and onnx_file is None:
        raise ValueError("export: expected DEST (a folder or a .safetensors file), or --onnx FILE; add one of them")
    if dest is not None:
        _check_dest(dest, file)
    if onnx_file is None:
        refuse_ignored(["images"], "nothing is compared without --onnx")
    else:
        require_file("--onnx", onnx_file, ".onnx")
        _require_onnx()
    pictures = image_files([images])[0][:_MOST_PICTURES] if images else []
    network, info = student_of(file, model)
    if weights.is_dir():
        say(f"weights: {file}" + _beside(file))
    if dest is not None:
        _write(network, info, dest)
    if onnx_file is not None:
        _write_onnx(network, info, onnx_file, pictures)


def _beside(file: Path) -> str:
    """The other weights of a run, which were not taken; "" where there are none."""
    others = [path.name for path in matching(file.parent, "weights_*.safetensors") if path != file]
    return f", of the last epoch; beside it: {', '.join(others)}" if others else ""


def _check_dest(dest: Path, weights: Path) -> None:
    """ValueError for a DEST that is no folder of an export and no new file ending in .safetensors."""
    if dest.suffix in _NO_FOLDERS and not dest.is_dir():
        raise ValueError(f"DEST: expected a folder, or a file name ending in .safetensors, got {dest.name!r}")
    if dest.suffix != ".safetensors":
        require_own("DEST", dest, EXPORT_FOLDER)
    elif dest.is_dir():
        raise ValueError(f"DEST {dest}: expected a new file, got a folder; give a name without .safetensors")
    if dest.resolve() in (weights.resolve(), weights.resolve().parent):
        raise ValueError(f"DEST {dest}: expected a new place, got WEIGHTS itself; choose another one")


def _write(network: "nn.Module", info: "ExportInfo", dest: Path) -> None:
    from student.run.export import export_folder, export_weights, folder_call, model_card, timm_call

    if dest.suffix != ".safetensors":
        export_folder(network, dest, info)
        result(f"{dest}\n{folder_call(dest)}")
        return
    dest.parent.mkdir(parents=True, exist_ok=True)
    export_weights(network, dest, info)
    card = dest.with_suffix(".md")
    card.write_text(model_card(info, dest.name), encoding="utf-8")
    result(f"{dest}\n{card}\n{timm_call(info, str(dest))}")


def _require_onnx() -> None:
    """ValueError where a package of the extra is missing."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ValueError(f"--onnx: needs {', '.join(missing)}: pip install 'deit-teacher-cache[onnx]'")


def _write_onnx(network: "nn.Module", info: "ExportInfo", file: Path, pictures: Sequence[Path]) -> None:
    from student.run.onnx_file import write_onnx

    report = write_onnx(network, info, file, pictures)
    size = info.recipe.image_size
    shapes = f"input image (batch, 3, {size}, {size}), output logits (batch, {info.num_classes})"
    result(f"{file}\nopset {report.opset}, {shapes}")
    of = "views of --images" if pictures else "generated views"
    say(
        f"onnxruntime and torch answer {report.num_views} {of}: logits differ by at most "
        f"{report.largest_difference:.2g} (the largest is {report.largest_logit:.3g})"
    )
