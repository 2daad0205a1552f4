"""The contact sheet shows what both stages render and mix, and says how."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from shards.errors import ShardError
from shards.index.reader import ShardReader
from shards.tars.writer import write_samples
from shards.views.behaviour import fixed_image
from shards.views.view import render_views
from shards.views.view_recipe import recipe_named
from teacher_cache.inspect import sheet
from teacher_cache.inspect.sheet import describe, draw_sheet, sheet_views, write_sheets

RECIPE = recipe_named("deit", size=48, block_size=4)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    samples = [
        (f"s{n}", n % 3, "jpg", simplejpeg.encode_jpeg(fixed_image(60 + n, 80), 90, "RGB", "420")) for n in range(6)
    ]
    return ShardReader(write_samples(samples, tmp_path_factory.mktemp("shards"), num_classes=3))


def _image(reader: ShardReader, key: str, view: int) -> np.ndarray:
    data = reader.image_bytes(*reader.index.find(key))
    return render_views(data, RECIPE, key, [view], key)[0].astype(int)


def test_columns_hold_the_view_and_its_mixture(reader: ShardReader) -> None:
    kinds = set()
    for column in sheet_views(reader, RECIPE, "s2", range(12)):
        own = _image(reader, "s2", column.view)
        np.testing.assert_array_equal(column.view_HWC, own)
        expected = own
        if column.partner:
            partner = _image(reader, column.partner, column.view)
            y0, y1, x0, x1 = column.box
            if any(column.box):
                expected = own.copy()
                expected[y0:y1, x0:x1] = partner[y0:y1, x0:x1]
            else:
                expected = column.lam * own + (1 - column.lam) * partner
        kinds.add("none" if not column.partner else "cutmix" if any(column.box) else "mixup")
        assert np.abs(column.mixed_HWC - expected).max() <= 1
    assert kinds >= {"mixup", "cutmix"}


def test_the_text_names_partner_operations_and_classes(reader: ShardReader) -> None:
    columns = sheet_views(reader, RECIPE, "s2", range(12), {0: [("tench", 0.75), ("goldfish", 0.125)]})
    assert describe(columns[0])[-2:] == [" 75.0% tench", " 12.5% goldfish"]
    for column in columns:
        text = "\n".join(describe(column))
        assert f"view {column.view}" in text and (
            f"with {column.partner}" in text if column.partner else "not mixed" in text
        )
        assert all(operation.name in text for operation in column.params.operations)
        assert ("flipped" in text) == column.params.flip and ("erased" in text) == (column.params.erased is not None)
    plain = sheet_views(reader, replace(RECIPE, mix_prob=0.0), "s2", [0])
    assert "not mixed" in describe(plain[0]) and (plain[0].mixed_HWC == plain[0].view_HWC).all()


def test_a_sheet_is_a_png_that_shows_every_view(reader: ShardReader, tmp_path: Path) -> None:
    columns = sheet_views(reader, RECIPE, "s0", range(3))
    write_sheets(tmp_path / "sheet.png", [("title", columns)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.size == draw_sheet("title", columns).size
        pixels = np.asarray(sheet)
    for column in columns:
        for image in (column.view_HWC, column.mixed_HWC):
            windows = np.lib.stride_tricks.sliding_window_view(pixels, image[0].shape, axis=(1, 2))
            assert (windows[:, :, 0] == image[0]).all(axis=(-1, -2)).any()


def test_what_cannot_be_shown_is_an_error(reader: ShardReader, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="s99"):
        sheet_views(reader, RECIPE, "s99", [0])
    with pytest.raises(ValueError, match="at least one view"):
        draw_sheet("title", [])
    with pytest.raises(ValueError, match=r"\.png"):
        write_sheets(tmp_path / "sheet.jpg", [("title", sheet_views(reader, RECIPE, "s0", [0]))])


@pytest.mark.parametrize("width", [60, 200, 500])
def test_no_line_of_a_caption_reaches_into_the_next_column(width):
    """Widths are those of the letters, not a count of them; a word without spaces is cut."""
    font = sheet._font()
    for text in ("WWWW iiii × λ ß é", "n01440764/" + "W" * 90, "with class002/photo018, own weight 0.985", ""):
        lines = sheet._wrapped(text, width, font)
        assert all(font.getlength(line) <= width for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_the_font_has_the_letters_of_keys():
    """A box in place of a letter is the font's way to say that it lacks it."""
    font = sheet._font()
    missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    for letter in "×λτßéøłжя":
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != missing, letter
