"""Export a trained student: safetensors that plain timm loads, a model card, and predictions.

The weights file carries what its numbers cannot say (model, class names, resolution, normalisation, recipe) as
safetensors metadata, so that `predict` needs the file alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shards.atomic import atomic_file
from shards.documents import checked, parse_json, read_image_file
from shards.errors import RunError
from shards.index.pixel_rule import PixelRule
from shards.tars.image_rule import pictured
from shards.text.escapes import markdown, markdown_code, one_line
from shards.text.figures import count, has
from shards.views.mixing import prepare
from shards.views.view import render_views
from shards.views.view_recipe import ViewRecipe
from student.learn.evaluation import eval_views
from student.learn.losses.table import NONE, loss_named
from student.learn.network import heads, load_weights
from student.learn.process_group import unwrapped
from student.learn.timm_model import (
    bare_model,
    own_arguments,
    own_errors,
    preparation_of,
    timm_config,
    timm_expression,
)
from student.learn.transformer_file import transformer_of
from student.recipe.papers import STUDENT_RECIPES, recipe_for
from student.recipe.student_recipe import StudentRecipe
from student.recipe.zoo import model_entry
from student.run.run_files import write_json
from teacher_cache.network.weights import read_weights, write_weights
from teacher_cache.network.weights_metadata import METADATA_KEY, require_named, require_possible, weights_file


class _Stored(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The metadata of a weights file: an `ExportInfo` as JSON."""

    recipe: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    class_names: tuple[str, ...]
    fingerprints: dict[str, str]
    metrics: dict[str, float]
    pixels: dict[str, Any] = {}
    num_skipped: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0


