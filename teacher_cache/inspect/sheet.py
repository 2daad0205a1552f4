"""A contact sheet of one sample: the views as rendered, the mixtures the teacher saw, and how each came about.

Top row: the view alone. Below: the same after mixing, which is what teacher and student see. Then the parameters, the
mixing partner, and, when there is a cache, the classes of the record.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from shards.views.blocks import render_block
from shards.views.mixing import block_rows, prepare
from shards.views.view import ViewParams, decoded_size, view_params
from shards.views.view_recipe import ViewRecipe
from teacher_cache.inspect.sample_record import read_record
from teacher_cache.store.cache import TeacherCache

# V views; H, W of a view; C = 3; B rows of a block.

_MARGIN = 8
_LINE = 15
_FONT_SIZE = 11
_TOP_CLASSES = 3
_LEAST_WIDTH = 200
"""Pixels of a column: captions of smaller views would be all line breaks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetView:
    """One column of the sheet.

    Attributes:
        view: its number. params: as drawn. view_HWC, mixed_HWC: uint8, before and after mixing.
        partner: key of the mixing partner, "" when unmixed; lam: weight of the own image; box: (y0, y1, x0, x1) of
            CutMix, all 0 for Mixup.
        top: (class, probability) pairs of the record, most probable first; empty without a cache.
    """

    view: int
    params: ViewParams
    view_HWC: NDArray[np.uint8]
    mixed_HWC: NDArray[np.uint8]
    partner: str
    lam: float
    box: tuple[int, int, int, int]
    top: tuple[tuple[str, float], ...] = ()


def sheet_views(
    reader: ShardReader,
    recipe: ViewRecipe,
    key: str,
    views: Sequence[int],
    top: Mapping[int, Sequence[tuple[str, float]]] | None = None,
) -> list[SheetView]:
    """The columns for a sample, rendered as both stages render it.

    Args:
        top: for each view the record's classes and probabilities, decoded by the caller.

    Errors:
        ShardError when no sample has that key, or its bytes are damaged.
    """
    index = reader.index
    shard, row = index.find(key)
    size = decoded_size(reader.image_bytes(shard, row), recipe, f"{index.names[shard]}: {key}")
    columns = []
    for view in views:
        rows_R = block_rows(recipe, index.names[shard], index.num_rows(shard), view)
        block = int(np.flatnonzero(rows_R == row)[0]) // recipe.block_size
        batch = render_block(reader, recipe, shard, block, [view])
        at = int(np.flatnonzero(batch.row_B == row)[0])
        partner = int(batch.partner_B[at])
        pair = [at, partner]
        mixed_BCHW = prepare(
            torch.from_numpy(batch.view_BHWC[pair]),
            torch.tensor([1, 0]),
            torch.from_numpy(batch.lam_B[pair]),
            torch.from_numpy(batch.box_B4[pair]),
            mean=recipe.mean,
            std=recipe.std,
        )
        columns.append(
            SheetView(
                view=view,
                params=view_params(recipe, key, view, size),
                view_HWC=batch.view_BHWC[at],
                mixed_HWC=_to_pixels(mixed_BCHW[0], recipe),
                partner="" if partner == at else index.key(shard, int(batch.row_B[partner])),
                lam=float(batch.lam_B[at]),
                box=tuple(batch.box_B4[at].tolist()),
                top=tuple((top or {}).get(view, ())),
            )
        )
    return columns


def top_classes(
    cache: TeacherCache, index: ShardIndex, key: str, views: Sequence[int]
) -> dict[int, list[tuple[str, float]]]:
    """The record's likeliest classes of a sample, by view: (name, probability at τ = 1); nan for hard labels.

    Errors: as `read_record`.
    """
    names = index.class_names or tuple(f"class {n}" for n in range(index.num_classes))
    top: dict[int, list[tuple[str, float]]] = {}
    for view in views:
        record = read_record(cache, index, key, view)
        if not cache.spec.record.entry.soft:
            top[view] = [(names[record.hard], math.nan)]
            continue
        best = torch.topk(torch.from_numpy(record.log_prob()).exp(), min(_TOP_CLASSES, index.num_classes))
        top[view] = [(names[int(n)], float(p)) for p, n in zip(best.values, best.indices, strict=True)]
    return top


