"""The kernels against Pillow and timm on photos: the same picture to the level, the same edges and fill."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import timm.data.auto_augment as timm_augment
import torch
from PIL import Image, ImageFilter

from shards.views.erasing import erase, noise_table
from shards.views.operations.apply import apply_operations
from shards.views.operations.operation import Operation
from shards.views.operations.table import OPERATIONS
from shards.views.resample import resize_window

FILL = (124, 116, 104)
BICUBIC = Image.Resampling.BICUBIC
PHOTOS = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
VIEWS = [Image.fromarray(photo).resize((224, 224), BICUBIC) for photo in PHOTOS]


def _timm(name: str, value: float) -> Callable[[Image.Image], Image.Image]:
    function = getattr(timm_augment, name)
    return lambda image: function(image, value, fillcolor=FILL, resample=BICUBIC)


def _whole(name: str) -> Callable[[Image.Image], Image.Image]:
    return lambda image: getattr(timm_augment, name)(image)


def _blur(radius: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius))


# name, value, Pillow's way, bound on the mean absolute difference in levels (0: equal to the last pixel)
CASES = [
    ("invert", 0, _whole("invert"), 0),
    ("auto_contrast", 0, _whole("auto_contrast"), 0),
    ("equalize", 0, _whole("equalize"), 0),
    *(("posterize", bits, _timm("posterize", bits), 0) for bits in (1, 2, 4, 8)),
    *(("solarize", at, _timm("solarize", at), 0) for at in (0, 26, 128, 256)),
    *(("solarize_add", added, _timm("solarize_add", added), 0) for added in (0, 99, 110)),
    *(("brightness", f, _timm("brightness", f), 0) for f in (0.1, 0.75, 1.0, 1.9)),
    *(("contrast", f, _timm("contrast", f), 0.05) for f in (0.1, 0.75, 1.0, 1.9)),
    *(("color", f, _timm("color", f), 0.5) for f in (0.1, 0.75, 1.9)),
    *(("sharpness", f, _timm("sharpness", f), 0.3) for f in (0.1, 0.75, 1.0, 1.9)),
    ("grey", 0, lambda image: image.convert("L").convert("RGB"), 0.01),
    *(("blur", radius, _blur(radius), 0.75) for radius in (0.1, 0.5, 1.1, 2.0)),
    *(("shear_x", f, _timm("shear_x", f), 0.08) for f in (-0.3, -0.11, 0.0, 0.27)),
    *(("shear_y", f, _timm("shear_y", f), 0.08) for f in (-0.3, -0.11, 0.0, 0.27)),
    *(("translate_x", p, _timm("translate_x_abs", p), 0.08) for p in (-90.72, -0.3, 0.0, 100.8)),
    *(("translate_y", p, _timm("translate_y_abs", p), 0.08) for p in (-90.72, -0.3, 0.0, 100.8)),
    *(("rotate", degrees, _timm("rotate", degrees), 1.0) for degrees in (-27.0, -3.3, 0.0, 25.3)),
    *(("rotate2", degrees, _timm("rotate", degrees), 0.65) for degrees in (-27.0, -3.3, 0.0, 25.3)),
]


@pytest.mark.parametrize(("name", "value", "pillow", "bound"), CASES, ids=[f"{c[0]}_{c[1]}" for c in CASES])
def test_an_operation_is_pillows(
    name: str, value: float, pillow: Callable[[Image.Image], Image.Image], bound: float
) -> None:
    difference = []
    for image in VIEWS:
        before = np.asarray(image).copy()
        got = apply_operations(before, [Operation(name, value)], FILL)
        assert got.dtype == np.uint8 and got.shape == before.shape
        np.testing.assert_array_equal(before, np.asarray(image), "an operation must not write into its argument")
        difference.append(np.abs(got.astype(int) - np.asarray(pillow(image))))
    assert np.mean(difference) <= bound


def test_every_operation_is_compared() -> None:
    assert {case[0] for case in CASES} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "value", "function"),
    [
        ("shear_x", 0.21, "shear_x"),
        ("shear_y", -0.17, "shear_y"),
        ("translate_x", 33.4, "translate_x_abs"),
        ("translate_y", -33.4, "translate_y_abs"),
        ("rotate", 20.0, "rotate"),
        ("rotate2", 20.0, "rotate"),
    ],
)
def test_exactly_the_pixels_without_a_source_take_the_fill_colour(name: str, value: float, function: str) -> None:
    """Pillow's border convention: no blending with the fill, edge pixels repeated inside."""
    white = Image.new("RGB", (224, 224), (255, 255, 255))
    got = apply_operations(np.asarray(white), [Operation(name, value)], FILL)
    np.testing.assert_array_equal(got, np.asarray(_timm(function, value)(white)))


