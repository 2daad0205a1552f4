"""The table of students by name, with the recipe that each is trained with; adding one is adding a line.

A line needs a name that timm knows and nothing else. `models` prints what is known beyond that, and the tests check it
against timm: the shape of a transformer, parameters, multiply-accumulates, and what the authors published. Top-1:
ImageNet-1k, as published (arXiv:2012.12877, arXiv:2204.07118 and the authors' model zoos) and as timm measures it.
`None` is "not published" or "not counted", never zero. This file imports no torch: the CLI prints the table from it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from shards.data_defaults import SMALL_STUDENT
from shards.names import OpenSet, unknown
from shards.text.figures import count

TEACHER = "regnety_160.deit_in1k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """The shape of a vision transformer; its MLP is four times as wide as its tokens.

    Attributes:
        dim, depth, heads: width of the tokens, number of blocks, heads of each. patch: side in pixels.
        layer_scale: whether every residual branch has a LayerScale.
        class_position: whether class and distillation tokens have position embeddings.
    """

    dim: int
    depth: int
    heads: int
    patch: int = 16
    layer_scale: bool = False
    class_position: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One student architecture at one resolution: a name and a recipe; the other fields are what is known of it.

    Attributes:
        name: as on the command line; recipes: names of student recipes, in the order they are run.
        timm_name, timm_args: how timm builds it, where that differs from the name alone.
        family: the paper, a key of `PAPERS`, or nothing; distilled: has a distillation token and a second head.
        transformer: its shape; None for other networks, whose stages are not explained.
        image_size: pixels.
        params_m: parameters in millions at 1,000 classes; gmacs: multiply-accumulates per image, in 10⁹.
        top1_published, top1_timm: percent.
        drop_path: published rate. epochs: the published schedule in words, "?" unknown.
        note: what a reader should know before quoting the row.
    """

    name: str
    recipes: tuple[str, ...] = ("deit",)
    timm_name: str | None = None
    timm_args: tuple[tuple[str, bool | float | tuple[int, ...]], ...] = ()
    family: str = ""
    distilled: bool = False
    transformer: Transformer | None = None
    image_size: int = 224
    params_m: float | None = None
    gmacs: float | None = None
    top1_published: float | None = None
    top1_timm: float | None = None
    drop_path: float | None = None
    epochs: str = "?"
    note: str = ""

    @property
    def built_as(self) -> str:
        """The name by which timm builds it."""
        return self.timm_name or self.name

    @property
    def teacher(self) -> str | None:
        """The teacher the published weights were distilled from."""
        return TEACHER if self.distilled and self.family else None

    @property
    def num_patches(self) -> int:
        """Patch tokens at `image_size`; 0 for a network without patches."""
        return (self.image_size // self.transformer.patch) ** 2 if self.transformer else 0

    @property
    def num_tokens(self) -> int:
        """Patch, class and distillation tokens; 0 for a network without tokens."""
        return self.num_patches + (2 if self.distilled else 1) if self.transformer else 0

    def to_json(self) -> dict[str, Any]:
        """The row as JSON types, derived columns included; dim, depth, heads and patch of a transformer only."""
        row = {field: value for field, value in asdict(self).items() if field != "transformer"}
        shape = self.transformer
        known = {"dim": shape.dim, "depth": shape.depth, "heads": shape.heads, "patch": shape.patch} if shape else {}
        row |= {"timm_name": self.built_as, "timm_args": dict(self.timm_args), "recipes": list(self.recipes)} | known
        return row | {"teacher": self.teacher, "recipe": self.recipes[0], "num_tokens": self.num_tokens}


PAPERS = {
    "deit": "data-efficient image transformer, arXiv:2012.12877",
    "deit3": "DeiT III, arXiv:2204.07118: LayerScale, no position for the class token",
}
"""What the first piece of a name stands for."""

_TINY = Transformer(dim=192, depth=12, heads=3)
_SMALL = Transformer(dim=384, depth=12, heads=6)
_BASE = Transformer(dim=768, depth=12, heads=12)
_TINY3, _SMALL3, _MEDIUM3, _BASE3, _LARGE3, _HUGE3 = (
    replace(shape, layer_scale=True, class_position=False)
    for shape in (
        _TINY,
        _SMALL,
        Transformer(dim=512, depth=12, heads=8),
        _BASE,
        Transformer(dim=1024, depth=24, heads=16),
        Transformer(dim=1280, depth=32, heads=16, patch=14),
    )
)
_UNRELEASED = "fine-tuning code never released; ours keeps the distillation signal with the recipe of DeiT-B at 384"
_NO_RECIPE = "no recipe was published; ours is that of the small model"
_NO_WEIGHTS = "neither timm nor the authors published such weights: ViT-Ti with the DeiT-III recipe of the small model"

_STUDENTS = (
    ModelEntry(name="deit_tiny_patch16_224", family="deit", transformer=_TINY, recipes=("deit",), epochs="300",
               params_m=5.72, gmacs=1.26, top1_published=72.2, top1_timm=72.19, drop_path=0.1),
    ModelEntry(name="deit_small_patch16_224", family="deit", transformer=_SMALL, recipes=("deit",), epochs="300",
               params_m=22.05, gmacs=4.61, top1_published=79.9, top1_timm=79.86, drop_path=0.1),
    ModelEntry(name="deit_base_patch16_224", family="deit", transformer=_BASE, recipes=("deit",), epochs="300",
               params_m=86.57, gmacs=17.58, top1_published=81.8, top1_timm=81.98, drop_path=0.1),
    ModelEntry(name="deit_base_patch16_384", family="deit", transformer=_BASE, image_size=384,
               recipes=("deit_finetune384",), epochs="+30", params_m=86.86, gmacs=55.54, top1_published=82.9,
               top1_timm=83.11, drop_path=0.1),
    ModelEntry(name="deit_tiny_distilled_patch16_224", family="deit", distilled=True, transformer=_TINY,
               recipes=("deit_hard",), epochs="300", params_m=5.91, gmacs=1.27, top1_published=74.5, top1_timm=74.54,
               drop_path=0.1),
    ModelEntry(name="deit_small_distilled_patch16_224", family="deit", distilled=True, transformer=_SMALL,
               recipes=("deit_hard",), epochs="300", params_m=22.44, gmacs=4.63, top1_published=81.2, top1_timm=81.2,
               drop_path=0.1),
    ModelEntry(name="deit_base_distilled_patch16_224", family="deit", distilled=True, transformer=_BASE,
               recipes=("deit_hard",), epochs="300", params_m=87.34, gmacs=17.68, top1_published=83.4, top1_timm=83.38,
               drop_path=0.1),
    ModelEntry(name="deit_base_distilled_patch16_384", family="deit", distilled=True, transformer=_BASE, image_size=384,
               recipes=("deit_hard_finetune384",), epochs="1000 + ft", params_m=87.63, gmacs=55.65, top1_published=85.2,
               top1_timm=85.44, note=_UNRELEASED),
    ModelEntry(name="deit3_tiny_patch16_224", family="deit3", transformer=_TINY3, recipes=("deit3_small",),
               params_m=5.72, gmacs=1.26, timm_name="vit_tiny_patch16_224",
               timm_args=(("no_embed_class", True), ("init_values", 1e-6)), note=_NO_WEIGHTS),
    ModelEntry(name="deit3_small_patch16_224", family="deit3", transformer=_SMALL3, recipes=("deit3_small",),
               epochs="800", params_m=22.06, gmacs=4.61, top1_published=81.4, top1_timm=81.38, drop_path=0.05),
    ModelEntry(name="deit3_small_patch16_384", family="deit3", transformer=_SMALL3, image_size=384,
               recipes=("deit3_small_finetune384",), epochs="+20", params_m=22.21, gmacs=15.52, top1_published=83.4,
               top1_timm=83.43, drop_path=0.0),
    ModelEntry(name="deit3_medium_patch16_224", family="deit3", transformer=_MEDIUM3, recipes=("deit3_small",),
               params_m=38.85, gmacs=8.00, top1_published=83.0, top1_timm=83.09, note=_NO_RECIPE),
    ModelEntry(name="deit3_base_patch16_224", family="deit3", transformer=_BASE3,
               recipes=("deit3_base", "deit3_base_finetune224"), epochs="800 + 20", params_m=86.59, gmacs=17.58,
               top1_published=83.8, top1_timm=83.8, drop_path=0.2),
    ModelEntry(name="deit3_base_patch16_384", family="deit3", transformer=_BASE3, image_size=384,
               recipes=("deit3_base_finetune384",), epochs="+20", params_m=86.88, gmacs=55.54, top1_published=85.0,
               top1_timm=85.09, drop_path=0.15),
    ModelEntry(name="deit3_large_patch16_224", family="deit3", transformer=_LARGE3,
               recipes=("deit3_large", "deit3_large_finetune224"), epochs="800 + 20", params_m=304.37, gmacs=61.60,
               top1_published=84.9, top1_timm=84.77, drop_path=0.45),
    ModelEntry(name="deit3_large_patch16_384", family="deit3", transformer=_LARGE3, image_size=384,
               recipes=("deit3_large_finetune384",), epochs="+20", params_m=304.76, gmacs=191.21, top1_published=85.8,
               top1_timm=85.82, drop_path=0.4),
    ModelEntry(name="deit3_huge_patch14_224", family="deit3", transformer=_HUGE3,
               recipes=("deit3_huge", "deit3_huge_finetune224"), epochs="800 + 20", params_m=632.13, gmacs=167.40,
               top1_published=85.2, top1_timm=85.2, drop_path=0.6, note="drop path .55 in the 20 fine-tuning epochs"),
    ModelEntry(name=SMALL_STUDENT, recipes=("small",), timm_name="resnet10t", image_size=96, params_m=1.49,
               timm_args=(("channels", (32, 64, 128, 256)), ("stem_width", 16)),
               note="for small sets of images: timm's resnet10t at half its width"),
    ModelEntry(name="small_deit", recipes=("small",), distilled=True, timm_name="deit_tiny_distilled_patch16_224",
               image_size=96, params_m=0.71, timm_args=(("embed_dim", 96), ("depth", 4), ("num_heads", 3)),
               note="for small sets of images: DeiT-Ti with two heads, half its width and a third of its depth"),
)  # fmt: skip
MODELS = OpenSet("students", "model", ModelEntry, _STUDENTS)


def model_entry(name: str) -> ModelEntry | None:
    """The row of that name, with or without a timm weights tag; None for a model that is not in the table."""
    return MODELS.get(bare_name(name))


def bare_name(name: str) -> str:
    """The name without the tag of its weights."""
    return name.split(".")[0]


class Stage(NamedTuple):
    """One step of the forward pass: output shape with B images, parameters and multiply-accumulates of one of them.

    `times` is how often it is repeated, one after the other; the counts are of one repetition.
    """

    name: str
    shape: str
    params: int
    macs: int
    times: int = 1


class Explanation(NamedTuple):
    """A model's name piece by piece, and its stages in order."""

    entry: ModelEntry
    pieces: tuple[tuple[str, str], ...]
    stages: tuple[Stage, ...]

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return sum(stage.params * stage.times for stage in self.stages)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of its matrix products, per image (normalisation and softmax not counted)."""
        return sum(stage.macs * stage.times for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The row of the table with pieces and stages, as JSON types."""
        return self.entry.to_json() | {
            "pieces": [{"piece": piece, "meaning": meaning} for piece, meaning in self.pieces],
            "stages": [stage._asdict() for stage in self.stages],
        }


_CLASSES = 1000
_WIDTHS = ("tiny", "small", "medium", "base", "large", "huge")
_TAGS = {"fb_in1k": "weights of the authors, ImageNet-1k",
         "fb_in22k_ft_in1k": "weights of the authors, ImageNet-22k, fine-tuned on ImageNet-1k"}  # fmt: skip


def explain(name: str) -> Explanation:
    """Explain a name of the table, with the shapes of every stage of a transformer at its own resolution.

    ValueError with the nearest name for a model that is not in the table.
    """
    entry = model_entry(name)
    if entry is None:
        message = unknown("DeiT model", name, MODELS, others="`models` lists them")
        raise ValueError(f"{message}. Any other timm model works as a student too")
    return Explanation(entry, _pieces(entry, name), _stages(entry))


def _pieces(entry: ModelEntry, name: str) -> tuple[tuple[str, str], ...]:
    """The parts of a transformer's name between underscores that say something, and the tag after the dot."""
    bare, _, tag = name.partition(".")
    last = ((tag, _TAGS.get(tag, "a weights tag of timm")),) if tag else ()
    shape = entry.transformer
    if shape is None:
        return last
    side = entry.image_size // shape.patch
    width = f"width {shape.dim}, {count(shape.depth, 'block')}, {shape.heads} heads of {shape.dim // shape.heads}"
    meaning = dict.fromkeys(_WIDTHS, width) | {
        entry.family: PAPERS.get(entry.family, ""),
        "distilled": "a second token and head that learn from the teacher; inference averages both heads' logits",
        f"patch{shape.patch}": f"patches of {shape.patch}×{shape.patch} px: {side}×{side} = {entry.num_patches} tokens",
        str(entry.image_size): f"images of {entry.image_size}×{entry.image_size} px",
    }
    return (*((piece, known) for piece in bare.split("_") if (known := meaning.get(piece))), *last)


def _stages(entry: ModelEntry) -> tuple[Stage, ...]:
    """Shapes and counts of a transformer; none for another network."""
    shape = entry.transformer
    if shape is None:
        return ()
    dim, heads, tokens, patches = shape.dim, shape.heads, entry.num_tokens, entry.num_patches
    pixels = 3 * shape.patch**2
    extra = 2 if entry.distilled else 1
    positions = tokens if shape.class_position else patches
    names = "CLS and DIST" if entry.distilled else "CLS"
    scale = dim if shape.layer_scale else 0
    seq = f"(B, {tokens}, {dim})"
    head = Stage("head: logits", f"(B, {_CLASSES})", (dim + 1) * _CLASSES, dim * _CLASSES)
    blocks = (
        Stage("block: norm, qkv", f"3 × (B, {heads}, {tokens}, {dim // heads})", 2 * dim + 3 * dim * (dim + 1),
              3 * tokens * dim**2),
        Stage("block: attention", f"(B, {heads}, {tokens}, {tokens})", 0, 2 * tokens**2 * dim),
        Stage("block: projection, residual", seq, dim * (dim + 1) + scale, tokens * dim**2),
        Stage("block: norm, MLP up, GELU", f"(B, {tokens}, {4 * dim})", 2 * dim + 4 * dim * (dim + 1),
              4 * tokens * dim**2),
        Stage("block: MLP down, residual", seq, (4 * dim + 1) * dim + scale, 4 * tokens * dim**2),
    )  # fmt: skip
    return (
        Stage("image", f"(B, 3, {entry.image_size}, {entry.image_size})", 0, 0),
        Stage("patch embedding", f"(B, {patches}, {dim})", (pixels + 1) * dim, patches * pixels * dim),
        Stage(f"{names} tokens, positions", seq, (extra + positions) * dim, 0),
        *(stage._replace(times=shape.depth) for stage in blocks),
        Stage("norm", seq, 2 * dim, 0),
        head,
        *((head._replace(name="head_dist: logits"),) if entry.distilled else ()),
    )
