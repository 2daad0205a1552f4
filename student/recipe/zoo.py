"""The table of DeiT students: what each name stands for, what its authors published, and how it is trained.

Architecture and counts are checked against timm by the tests. Top-1: ImageNet-1k, as published (arXiv:2012.12877,
arXiv:2204.07118 and the authors' model zoos) and as timm measures it. `None` is "not published", never zero.
This file imports no torch: the CLI prints the table from it.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from shards.names import unknown

TEACHER = "regnety_160.deit_in1k"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One student architecture at one resolution.

    Attributes:
        name: the timm name; family: "deit" or "deit3"; distilled: has a distillation token and a second head.
        dim, depth, heads, patch (pixels), image_size (pixels of the name): the transformer; mlp ratio 4 everywhere.
        params_m: parameters in millions at 1,000 classes; gmacs: multiply-accumulates per image, in 10⁹.
        top1_published, top1_timm: percent; None when there is none.
        drop_path: published rate; None when not published. epochs: the published schedule in words, "?" unknown.
        teacher: name of the teacher, or None. recipes: names of student recipes, in the order they are run.
        timm_name, timm_args: how timm builds it.
        note: what a reader should know before quoting the row.
    """

    name: str
    family: str
    distilled: bool
    dim: int
    depth: int
    heads: int
    patch: int
    image_size: int
    params_m: float
    gmacs: float
    top1_published: float | None
    top1_timm: float | None
    drop_path: float | None
    epochs: str
    recipes: tuple[str, ...]
    timm_name: str
    timm_args: tuple[tuple[str, bool | float], ...] = ()
    note: str = ""

    @property
    def teacher(self) -> str | None:
        """The teacher the published weights were distilled from."""
        return TEACHER if self.distilled else None

    @property
    def num_patches(self) -> int:
        """Patch tokens at `image_size`."""
        return (self.image_size // self.patch) ** 2

    @property
    def num_tokens(self) -> int:
        """Patch, class and distillation tokens."""
        return self.num_patches + (2 if self.distilled else 1)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON types, derived columns included."""
        row = asdict(self) | {"timm_args": dict(self.timm_args), "recipes": list(self.recipes)}
        return row | {"teacher": self.teacher, "recipe": self.recipes[0], "num_tokens": self.num_tokens}


_WIDTH = {"tiny": (192, 12, 3), "small": (384, 12, 6), "medium": (512, 12, 8), "base": (768, 12, 12),
          "large": (1024, 24, 16), "huge": (1280, 32, 16)}  # fmt: skip
_UNRELEASED = "fine-tuning code never released; ours keeps the distillation signal with the recipe of DeiT-B at 384"
_MEDIUM = "no recipe was published; ours is that of the small model"
_TINY3 = "neither timm nor the authors published such weights: ViT-Ti with the DeiT-III recipe of the small model"

# name, params M, GMACs, top-1 published, top-1 timm, drop path, epochs, recipes, note
_ROWS: tuple[tuple[str, float, float, float | None, float | None, float | None, str, str, str], ...] = (
    ("deit_tiny_patch16_224", 5.72, 1.26, 72.2, 72.19, 0.1, "300", "deit", ""),
    ("deit_small_patch16_224", 22.05, 4.61, 79.9, 79.86, 0.1, "300", "deit", ""),
    ("deit_base_patch16_224", 86.57, 17.58, 81.8, 81.98, 0.1, "300", "deit", ""),
    ("deit_base_patch16_384", 86.86, 55.54, 82.9, 83.11, 0.1, "+30", "deit_finetune384", ""),
    ("deit_tiny_distilled_patch16_224", 5.91, 1.27, 74.5, 74.54, 0.1, "300", "deit_hard", ""),
    ("deit_small_distilled_patch16_224", 22.44, 4.63, 81.2, 81.20, 0.1, "300", "deit_hard", ""),
    ("deit_base_distilled_patch16_224", 87.34, 17.68, 83.4, 83.38, 0.1, "300", "deit_hard", ""),
    ("deit_base_distilled_patch16_384", 87.63, 55.65, 85.2, 85.44, None, "1000 + ft", "deit_hard_finetune384",
     _UNRELEASED),
    ("deit3_tiny_patch16_224", 5.72, 1.26, None, None, None, "?", "deit3_small", _TINY3),
    ("deit3_small_patch16_224", 22.06, 4.61, 81.4, 81.38, 0.05, "800", "deit3_small", ""),
    ("deit3_small_patch16_384", 22.21, 15.52, 83.4, 83.43, 0.0, "+20", "deit3_small_finetune384", ""),
    ("deit3_medium_patch16_224", 38.85, 8.00, 83.0, 83.09, None, "?", "deit3_small", _MEDIUM),
    ("deit3_base_patch16_224", 86.59, 17.58, 83.8, 83.80, 0.2, "800 + 20", "deit3_base deit3_base_finetune224", ""),
    ("deit3_base_patch16_384", 86.88, 55.54, 85.0, 85.09, 0.15, "+20", "deit3_base_finetune384", ""),
    ("deit3_large_patch16_224", 304.37, 61.60, 84.9, 84.77, 0.45, "800 + 20",
     "deit3_large deit3_large_finetune224", ""),
    ("deit3_large_patch16_384", 304.76, 191.21, 85.8, 85.82, 0.4, "+20", "deit3_large_finetune384", ""),
    ("deit3_huge_patch14_224", 632.13, 167.40, 85.2, 85.20, 0.6, "800 + 20",
     "deit3_huge deit3_huge_finetune224", "drop path .55 in the 20 fine-tuning epochs"),
)  # fmt: skip


def _entry(row: tuple[str, float, float, float | None, float | None, float | None, str, str, str]) -> ModelEntry:
    """A row with what its name says."""
    name, params_m, gmacs, published, timm, drop_path, epochs, recipes, note = row
    family, width, *middle, patch, size = name.split("_")
    dim, depth, heads = _WIDTH[width]
    ours = name == "deit3_tiny_patch16_224"
    return ModelEntry(
        name=name,
        family=family,
        distilled="distilled" in middle,
        dim=dim,
        depth=depth,
        heads=heads,
        patch=int(patch.removeprefix("patch")),
        image_size=int(size),
        params_m=params_m,
        gmacs=gmacs,
        top1_published=published,
        top1_timm=timm,
        drop_path=drop_path,
        epochs=epochs,
        recipes=tuple(recipes.split()),
        timm_name="vit_tiny_patch16_224" if ours else name,
        timm_args=(("no_embed_class", True), ("init_values", 1e-6)) if ours else (),
        note=note,
    )


MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in map(_entry, _ROWS)}


def model_entry(name: str) -> ModelEntry | None:
    """The row of that name, with or without a timm weights tag; None for a model that is not in the table."""
    return MODELS.get(name.split(".")[0])


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


_TAGS = {"fb_in1k": "weights of the authors, ImageNet-1k",
         "fb_in22k_ft_in1k": "weights of the authors, ImageNet-22k, fine-tuned on ImageNet-1k"}  # fmt: skip


def explain(name: str, *, num_classes: int = 1000) -> Explanation:
    """What a name of the table stands for, with the shapes of every stage at its own resolution.

    ValueError with the nearest name for a model that is not in the table.
    """
    entry = model_entry(name)
    if entry is None:
        said = unknown("DeiT model", name, MODELS, others="`models` lists them")
        raise ValueError(f"{said}. Any other timm model works as a student too")
    return Explanation(entry, _pieces(entry, name), _stages(entry, num_classes))


def _pieces(entry: ModelEntry, name: str) -> tuple[tuple[str, str], ...]:
    """The parts of the name between underscores, and the tag after the dot."""
    side = entry.image_size // entry.patch
    papers = {
        "deit": "data-efficient image transformer, arXiv:2012.12877",
        "deit3": "DeiT III, arXiv:2204.07118: LayerScale, no position for the class token",
    }
    meaning = {
        entry.family: papers[entry.family],
        "distilled": "a second token and head that learn from the teacher; inference averages both heads' logits",
        f"patch{entry.patch}": f"patches of {entry.patch}×{entry.patch} px: {side}×{side} = {entry.num_patches} tokens",
        str(entry.image_size): f"images of {entry.image_size}×{entry.image_size} px",
    }
    width = f"width {entry.dim}, {entry.depth} blocks, {entry.heads} heads of {entry.dim // entry.heads}"
    bare, _, tag = name.partition(".")
    pieces = tuple((piece, meaning.get(piece, width)) for piece in bare.split("_"))
    return (*pieces, (tag, _TAGS.get(tag, "a weights tag of timm"))) if tag else pieces


def _stages(entry: ModelEntry, num_classes: int) -> tuple[Stage, ...]:
    """Shapes and counts; the MLP is four times as wide as the tokens."""
    dim, tokens, patches, heads = entry.dim, entry.num_tokens, entry.num_patches, entry.heads
    pixels = 3 * entry.patch**2
    deit3 = entry.family == "deit3"
    extra = 2 if entry.distilled else 1
    positions = patches if deit3 else tokens
    names = "CLS and DIST" if entry.distilled else "CLS"
    scale = dim if deit3 else 0
    seq = f"(B, {tokens}, {dim})"
    head = Stage("head: logits", f"(B, {num_classes})", (dim + 1) * num_classes, dim * num_classes)
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
        *(stage._replace(times=entry.depth) for stage in blocks),
        Stage("norm", seq, 2 * dim, 0),
        head,
        *((head._replace(name="head_dist: logits"),) if entry.distilled else ()),
    )
