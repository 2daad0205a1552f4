"""The student network: any timm model, with the training details that timm leaves to the caller.

    make_student    build, shape the drop path and LayerScale, load weights for fine-tuning
    heads           one call that gives (CLS logits, DIST logits or None) in training and in evaluation

B batch, C classes. A DeiT with a distillation token trains CLS on the labels and DIST on the teacher. Trained without
a teacher its DIST head would get no gradient, and DistributedDataParallel would fail on it; then the *average* of the
two heads is trained on the labels, which is what it answers with at inference: every parameter has a gradient, and
the exported weights mean what plain timm makes of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from shards.errors import RunError
from shards.index.pixel_rule import PixelRule
from student.learn.losses.table import NONE
from student.learn.process_group import unwrapped
from student.learn.timm_model import Normalisation, bare_model, renormalise
from student.learn.transformer_file import Shapes, transformer_of
from student.recipe.student_recipe import PUBLISHED, StudentRecipe
from teacher_cache.network.timm_network import published
from teacher_cache.network.trial import reason_of
from teacher_cache.network.weights import misfit_words, part_of_network, read_weights
from teacher_cache.network.weights_metadata import trained_as

_GRIDS = ("pos_embed", "patch_embed.proj.weight")
"""What is resized when the image or the patch has another size."""


class Heads(NamedTuple):
    """What a student answers: logits of CLS (B, C), and of DIST (B, C) when it has a distillation token."""

    cls_BC: Tensor
    dist_BC: Tensor | None

    def all(self) -> tuple[Tensor, ...]:
        """The logits of the one head, or of both."""
        return (self.cls_BC,) if self.dist_BC is None else (self.cls_BC, self.dist_BC)

    def average(self) -> Tensor:
        """The answer at inference: the average of the heads' logits, or the one head's."""
        return self.cls_BC if self.dist_BC is None else (self.cls_BC + self.dist_BC) / 2

    def by_name(self) -> dict[str, Tensor]:
        """ "cls" (the only head, or CLS), and with two heads "dist" and "average"."""
        if self.dist_BC is None:
            return {"cls": self.cls_BC}
        return {"cls": self.cls_BC, "dist": self.dist_BC, "average": self.average()}


class LoadReport(NamedTuple):
    """What was taken from a weights file.

    Attributes:
        resized: names of tensors whose grid was resized, with both shapes.
        fresh: names of the classifier that begin anew. drawn: what begins at random because the file lacks it.
        dropped: names of the file that this student has no place for.
        chosen: which of several sets of weights or prefixes in the file they are; "" where there was no choice.
        pixels: what was done to the images that they were trained on; None where the file does not say it.
        normalisation: of those images; None likewise. renormalised: what was changed for that of the views, in words.
    """

    resized: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    fresh: tuple[str, ...]
    drawn: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    chosen: str = ""
    pixels: PixelRule | None = None
    normalisation: Normalisation | None = None
    renormalised: str = ""

    @property
    def words(self) -> str:
        """The differences from the file, in words; "" for none."""
        parts = [f"{name} is resized from {before} to {after}" for name, (before, after) in self.resized.items()]
        parts += [f"{', '.join(self.dropped)} are left out"] * bool(self.dropped)
        parts += [f"{', '.join(self.drawn)} begin at random"] * bool(self.drawn)
        parts += [f"{', '.join(self.fresh)} begin at zero"] * bool(self.fresh)
        parts += [self.renormalised] * bool(self.renormalised)
        return "; ".join(parts)


def make_student(
    recipe: StudentRecipe, num_classes: int, *, seed: int, device: torch.device | str = "cpu"
) -> nn.Module:
    """Build the recipe's student in training mode, ready for `heads`.

    Args:
        num_classes: C. seed: of the initial weights, which depend on nothing else.
        device: where it is built; "meta" allocates nothing.

    Fine-tuning loads `recipe.init_weights`. ValueError for what timm cannot build, RunError for weights that do not
    fit.
    """
    return student_and_start(recipe, num_classes, seed=seed, device=device)[0]


def student_and_start(
    recipe: StudentRecipe,
    num_classes: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    normalisation: Normalisation | None = None,
) -> tuple[nn.Module, LoadReport | None]:
    """The student of `make_student`, and what it took from `recipe.init_weights`; None where it starts from scratch.

    Args:
        normalisation: of the images that it will see; weights trained with another one are changed to take them.
    """
    recipe.require_start()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(recipe, num_classes, device)
    set_drop_path(model, recipe.drop_path, recipe.drop_path_shape)
    if recipe.layer_scale_init > 0:
        set_layer_scale(model, recipe.layer_scale_init)
    report = load_initial(model, recipe.init_weights) if recipe.init_weights else None
    if report is not None and report.normalisation is not None and normalisation is not None:
        report = report._replace(renormalised=renormalise(model, report.normalisation, normalisation))
    set_distilled(model, recipe.distill != NONE)
    return model.train(), report


def _build(recipe: StudentRecipe, num_classes: int, device: torch.device | str) -> nn.Module:
    """The bare model on a device, with timm's own (linear) drop path when it is on."""
    extra: dict[str, Any] = {"drop_path_rate": recipe.drop_path} if recipe.drop_path > 0 else {}
    extra |= dict(recipe.model_args)
    with torch.device(device):
        return bare_model(recipe.model, num_classes, image_size=recipe.image_size, arguments=extra)


