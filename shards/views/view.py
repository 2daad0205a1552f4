"""Draw a view as parameters, then render them as pixels.

`draw` turns a recipe, an image size and a stream into `ViewParams`, a frozen value that prints and goes through JSON;
`render` turns pixels and params into the uint8 view. Both are pure. A view of a sample depends on (recipe, sample key,
view number) alone: its stream is named by them, and nothing else is random.

The order is DeiT's: crop and resize → flip → RandAugment or 3-Augment → colour jitter → erase; normalisation and mixing
come later, on the device (shards.mixing).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.rng import Stream, stream
from shards.views.augment import (
    Erase,
    draw_color_jitter,
    draw_erase,
    draw_rand_augment,
    draw_three_augment,
    in_versions,
)
from shards.views.decode import decode_rgb, read_header, shrunk_size
from shards.views.erasing import erase
from shards.views.operations.apply import apply_operations
from shards.views.operations.operation import Operation
from shards.views.operations.operation_names import WHOLE_CENTER
from shards.views.rand_augment import parse_rand_augment
from shards.views.resample import Box, flip_columns, resize_window
from shards.views.view_recipe import ViewRecipe

# V views; H, W of an image or view; C = 3.

_REFLECTED = 4  # pixels that "src" may look over the edge


class Erased(NamedTuple):
    """A box of noise and the distribution of its pixels, per channel in [0, 1] units."""

    box: Erase
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewParams:
    """Everything that decides the pixels of one view of an image.

    Attributes:
        image: height and width of the image they were drawn for, pixels.
        size: side of the view.
        box: (y, x, height, width) of the crop in the image.
        resized: (height, width) to which the crop is resized.
        window: (y, x) of the view in the resized crop; where it looks over the edge, pixels are reflected.
        flip: whether left and right are exchanged.
        operations: what is then done to the pixels, in order.
        fill: colour of pixels without a source.
        erased: the box of noise, or None.
    """

    image: tuple[int, int]
    size: int
    box: Box
    resized: tuple[int, int]
    window: tuple[int, int]
    flip: bool
    operations: tuple[Operation, ...]
    fill: tuple[int, int, int]
    erased: Erased | None

    def to_json(self) -> dict[str, Any]:
        """The params as JSON types; floats round-trip exactly."""
        data = asdict(self)
        data["operations"] = [[op.name, op.value] for op in self.operations]
        if self.erased is not None:
            data["erased"] = [list(self.erased.box), list(self.erased.mean), list(self.erased.std)]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ViewParams":
        """The inverse of `to_json`; ValueError for other fields."""
        names = set(cls.__dataclass_fields__)
        if set(data) != names:
            raise ValueError(f"view params: expected the fields {sorted(names)}, got {sorted(data)}")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        fields["box"] = Box(*data["box"])
        fields["operations"] = tuple(Operation(*op) for op in data["operations"])
        if data["erased"] is not None:
            box, mean, std = data["erased"]
            fields["erased"] = Erased(Erase(*box), tuple(mean), tuple(std))
        return cls(**fields)


def draw(recipe: ViewRecipe, size: tuple[int, int], rng: Stream) -> ViewParams:
    """The parameters of a view of an image of `size` = (height, width) pixels."""
    box, resized, window = _draw_crop(recipe, size, rng)
    flip = recipe.flip > 0 and rng.uniform() < recipe.flip
    operations: tuple[Operation, ...] = ()
    if recipe.rand_augment:
        operations = draw_rand_augment(parse_rand_augment(recipe.rand_augment), recipe.size, rng, recipe.operations)
    if recipe.three_augment:
        operations = (draw_three_augment(rng),)
    if recipe.color_jitter > 0:
        operations += draw_color_jitter(recipe.color_jitter, rng)
    if recipe.versions:
        operations = in_versions(operations, recipe.versions)
    erased = None
    if recipe.erase_prob > 0:
        hole = draw_erase(recipe.size, recipe.erase_prob, recipe.erase_scale, recipe.erase_ratio, rng)
        erased = None if hole is None else Erased(hole, recipe.mean, recipe.std)
    return ViewParams(
        image=size,
        size=recipe.size,
        box=box,
        resized=resized,
        window=window,
        flip=flip,
        operations=operations,
        fill=_fill(recipe.mean),
        erased=erased,
    )


@lru_cache(maxsize=64)
def _fill(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (min(255, round(255 * m)) for m in mean)
    return red, green, blue


def _draw_crop(recipe: ViewRecipe, size: tuple[int, int], rng: Stream) -> tuple[Box, tuple[int, int], tuple[int, int]]:
    """Box in the image, the size it is resized to, and the view's corner in that."""
    whole = Box(0, 0, *size)
    square = (recipe.size, recipe.size)
    if recipe.crop == "resize":
        return whole, square, (0, 0)
    if recipe.crop == "rrc":
        return _draw_resized_crop(size, recipe.crop_scale, recipe.crop_ratio, rng), square, (0, 0)
    if recipe.crop == "src":
        resized = _short_side(size, recipe.size)
        y, x = (rng.below(side + 2 * _REFLECTED - recipe.size + 1) - _REFLECTED for side in resized)
        return whole, resized, (y, x)
    resized = _short_side(size, recipe.short_side)
    y, x = (round((side - recipe.size) / 2.0) for side in resized)
    return whole, resized, (y, x)


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """The size with the same shape (truncated, as torchvision does) whose shorter side is `short`."""
    height, width = size
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def _draw_resized_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: Stream
) -> Box:
    """The box of RandomResizedCrop: ten tries, then the largest centred box within the ratios."""
    height, width = size
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(*log_ratio))
        # At least one pixel: of a 1 × 1 image the rounded side can be 0.
        w, h = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if w <= width and h <= height:
            return Box(rng.below(height - h + 1), rng.below(width - w + 1), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = min(width, max(1, round(height * ratio[1])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def render(image_HWC: NDArray[np.uint8], params: ViewParams) -> NDArray[np.uint8]:
    """The view, uint8 (size, size, 3).

    Args:
        image_HWC: uint8, of the size the params were drawn for; or its top rows, when they hold the crop.

    Errors:
        ValueError when the image is not one the params can be of.
    """
    box, (height, width) = params.box, params.image
    rows, columns = image_HWC.shape[:2]
    if columns != width or not box.y + box.height <= rows <= height:
        raise ValueError(f"render: expected an image of {width} × {height} pixels, got {columns} × {rows}")
    crop_HWC = image_HWC[box.y : box.y + box.height, box.x : box.x + box.width]
    view_HWC = resize_window(crop_HWC, params.resized, params.window, params.size)
    if params.flip:
        view_HWC = flip_columns(view_HWC)
    view_HWC = apply_operations(view_HWC, params.operations, params.fill)
    if params.erased is not None:
        hole, mean, std = params.erased
        view_HWC = erase(view_HWC, (hole.y, hole.x, hole.height, hole.width), hole.noise_key, mean, std)
    return view_HWC


def view_params(recipe: ViewRecipe, key: str, view: int, size: tuple[int, int]) -> ViewParams:
    """The parameters of view number `view` of the sample `key`, whose decoded image has `size` = (height, width)."""
    return draw(recipe, size, stream(recipe.seed, "view", key, view))


def shrink_of(recipe: ViewRecipe, size: tuple[int, int]) -> int:
    """By how much an image of `size` is shrunk while it is decoded: 1, 2, 4 or 8.

    The most that leaves the smallest random crop of the recipe at least as large as what it is resized to, so that
    nothing is enlarged that would have been reduced; and a crop that is always the same at least twice as large, so
    that every view has that reserve. It depends on recipe and image size alone: all views of a sample share it.
    A centre crop is of the whole picture, as timm's evaluation is: sides that are divided and rounded up would move it.
    """
    height, width = size
    if recipe.crop == "center" and WHOLE_CENTER in recipe.versions:
        return 1
    if recipe.crop == "rrc":
        smallest = math.sqrt(
            height * width * recipe.crop_scale[0] * min(recipe.crop_ratio[0], 1 / recipe.crop_ratio[1])
        )
        smallest, needed = min(smallest, height, width), recipe.size
    else:
        smallest, needed = min(height, width), 2 * (recipe.short_side if recipe.crop == "center" else recipe.size)
    return max(f for f in (1, 2, 4, 8) if f == 1 or smallest >= f * needed)


def decoded_size(data: bytes, recipe: ViewRecipe, where: str) -> tuple[int, int]:
    """Height and width of the image that `view_params` wants, from the header alone."""
    header = read_header(data, where)
    size = (header.height, header.width)
    return shrunk_size(*size, shrink_of(recipe, size))


def render_views(
    data: bytes,
    recipe: ViewRecipe,
    key: str,
    views: Sequence[int],
    where: str,
    out_VHWC: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Several views of one sample from one decode, uint8 (V, size, size, 3); each equals the same view rendered alone.

    Args:
        data: the bytes of the image. where: what errors call the sample. out_VHWC: where the pixels are put.

    Errors:
        ShardError naming `where` when the bytes are no image we take.
    """
    header = read_header(data, where)
    shrink = shrink_of(recipe, (header.height, header.width))
    size = shrunk_size(header.height, header.width, shrink)
    drawn = [view_params(recipe, key, view, size) for view in views]
    rows = max((params.box.y + params.box.height for params in drawn), default=0)
    image_HWC = decode_rgb(data, where, rows=rows, shrink=shrink, header=header)
    if image_HWC.shape[1] != size[1] or not rows <= image_HWC.shape[0] <= size[0]:
        raise ShardError(f"{where}: the header says {size[1]} × {size[0]} pixels, decoded {image_HWC.shape[:2]}")
    if out_VHWC is None:
        out_VHWC = np.empty((len(drawn), recipe.size, recipe.size, 3), np.uint8)
    for view_HWC, params in zip(out_VHWC, drawn, strict=True):
        view_HWC[:] = render(image_HWC, params)
    return out_VHWC