_AS_STORED = PixelRule()
_PLAIN = ("mean", "std", "num_classes", "class_names", "fingerprints", "metrics", "num_skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInfo:
    """What a weights file says about itself.

    Attributes:
        recipe: how it was trained (its model and resolution among it). mean, std: normalisation.
        num_classes: C. class_names: C names, or () when unknown.
        fingerprints: names and digests it was made from, such as cache and shards.
        metrics: measured numbers by name, percent for accuracies.
        notes: what was assumed of a file that does not say it, one line each; no part of a file.
        pixels: what was done to the pixels of the training images, and is done to pictures.
        num_skipped: images that were left out when the training shards were made.
    """

    recipe: StudentRecipe
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int
    class_names: tuple[str, ...] = ()
    fingerprints: Mapping[str, str]
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = ()
    pixels: PixelRule = _AS_STORED
    num_skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain |= {"fingerprints": dict(self.fingerprints), "metrics": dict(self.metrics)}
        stored = _Stored(recipe=self.recipe.to_json(), pixels=self.pixels.to_json(), **plain)
        return dict(msgspec.to_builtins(stored, enc_hook=float))  # of NumPy's numbers

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ExportInfo":
        """The inverse of `to_json`; ValueError or RunError for anything else."""
        stored = checked(
            data, _Stored, "what the weights say of themselves", error=RunError, advice="export them again"
        )
        if stored.class_names and len(stored.class_names) != stored.num_classes:
            raise ValueError(f"class_names: expected {stored.num_classes}, got {len(stored.class_names)}")
        ViewRecipe(mean=stored.mean, std=stored.std)  # checks the numbers
        plain = {name: getattr(stored, name) for name in _PLAIN}
        recipe, pixels = StudentRecipe.from_json(stored.recipe), PixelRule.from_json(stored.pixels)
        return cls(recipe=recipe, pixels=pixels, **plain)


class Prediction(NamedTuple):
    """The likeliest classes of one image: (class index, name, probability), most likely first."""

    path: Path
    classes: tuple[tuple[int, str, float], ...]


def export_weights(model: nn.Module, path: Path, info: ExportInfo) -> None:
    """Write the weights, float32, as safetensors under timm's own names; atomic.

    `timm_call` says how plain timm loads them.
    """
    state = {name: value.detach().cpu().clone().contiguous() for name, value in unwrapped(model).state_dict().items()}
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    with atomic_file(path) as file:
        write_weights(file, state, {"format": "pt", METADATA_KEY: json.dumps(info.to_json(), sort_keys=True)})


def read_info(path: Path) -> ExportInfo | None:
    """Read what an exported file says about itself; None for weights of others; RunError when it is damaged."""
    path = weights_file(path)
    if path.suffix != ".safetensors":
        return None
    if not path.is_file():
        raise RunError(f"weights {path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            return None
        return ExportInfo.from_json(parse_json(text, path, error=RunError, advice="export them again"))
    except (SafetensorError, ValueError, RunError) as error:
        raise RunError(f"weights {path}: cannot be read ({error}); expected an exported .safetensors file") from error


def load_student(path: Path, *, model: str | None = None) -> tuple[nn.Module, ExportInfo]:
    """A student from a weights file, in evaluation mode, with what is known about it.

    Args:
        path: the file, or a folder of a finished run or an export.
        model: its name; needed when the file does not say it, and must agree when it does.

    Weights of others get the recipe of their model if it stands in the table of students and no tag is named, else the
    crop, normalisation and resolution that timm has for them; a vision transformer's tensors show its resolution.
    ArtefactError for a file that cannot be read or does not fit; ValueError when the name is missing or contradicts it.
    """
    path = weights_file(path)
    require_named(path, model)
    stored = read_info(path)
    known_from_file = stored is not None
    info = stored or _foreign_info(model or "", path)
    if model is not None and model != info.recipe.model:
        raise ValueError(f"--model: the weights {path} are of {info.recipe.model}, got {model}")
    args = dict(info.recipe.model_args)
    if path.suffix == ".safetensors":
        require_possible(path, args, num_classes=info.num_classes, own=own_arguments(info.recipe.model))
    try:
        network = bare_model(info.recipe.model, info.num_classes, image_size=info.recipe.image_size, arguments=args)
    except ValueError as error:
        if known_from_file:
            raise RunError(f"weights {path}: what they say of themselves makes no network: {error}") from error
        raise
    if words := load_weights(network, path).words:
        raise RunError(
            f"weights {path}: do not fit {info.recipe.model} at {info.recipe.image_size} px ({words}); give the model "
            "that they were trained as"
        )
    return network.eval(), info


def _foreign_info(model: str, path: Path) -> ExportInfo:
    """Infer what can be known of weights that say nothing: the class count from the classifier's bias."""
    file, timms = read_weights(path), preparation_of(model)
    named = {*(timms.classifiers if timms else ()), "head", "fc", "classifier"}
    biases = [value for name, value in file.state.items() if name.endswith(".bias") and name[:-5] in named]
    if not biases:
        expected = " or ".join(f"{name}.bias" for name in (timms.classifiers if timms else ("head", "fc")))
        raise RunError(f"weights {path}: expected a classifier ({expected}), found none; give weights that have one")
    entry = model_entry(model)
    recipe = recipe_for(model, stage=len(entry.recipes) - 1 if entry else 0)
    views, notes = recipe.view_recipe, [f"weights {path}: {file.chosen}"] * bool(file.chosen)
    if timms is not None and (entry is None or "." in model):
        recipe = replace(recipe, image_size=timms.image_size, eval_crop_pct=timms.crop_pct)
        views = replace(views, mean=timms.mean, std=timms.std)
        others = "" if timms.interpolation == "bicubic" else f"; resized bicubically, timm would: {timms.interpolation}"
        notes.append(
            f"images as timm has them for {model}: mean {timms.mean}, std {timms.std}, crop {timms.crop_pct}{others}"
        )
    trained_at = transformer_of({name: tuple(value.shape) for name, value in file.state.items()})
    if trained_at is not None and trained_at.image_size:
        recipe = replace(recipe, image_size=trained_at.image_size)
    return ExportInfo(
        recipe=recipe,
        mean=views.mean,
        std=views.std,
        num_classes=len(biases[0]),
        fingerprints={},
        metrics={},
        notes=tuple(notes),
    )


def export_folder(model: nn.Module, folder: Path, info: ExportInfo) -> None:
    """Write a folder that timm loads: model.safetensors, config.json and, as README.md, the model card.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the student, and timm's `resolve_data_config` the
    images as evaluation prepares them. Uploaded as it is, it is a repository of the Hugging Face hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = timm_config(
        info.recipe.model,
        info.num_classes,
        dict(info.recipe.model_args),
        image_size=info.recipe.image_size,
        crop_pct=info.recipe.eval_crop_pct,
        mean=info.mean,
        std=info.std,
        class_names=info.class_names,
    )
    export_weights(model, folder / "model.safetensors", info)
    (folder / "README.md").write_text(model_card(info, load=folder_call(folder.name)), encoding="utf-8")
    write_json(folder / "config.json", config)


def folder_call(folder: Path | str) -> str:
    """The Python expression by which plain timm loads a folder of `export_folder`."""
    return f"timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"


def timm_call(info: ExportInfo, weights: str) -> str:
    """The Python expression by which plain timm loads an export."""
    recipe = info.recipe
    return timm_expression(recipe.model, info.num_classes, recipe.image_size, dict(recipe.model_args), weights)


def predict(
    model: nn.Module, info: ExportInfo, paths: Sequence[Path], *, top: int = 5, device: str = "cpu"
) -> Iterator[Prediction]:
    """The likeliest classes of image files, each seen as evaluation sees it.

    Args:
        top: how many classes; names are the class numbers when the file knows none.

    ShardError for files that cannot be read or decoded; ValueError for `top` below 1.
    """
    if top < 1:
        raise ValueError(f"--top: expected at least 1, got {top}")
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std))
    model.to(device).eval()
    for path in paths:
        yield Prediction(path, _likeliest(model, info, image_view(path, views, info.pixels), views, top, device))


def image_view(path: Path, views: ViewRecipe, rule: PixelRule = _AS_STORED) -> torch.Tensor:
    """Render the evaluation view of an image file, uint8 (1, H, W, 3); ShardError where it cannot be read."""
    data = pictured(read_image_file(path), rule, str(path))
    return torch.from_numpy(render_views(data, views, path.name, [0], str(path)))


@torch.no_grad()
def _likeliest(
    model: nn.Module, info: ExportInfo, view_BHWC: torch.Tensor, views: ViewRecipe, top: int, device: str
) -> tuple[tuple[int, str, float], ...]:
    one, none = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    image = prepare(view_BHWC.to(device), none, one, none.expand(1, 4), mean=views.mean, std=views.std)
    with own_errors(info.recipe.model, 1, training=False):
        prob_C = torch.softmax(heads(model, image).average().float()[0], -1)
    best = torch.topk(prob_C, min(top, info.num_classes))
    names = info.class_names or tuple(str(number) for number in range(info.num_classes))
    return tuple((int(i), names[int(i)], float(p)) for p, i in zip(best.values, best.indices, strict=True))


def _taught(recipe: StudentRecipe) -> str:
    """Describe how the student was taught: the loss, and what it reads of the recipe."""
    if recipe.distill == NONE:
        return "without a teacher"
    loss = loss_named(recipe.distill)
    words = {"temperature": f", τ = {recipe.temperature}", "reduction": f", {recipe.reduction} reduction"}
    read = (*loss.fields, "reduction") if recipe.reduction == "per_class" else loss.fields
    settings = "".join(words.get(field, f", {field} = {getattr(recipe, field)}") for field in dict.fromkeys(read))
    return f"{loss.title} from a teacher cache, λ = {recipe.distill_weight}{settings}"


def _heads(recipe: StudentRecipe) -> str:
    """Describe what each of two heads was trained on."""
    if recipe.teacher_heads == "dist":
        return "CLS was trained on the labels, DIST on the teacher."
    if recipe.distill_weight == 1:
        return "CLS and DIST were both trained on the teacher; no label was used."
    return "CLS and DIST were both trained on the teacher, CLS on the labels of labelled images as well."


def model_card(info: ExportInfo, weights: str = "", *, load: str = "") -> str:
    """A Markdown page: what the model is, how it was trained, what it was measured to do, how to load it.

    Args:
        weights: the file that it describes. load: the expression that loads the model; default: `timm_call`.
    """
    recipe, entry = info.recipe, model_entry(info.recipe.model)
    taught = markdown(_taught(recipe))
    lines = [
        f"# {markdown(recipe.model)}",
        "",
        f"{count(info.num_classes, 'class')}, {recipe.image_size} px, {taught}.",
        "",
    ]
    if entry and (known := entry.transformer):
        shape = f"width {known.dim}, {count(known.depth, 'block')}, {known.heads} heads, patches of {known.patch} px"
        changed = markdown(", ".join(f"{name} = {value}" for name, value in recipe.model_args))
        lines += [f"Transformer: {shape}{f', changed by {changed}' if changed else ''}.", ""]
    lines += [
        "## Load it",
        "",
        "```python",
        "import timm",
        one_line(f"model = {load or timm_call(info, weights)}"),
        "```",
        "",
    ]
    lines += [
        f"Input: RGB, short side to {recipe.image_size} / {recipe.eval_crop_pct} px (bicubic), centre crop of "
        f"{recipe.image_size} px, mean {info.mean}, std {info.std}{_pixels(info.pixels)}. "
        "The answer is the average of the heads' logits.",
        "",
    ]
    if entry and entry.distilled and recipe.distill != NONE:
        lines += [
            f"{_heads(recipe)} In evaluation mode timm answers with the average of "
            "their logits; in training mode, after set_distilled_training(True), with both.",
            "",
        ]
    lines += ["## Measured", "", *_table(("what", "value"), {k: f"{v:.4g}" for k, v in info.metrics.items()}), ""]
    lines += ["## Made from", "", *_table(("what", "fingerprint"), info.fingerprints), ""]
    if info.num_skipped:
        left_out = count(info.num_skipped, "image")
        lines += [f"{left_out} could not be read and {has(info.num_skipped)} been left out of the training shards.", ""]
    settings = {_card_name(k, recipe): json.dumps(v) for k, v in recipe.to_json().items()}
    lines += ["## Recipe", "", *_table(("setting", "value"), settings), ""]
    return "\n".join(lines)


def _card_name(field: str, recipe: StudentRecipe) -> str:
    """The field as the card names it: a recipe that was changed is no longer the one whose name it has."""
    changed = recipe != STUDENT_RECIPES.get(recipe.name)
    return "name of the recipe that was changed" if field == "name" and changed else field


def _pixels(rule: PixelRule) -> str:
    return f", images {rule.words()} first" if rule.words() else ""


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    """Two columns of Markdown; says so when there is nothing."""
    if not rows:
        return ["Nothing was recorded."]
    cells = [f"| {markdown(name)} | {markdown_code(value)} |" for name, value in rows.items()]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *cells]