def _to_pixels(image_CHW: torch.Tensor, recipe: ViewRecipe) -> NDArray[np.uint8]:
    """The inverse of the normalisation, rounded, uint8 (H, W, C)."""
    image_HWC = image_CHW.permute(1, 2, 0).numpy() * np.array(recipe.std) + np.array(recipe.mean)
    return np.asarray((255.0 * image_HWC + 0.5).clip(0, 255), np.uint8)


def describe(column: SheetView) -> list[str]:
    """Write the text under a column: crop, flip, operations, erasing, mixing, classes; one fact a line."""
    params = column.params
    box = params.box
    lines = [f"view {column.view}", f"crop {box.width} × {box.height} at ({box.x}, {box.y}) of {_size(params.image)}"]
    if params.resized != (params.size, params.size):
        lines.append(f"resized to {_size(params.resized)}, view at {params.window[::-1]}")
    if params.flip:
        lines.append("flipped")
    lines += [op.name + (f" {op.value:.4g}" if op.value else "") for op in params.operations]
    if params.erased is not None:
        hole = params.erased.box
        lines.append(f"erased {hole.width} × {hole.height} at ({hole.x}, {hole.y})")
    if column.partner:
        y0, y1, x0, x1 = column.box
        how = f"CutMix box {x1 - x0} × {y1 - y0} at ({x0}, {y0})" if any(column.box) else "Mixup"
        lines += [f"{how}, own weight {column.lam:.3f}", f"with {column.partner}"]
    else:
        lines.append("not mixed")
    return lines + [name if math.isnan(share) else f"{share:6.1%} {name}" for name, share in column.top]


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} × {size[0]}"


def draw_sheet(title: str, columns: Sequence[SheetView]) -> Image.Image:
    """The contact sheet as a picture.

    Errors:
        ValueError when there are no columns.
    """
    if not columns:
        raise ValueError("sheet: expected at least one view, got none")
    size, font = columns[0].params.size, _font()
    width = max(size, _LEAST_WIDTH)
    texts = [[part for line in describe(c) for part in _wrapped(line, width, font)] for c in columns]
    across = len(columns) * (width + _MARGIN) - _MARGIN
    head = _wrapped(title, across, font)
    top = _MARGIN + _LINE * len(head) + _MARGIN
    height = top + 2 * (size + _MARGIN) + _LINE * max(map(len, texts)) + _MARGIN
    sheet = Image.new("RGB", (across + 2 * _MARGIN, height), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    _write_lines(pen, _MARGIN, _MARGIN, head, font)
    for n, (column, text) in enumerate(zip(columns, texts, strict=True)):
        x, y = _MARGIN + n * (width + _MARGIN), top
        for image_HWC in (column.view_HWC, column.mixed_HWC):
            sheet.paste(Image.fromarray(image_HWC), (x, y))
            y += size + _MARGIN
        _write_lines(pen, x, y, text, font)
    return sheet


def _write_lines(pen: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], font: ImageFont.FreeTypeFont) -> None:
    for number, line in enumerate(lines):
        pen.text((x, y + number * _LINE), line, fill=(0, 0, 0), font=font)


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: it has the letters of most languages, and ×."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _FONT_SIZE)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines of at most `width` pixels, cut at spaces, and inside of a word that is longer than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line] or [""]


def write_sheets(path: Path, samples: Sequence[tuple[str, Sequence[SheetView]]]) -> None:
    """Write the sheets of several samples, (title, columns) each, one below the other, as a PNG.

    Errors:
        ValueError for another suffix, or when there are no samples or no columns.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"sheet: expected a file name ending in .png, got {path.name!r}")
    sheets = [draw_sheet(title, columns) for title, columns in samples]
    if not sheets:
        raise ValueError("sheet: expected at least one sample, got none")
    width, height = max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)
    whole, y = Image.new("RGB", (width, height), (255, 255, 255)), 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    whole.save(path, format="PNG")
