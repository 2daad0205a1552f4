"""Recognise the vision transformer that a file of weights is of, from the names and shapes of its tensors."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from shards.text.figures import count
from student.recipe.zoo import MODELS

Shapes = Mapping[str, tuple[int, ...]]


class TransformerFile(NamedTuple):
    """What the shapes say.

    Attributes:
        dim, depth: width of the tokens, number of blocks. patch: side in pixels.
        distilled, layer_scale: whether it has a distillation token, a LayerScale.
        positions: number of position embeddings. side: patches along a side; None where they are no square grid.
    """

    dim: int
    depth: int
    patch: int
    distilled: bool
    layer_scale: bool
    positions: int
    side: int | None

    @property
    def image_size(self) -> int | None:
        """Pixels of the square images that it was trained on; None where its grid is no square."""
        return None if self.side is None else self.side * self.patch

    @property
    def model(self) -> str:
        """Its name in the table of students, the one of its own resolution if there are several; "" for others."""
        names = {}
        for name, entry in MODELS.items():
            shape = entry.transformer
            known = shape and (shape.dim, shape.depth, shape.patch, entry.distilled, shape.layer_scale)
            if known == (self.dim, self.depth, self.patch, self.distilled, self.layer_scale):
                names[entry.image_size] = name
        return names.get(self.image_size or 0, next(iter(names.values()), ""))

    def __str__(self) -> str:
        """ "weights of deit_tiny_patch16_224 at 32 px", or the shape in words."""
        token, blocks = "with" if self.distilled else "without", count(self.depth, "block")
        shape = f"a vision transformer of width {self.dim}, {blocks}, patches of {self.patch} px, {token} "
        size = f"at {self.image_size} px" if self.side else f"with {self.positions} positions, which are no square grid"
        return f"weights of {self.model or f'{shape}distillation token'} {size}"


def transformer_of(shapes: Shapes) -> TransformerFile | None:
    """The vision transformer of these shapes by name; None for other networks."""
    positions, patches = shapes.get("pos_embed", ()), shapes.get("patch_embed.proj.weight", ())
    if len(positions) != 3 or len(patches) != 4:
        return None
    distilled = "dist_token" in shapes
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.") and name.count(".") > 1}
    # DeiT-III gives class and distillation tokens no position; which it is shows in what is a square.
    sides = (_root(positions[1] - tokens) for tokens in (1 + distilled, 0))
    return TransformerFile(
        dim=patches[0],
        depth=len(blocks),
        patch=patches[-1],
        distilled=distilled,
        layer_scale=any(name in shapes for name in ("blocks.0.ls1.gamma", "blocks.0.gamma_1")),
        positions=positions[1],
        side=next((side for side in sides if side), None),
    )


def _root(number: int) -> int:
    """The whole root of a square number; 0 for others."""
    root = math.isqrt(max(number, 0))
    return root if root * root == number else 0