def set_drop_path(model: nn.Module, rate: float, shape: str) -> None:
    """Give every block the same drop path ("uniform", the code of DeiT-III); "linear" is what timm has built.

    ValueError for models whose blocks are not a vision transformer's.
    """
    if shape == "linear" or rate == 0:
        return
    blocks = getattr(model, "blocks", None)
    if not isinstance(model, VisionTransformer) or blocks is None:
        raise ValueError(f"drop_path_shape: uniform needs a vision transformer, got {type(model).__name__}; use linear")
    for block in blocks:
        for name in ("drop_path1", "drop_path2"):
            if not hasattr(block, name):
                raise ValueError(f"drop_path_shape: uniform needs blocks with {name}, got {type(block).__name__}")
            setattr(block, name, DropPath(rate))


def set_layer_scale(model: nn.Module, value: float) -> None:
    """Set every LayerScale to `value`; ValueError when the model has none."""
    scales = [module for module in model.modules() if isinstance(module, LayerScale)]
    if not scales:
        raise ValueError(
            f"layer_scale_init: {type(model).__name__} has no LayerScale; set layer_scale_init=0 for this model"
        )
    for scale in scales:
        nn.init.constant_(scale.gamma, value)


def fastest_layout(model: nn.Module) -> torch.memory_format | None:
    """Return the memory layout in which a model computes fastest; None: as it is.

    Channels last for CNNs: tensor cores want it, and a step of a small CNN takes a quarter less of a CPU. A vision
    transformer has one convolution.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolutions > 1 else None


def set_grad_checkpointing(model: nn.Module) -> None:
    """Let the model keep little between forward and backward, and compute the rest again; same numbers.

    ValueError for a model that has no such switch.
    """
    switch: Any = getattr(unwrapped(model), "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(
            f"grad_checkpointing: {type(unwrapped(model)).__name__} has no set_grad_checkpointing, as timm's models "
            "have; drop --grad-checkpointing, or give --accumulate"
        )
    switch(True)


def has_dist(model: nn.Module) -> bool:
    """Whether the student has a distillation token with its own head."""
    return isinstance(unwrapped(model), VisionTransformerDistilled)


def set_distilled(model: nn.Module, on: bool) -> None:
    """Train CLS and DIST apart (on), or their average (off); models with one head have nothing to set."""
    core = unwrapped(model)
    switch: Any = getattr(core, "set_distilled_training", None)
    if switch is not None:
        switch(on and has_dist(core))


def heads(model: nn.Module, x_BCHW: Tensor) -> Heads:
    """The logits of the heads for normalised images, through DDP and torch.compile alike.

    In training mode this is one forward of `model` as it is wrapped; a two-headed student that trains the average of
    its heads gives it as `cls_BC`. In evaluation mode timm would average in silence, so the heads are read one by one.
    """
    core = unwrapped(model)
    if core.training or not isinstance(core, VisionTransformerDistilled):
        out = model(x_BCHW)
        return Heads(*out) if isinstance(out, tuple) and len(out) == 2 else Heads(out, None)
    tokens = core.forward_features(x_BCHW)
    return Heads(core.head(tokens[:, 0]), core.head_dist(tokens[:, 1]))


def load_initial(model: nn.Module, weights: str) -> LoadReport:
    """Load what a student begins with: a weights file, or "timm:NAME" for published ones; as `load_weights`.

    A classifier that is missing or has another class count begins at zero, so that the first loss is log C. What timm
    would draw for a CNN of few classes answers with logits in the tens, and unlearning them costs more than the
    features can bear. Between a DeiT with and one without a distillation token, the token of the student begins at
    random, and that of the file is left out.
    """
    scheme, _, name = weights.partition(":")
    if scheme == PUBLISHED:
        start = published(name)
        report = _load_state(model, start.state, weights, start=True)
        report = report._replace(normalisation=Normalisation(start.mean, start.std))
    else:
        report = load_weights(model, Path(weights), start=True)
    fresh = dict(unwrapped(model).named_parameters())
    for name in report.fresh:
        nn.init.zeros_(fresh[name])
    return report


def load_weights(model: nn.Module, path: Path, *, start: bool = False) -> LoadReport:
    """Load a weights file, resizing the position embedding when the resolution differs.

    The grid is resized bicubically without antialiasing, the class and distillation positions are kept (DeiT, arXiv:
    2012.12877, section 3). Accepts what `read_weights` does, under the names of timm or of the DeiT authors.

    Args:
        start: a classifier that is missing or of another class count stays at its fresh initialisation, and so does a
            missing distillation token; else RunError.
    """
    file, target = read_weights(path), unwrapped(model)
    own = target.state_dict()
    free = (*_classifier_names(target), "dist_token", "head_dist.") if start else ()
    optional = [name for name in own if free and name.startswith(free)]
    state, part = part_of_network(file.state, own, str(path), optional=optional)
    taken = "; ".join(words for words in (file.chosen, part) if words)
    known = trained_as(path)
    report = _load_state(model, state, str(path), start=start)
    if known is None:
        return report._replace(chosen=taken)
    return report._replace(chosen=taken, pixels=known.pixels, normalisation=Normalisation(known.mean, known.std))


def _load_state(model: nn.Module, state: dict[str, Tensor], where: str, *, start: bool) -> LoadReport:
    target = unwrapped(model)
    own = target.state_dict()
    in_file = {name: tuple(value.shape) for name, value in state.items()}
    drawn: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    if start and isinstance(target, VisionTransformer):
        state, drawn, dropped = _with_tokens_of(own, state)
    before = {name: tuple(value.shape) for name, value in state.items()}
    if isinstance(target, VisionTransformer):
        state = _converted(target, state, before, where)
    classifier = [name for name in own if name.startswith(_classifier_names(target))] if start else []
    fresh = tuple(n for n in classifier if n not in state or state[n].shape != own[n].shape)
    missing, unknown = own.keys() - state.keys() - set(fresh), state.keys() - own.keys()
    wrong = [
        f"{n}: {in_file.get(n, tuple(state[n].shape))} for {tuple(own[n].shape)}"
        for n in own.keys() & state.keys() - set(fresh)
        if own[n].shape != state[n].shape
    ]
    words = misfit_words(missing=missing, unknown=unknown, wrong=wrong)
    if words:
        stored, wanted = transformer_of(in_file), transformer_of({n: tuple(value.shape) for n, value in own.items()})
        other = f"they are {stored}: " if stored and str(stored) != str(wanted) else ""
        advice = f"{other}give weights of the same architecture and class count"
        if unknown and not missing and not wrong:
            advice = "the rest fits: give the model that has these tensors too, or a file without them"
        raise RunError(f"weights {where}: do not fit {type(target).__name__}: {words}; {advice}")
    target.load_state_dict({name: state[name] for name in own if name not in fresh}, strict=not fresh)
    after = {name: tuple(state[name].shape) for name in _GRIDS if name in before and name in state}
    resized = {n: (before[n], shape) for n, shape in after.items() if before[n] != shape}
    return LoadReport(resized, fresh, drawn, dropped)


def _with_tokens_of(
    own: Mapping[str, Tensor], state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The tensors of a file with the distillation token that the student has, or without the one it has not.

    Returns:
        the tensors, what of them was drawn at random, and the names that were left out.
    """
    stored = transformer_of({name: tuple(value.shape) for name, value in state.items()})
    target = transformer_of({name: tuple(value.shape) for name, value in own.items()})
    if not stored or not target or stored.distilled == target.distilled or stored.dim != target.dim:
        return state, (), ()
    position = state["pos_embed"]
    if stored.side is None or stored.positions != stored.side**2 + 1 + stored.distilled:
        return state, (), ()  # positions of the patches alone: no such pair of students exists
    rest = position[:, 1 + stored.distilled :]
    if target.distilled:
        drawn_position = own["pos_embed"][:, 1:2].to(position)
        joined = torch.cat((position[:, :1], drawn_position, rest), dim=1)
        return {**state, "dist_token": own["dist_token"], "pos_embed": joined}, ("dist_token", "its position"), ()
    dropped = tuple(name for name in state if name.split(".")[0] in ("dist_token", "head_dist"))
    others = {name: value for name, value in state.items() if name not in dropped}
    return {**others, "pos_embed": torch.cat((position[:, :1], rest), dim=1)}, (), (*dropped, "its position")


