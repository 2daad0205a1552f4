"""Fast paths of rendering give byte for byte what plain arithmetic gives: random recipes, images and numbers."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shards.rng import stream
from shards.views.augment import draw_rand_augment
from shards.views.decode import decode_rgb, shrunk_size
from shards.views.erasing import erase
from shards.views.operations.apply import apply_operations
from shards.views.operations.operation import Draw, Fill, Operation
from shards.views.operations.table import OPERATIONS
from shards.views.operations.warp import cubic_weights, fill_outside
from shards.views.rand_augment import parse_rand_augment
from shards.views.resample import resize_window
from shards.views.view import ViewParams, render_views, shrink_of, view_params
from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named

FILL = (124, 116, 104)
BY_TABLE = [name for name in OPERATIONS if OPERATIONS[name].table is not None]
DRAWN = sorted(OPERATIONS)

Pixels = NDArray[np.uint8]


def _image(height: int, width: int, levels: int, seed: int) -> Pixels:
    """Smooth areas and noise of at most so many levels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-9, 10, smooth.shape)
    return (noisy.clip(0, 255) // (256 // levels) * (256 // levels)).astype(np.uint8)


images = st.builds(
    _image, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 16, 256]), st.integers(0, 2**32 - 1)
)


def _sheared(image_HWC: Pixels, factor: float, fill: Fill) -> Pixels:
    """Every pixel from four taps of its row, each tap outside the row at the row's end."""
    height, width = image_HWC.shape[:2]
    out_HWC = np.empty_like(image_HWC)
    x_W = np.arange(width)
    for y in range(height):
        shift = factor * (y + 0.5)
        start = shift + 0.5
        weights = cubic_weights(np.array([shift - math.floor(shift)]))[:, 0].astype(int)
        first_W = x_W + math.floor(shift) - 1
        taps = [image_HWC[y, (first_W + tap).clip(0, width - 1)].astype(int) - 128 for tap in range(4)]
        total_WC = sum(weight * tap_WC for weight, tap_WC in zip(weights, taps, strict=True))
        inside_W1 = ((x_W >= -start) & (x_W < width - start))[:, None]
        out_HWC[y] = np.where(inside_W1, (total_WC >> 7).clip(-128, 127) + 128, fill)
    return out_HWC


def _plain(image_HWC: Pixels, operations: Sequence[Operation], fill: Fill) -> Pixels:
    """The operations one by one: tables by index, shears as above, others by their kernels."""
    for name, value in operations:
        kind = OPERATIONS[name]
        if kind.table is not None:
            image_HWC = kind.table(value)[image_HWC]
        elif name == "shear_x":
            image_HWC = _sheared(image_HWC, value, fill)
        elif name == "shear_y":
            image_HWC = _sheared(image_HWC.transpose(1, 0, 2), value, fill).transpose(1, 0, 2).copy()
        elif name == "auto_contrast":
            image_HWC = np.stack([_stretched(image_HWC[..., channel]) for channel in range(3)], axis=-1)
        else:
            assert kind.kernel is not None
            image_HWC = kind.kernel(image_HWC, value, fill)
    return image_HWC


def _stretched(plane_HW: Pixels) -> Pixels:
    low, high = float(plane_HW.min()), float(plane_HW.max())
    if high <= low:
        return plane_HW
    scale = 255.0 / (high - low)
    return (plane_HW * scale - low * scale).clip(0, 255).astype(np.uint8)


def _plain_view(data: bytes, params: ViewParams, shrink: int) -> Pixels:
    """The view from the whole image, decoded at 1/shrink of its size, every step by itself."""
    box = params.box
    crop_HWC = decode_rgb(data, "whole", shrink=shrink)[box.y : box.y + box.height, box.x : box.x + box.width]
    view_HWC = resize_window(crop_HWC, params.resized, params.window, params.size)
    view_HWC = np.ascontiguousarray(view_HWC[:, ::-1]) if params.flip else view_HWC
    view_HWC = _plain(view_HWC, params.operations, params.fill)
    if params.erased is None:
        return view_HWC
    hole, mean, std = params.erased
    return erase(view_HWC, (hole.y, hole.x, hole.height, hole.width), hole.noise_key, mean, std)