@pytest.mark.parametrize("name", ["rotate", "rotate2"])
@pytest.mark.parametrize("degrees", [0, 20, 90, 135, 180, 250, 270, 359])
def test_rotation_fills_exactly_the_pixels_whose_source_is_outside(name: str, degrees: float) -> None:
    """At every angle, where the slopes of the source's coordinates are negative or zero as well."""
    size, angle = 30, math.radians(degrees)
    got_HWC = apply_operations(np.zeros((size, size, 3), np.uint8), [Operation(name, degrees)], (255, 255, 255))
    x_W, y_H1 = np.arange(size) + 0.5 - size / 2, np.arange(size)[:, None] + 0.5 - size / 2
    source_x_HW = math.cos(angle) * x_W - math.sin(angle) * y_H1
    source_y_HW = math.sin(angle) * x_W + math.cos(angle) * y_H1
    inside_HW = np.maximum(abs(source_x_HW), abs(source_y_HW)) < size / 2 - 1e-9
    assert ((got_HWC[..., 0] == 0) == inside_HW).all()


def test_posterize_to_no_bits_is_black() -> None:
    """What Pillow gave before version 13, which refuses (and crashes timm's RandAugment in 2 % of its posterizes)."""
    assert not apply_operations(np.asarray(VIEWS[0]), [Operation("posterize", 0)], FILL).any()


def test_composed_tables_are_the_operations_one_by_one() -> None:
    chain = [Operation("brightness", 1.4), Operation("solarize", 90), Operation("invert"), Operation("equalize")]
    chain += [Operation("posterize", 3), Operation("solarize_add", 40)]
    image = one_by_one = np.asarray(VIEWS[1])
    for operation in chain:
        one_by_one = apply_operations(one_by_one, [operation], FILL)
    np.testing.assert_array_equal(apply_operations(image, chain, FILL), one_by_one)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_work_on_one_pixel_and_one_colour(name: str) -> None:
    for image in (np.full((1, 1, 3), 77, np.uint8), np.full((9, 9, 3), 77, np.uint8)):
        assert apply_operations(image, [Operation(name, 1.0)], FILL).shape == image.shape


@pytest.mark.parametrize(
    "box", [(0, 0, 512, 512), (31, 17, 211, 340), (100, 200, 120, 90), (3, 5, 1, 1), (7, 9, 1, 300)]
)
def test_the_resize_is_pillows_antialiased_bicubic(box: tuple[int, int, int, int]) -> None:
    y, x, height, width = box
    crop = PHOTOS[0][y : y + height, x : x + width]
    expected = np.asarray(Image.fromarray(crop).resize((224, 224), BICUBIC)).astype(int)
    difference = np.abs(resize_window(crop, (224, 224), (0, 0), 224) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.1


@pytest.mark.parametrize("resized", [(256, 300), (224, 5000), (9000, 224)])
def test_a_window_is_cut_from_the_resized_image(resized: tuple[int, int]) -> None:
    """Also of a strip whose resized image would be far larger than the window."""
    crop = PHOTOS[1]
    whole = np.asarray(Image.fromarray(crop).resize(resized[::-1], BICUBIC)).astype(int)
    y, x = (resized[0] - 224) // 2, (resized[1] - 224) // 2
    difference = np.abs(resize_window(crop, resized, (y, x), 224) - whole[y : y + 224, x : x + 224])
    assert difference.max() <= 1 and difference.mean() < 0.2


def test_a_window_over_the_edge_is_reflected_as_torchvision_does() -> None:
    from torchvision.transforms.v2 import functional

    crop = PHOTOS[2][:40, :60]
    padded = functional.pad(torch.from_numpy(crop).permute(2, 0, 1), [4, 4, 4, 4], padding_mode="reflect")
    expected = padded.permute(1, 2, 0).numpy()
    for y, x in ((-4, -4), (-4, 24), (4, 0), (0, 17)):
        got = resize_window(crop, (40, 60), (y, x), 40)
        np.testing.assert_array_equal(got, expected[y + 4 : y + 44, x + 4 : x + 44])


def test_erasing_noise_is_the_clipped_normal_and_touches_the_box_alone() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    view = np.asarray(VIEWS[0])
    box, key = (20, 31, 150, 101), "00112233445566778899aabbccddeeff"
    got = erase(view, box, key, mean, std)
    inside = np.zeros((224, 224), bool)
    inside[20:170, 31:132] = True
    np.testing.assert_array_equal(got[~inside], view[~inside])
    np.testing.assert_array_equal(got, erase(view, box, key, mean, std))
    assert (got != erase(view, box, key.replace("0", "1"), mean, std)).any()
    normal = np.random.default_rng(0).standard_normal((200_000, 3))
    expected = np.rint(255 * (np.array(mean) + np.array(std) * normal).clip(0, 1))
    for c in range(3):
        noise = got[inside][:, c].astype(float)
        assert abs(noise.mean() - expected[:, c].mean()) < 4 * 58 / np.sqrt(noise.size)
        assert abs(noise.std() - expected[:, c].std()) < 1.0
        assert abs((noise == 0).mean() - (expected[:, c] == 0).mean()) < 0.005
    flat = np.corrcoef(got[inside].reshape(-1, 3).T.astype(float))
    assert np.abs(flat - np.eye(3)).max() < 0.04, "channels must be independent"


def test_the_noise_table_is_monotone_and_complete() -> None:
    table = noise_table(0.485, 0.229)
    assert table.shape == (65536,) and (np.diff(table.astype(int)) >= 0).all() and len(np.unique(table)) == 256