def _converted(target: VisionTransformer, state: dict[str, Tensor], shapes: Shapes, where: str) -> dict[str, Tensor]:
    """The tensors of a file under timm's names, their grids resized to the student's.

    RunError where the file is of another kind of transformer, or its positions are no square grid.
    """
    stored = transformer_of(shapes)
    own = transformer_of({name: tuple(value.shape) for name, value in target.state_dict().items()})
    if stored and own and stored.distilled != own.distilled:
        has, other, wanted = ("none", "one", "with") if own.distilled else ("one", "none", "without")
        advice = f"give --model {stored.model}, or weights" if stored.model else "give weights"
        raise RunError(
            f"weights {where}: they are {stored}: of distillation tokens they have {has}, the student "
            f"({own.model or type(target).__name__}) has {other}; {advice} of a model {wanted} one"
        )
    if stored and own and stored.side is None and stored.positions != own.positions:
        raise RunError(
            f"weights {where}: they are {stored}: expected {own.positions} positions, or a square grid that can be "
            "resized; give weights that were trained on square images"
        )
    try:
        return checkpoint_filter_fn(state, target, adapt_layer_scale=True, antialias=False)
    except Exception as error:  # timm stumbles on whatever the file holds
        raise RunError(
            f"weights {where}: cannot be brought into the form of {type(target).__name__} ({reason_of(error)}); "
            f"{f'they are {stored}: ' if stored else ''}give weights of the same architecture and class count"
        ) from error


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the classifier's parameters, from timm's own config."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