@st.composite
def recipes(draw: st.DrawFn) -> ViewRecipe:
    """Any named recipe, small, with other operations, numbers of them and erasing."""
    recipe = recipe_named(draw(st.sampled_from(sorted(RECIPES))), size=draw(st.integers(9, 48)))
    recipe = replace(recipe, seed=draw(st.integers(0, 99)), erase_prob=draw(st.sampled_from([0.0, 1.0])))
    if recipe.rand_augment:
        text = f"rand-m{draw(st.integers(0, 10))}-n{draw(st.integers(1, 5))}-p1-mstd0.5-inc{draw(st.integers(0, 1))}"
        names = draw(st.lists(st.sampled_from(DRAWN), unique=True, max_size=4))
        recipe = replace(recipe, rand_augment=text, operations=tuple(sorted(names)))
    return recipe


@settings(max_examples=60, deadline=None)
@example(recipe_named("deit3_src", size=9, seed=0), _image(36, 36, 2, 0), 0, 0)  # decoded at half its size
@given(recipe=recipes(), image_HWC=images, sampling=st.sampled_from([0, 2]), first=st.integers(0, 1000))
def test_views_are_those_of_the_plain_steps(recipe: ViewRecipe, image_HWC: Pixels, sampling: int, first: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=90, subsampling=sampling)
    data = buffer.getvalue()
    views, shrink = range(first, first + 3), shrink_of(recipe, image_HWC.shape[:2])
    for view, view_HWC in zip(views, render_views(data, recipe, "key", views, "image"), strict=True):
        drawn = view_params(recipe, "key", view, shrunk_size(*image_HWC.shape[:2], shrink))
        expected_HWC = _plain_view(data, drawn, shrink)
        np.testing.assert_array_equal(view_HWC, expected_HWC)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("magnitude", [0, 1, 10, 30])
def test_rand_augment_may_choose_any_operation_at_any_magnitude(name: str, magnitude: int) -> None:
    """The radius of a blur was 0, which OpenCV refuses."""
    settings_of_it = parse_rand_augment(f"rand-m{magnitude}-mmax30-p1-n1")
    drawn = draw_rand_augment(settings_of_it, 32, stream(0, name), (name,))
    image_HWC = _image(32, 32, 256, 0)
    assert apply_operations(image_HWC, drawn, FILL).shape == image_HWC.shape
    if name == "blur":
        assert [operation.value for operation in drawn] == [pytest.approx(0.1 + 0.19 * magnitude)]


@pytest.mark.parametrize("name", BY_TABLE)
@settings(max_examples=25, deadline=None)
@given(image_HWC=images, number=st.integers(0, 2**32 - 1))
def test_an_operation_gives_the_same_with_and_without_its_table(name: str, image_HWC: Pixels, number: int) -> None:
    rng = stream(number, "level")
    value = OPERATIONS[name].drawn(Draw(rng.uniform(0.0, 1.2), rng.uniform() < 0.5, 224, rng))
    table = OPERATIONS[name].table
    assert table is not None
    every_HWC = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    for pixel_HWC in (image_HWC, every_HWC):
        alone_HWC = apply_operations(pixel_HWC, [Operation(name, value)], FILL)
        np.testing.assert_array_equal(alone_HWC, table(value)[pixel_HWC])


@settings(max_examples=60, deadline=None)
@given(image_HWC=images, factor=st.floats(-3, 3), fill=st.tuples(*[st.integers(0, 255)] * 3))
def test_a_shear_is_four_taps_of_each_row(image_HWC: Pixels, factor: float, fill: Fill) -> None:
    got_HWC = apply_operations(image_HWC, [Operation("shear_x", factor)], fill)
    np.testing.assert_array_equal(got_HWC, _sheared(image_HWC, factor, fill))


@settings(max_examples=60, deadline=None)
@given(image_HWC=images, data=st.data())
def test_fill_is_where_a_pixel_is_outside_one_of_the_spans_of_its_row(image_HWC: Pixels, data: st.DataObject) -> None:
    height, width = image_HWC.shape[:2]
    ends = st.lists(st.floats(-2.0 * width - 2, 2.0 * width + 2).map(np.ceil), min_size=height, max_size=height)
    spans = [(np.array(data.draw(ends)), np.array(data.draw(ends))) for _ in range(data.draw(st.integers(1, 2)))]
    x_W = np.arange(width)
    inside_HW1 = np.all([(x_W >= first[:, None]) & (x_W < last[:, None]) for first, last in spans], axis=0)[..., None]
    np.testing.assert_array_equal(fill_outside(image_HWC, spans, FILL), np.where(inside_HW1, image_HWC, FILL))
