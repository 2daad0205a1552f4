"""Views: drawn, then rendered; pure, keyed, independent of everything else, and the same for ever."""

import concurrent.futures
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import simplejpeg
import skimage.data
import torch
from PIL import Image

from shards.errors import ShardError
from shards.rng import stream
from shards.views.behaviour import (
    behaviour_difference,
    behaviour_digest,
    behaviour_parts,
    fixed_image,
)
from shards.views.decode import decode_rgb
from shards.views.operations.table import OPERATIONS
from shards.views.rand_augment import parse_rand_augment
from shards.views.reference import REFERENCE, differing_here
from shards.views.view import ViewParams, decoded_size, draw, render, render_views, shrink_of, view_params
from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named
from tests.golden.values import SIZES, TABLE, VIEWS, as_text, grown, views_here, with_rows

SMALL = {name: replace(recipe, size=64) for name, recipe in RECIPES.items()}


def _jpeg(size: tuple[int, int], sampling: str = "420") -> bytes:
    return simplejpeg.encode_jpeg(fixed_image(*size), 90, "RGB", sampling)


@pytest.mark.parametrize("name", RECIPES)
def test_params_print_and_go_through_json_unchanged(name: str) -> None:
    for size in SIZES:
        for view in range(20):
            params = view_params(RECIPES[name], "key", view, size)
            again = ViewParams.from_json(json.loads(json.dumps(params.to_json())))
            assert again == params and repr(again) == repr(params) and hash(again) == hash(params)


def test_json_of_something_else_is_refused() -> None:
    data = view_params(RECIPES["deit"], "key", 0, (9, 9)).to_json()
    del data["flip"]
    with pytest.raises(ValueError, match="flip"):
        ViewParams.from_json(data)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(90, 130), (1, 1), (8, 2000), (2000, 8)])
def test_a_view_is_the_same_alone_and_with_others(name: str, size: tuple[int, int]) -> None:
    """Law 2: one decode for several views, and how far down it went, must not show."""
    recipe, data = SMALL[name], _jpeg(size)
    together = render_views(data, recipe, "key", [3, 0, 7, 4, 11], "here")
    assert together.shape == (5, 64, 64, 3) and together.dtype == np.uint8
    for n, view in enumerate([3, 0, 7, 4, 11]):
        np.testing.assert_array_equal(together[n], render_views(data, recipe, "key", [view], "here")[0])
        image = decode_rgb(data, "here", shrink=shrink_of(recipe, size))
        params = view_params(recipe, "key", view, decoded_size(data, recipe, "here"))
        np.testing.assert_array_equal(together[n], render(image, params))


def test_views_differ_by_key_number_and_seed() -> None:
    recipe = recipe_named("deit")
    params = {
        view_params(replace(recipe, seed=seed), key, view, (375, 500))
        for seed in range(3)
        for key in ("a", "b", "a/b", "1")
        for view in range(20)
    }
    assert len(params) == 3 * 4 * 20


def test_threads_change_no_pixel() -> None:
    recipe, data = recipe_named("deit"), _jpeg((375, 500))
    expected = render_views(data, recipe, "key", range(24), "here")
    torch_threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                calls = [pool.submit(render_views, data, recipe, "key", [view], "here") for view in range(24)]
                for view, call in enumerate(calls):
                    np.testing.assert_array_equal(call.result()[0], expected[view])
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv2_threads)


def test_rendering_is_pure() -> None:
    """Neither argument changes, and no global generator is touched or read."""
    image = fixed_image(120, 160)
    before = image.copy()
    image.setflags(write=False)
    recipe = recipe_named("deit", size=64)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for view in range(60):
        params = draw(recipe, (120, 160), stream(0, "test", view))
        np.testing.assert_array_equal(render(image, params), render(image, params))
    np.testing.assert_array_equal(image, before)
    assert (torch.get_rng_state() == torch_state).all() and (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_params_of_another_image_are_refused() -> None:
    params = view_params(recipe_named("plain"), "key", 0, (120, 160))
    for shape in ((120, 161), (119, 160), (121, 160)):
        with pytest.raises(ValueError, match="160 × 120"):
            render(np.zeros((*shape, 3), np.uint8), params)


@pytest.mark.slow
def test_evaluation_is_timms() -> None:
    """Resize to size / crop_pct, centre crop: within two levels of torchvision on Pillow images."""
    from timm.data import create_transform

    for size, pct in ((224, 0.875), (224, 0.9), (384, 1.0)):
        transform = create_transform(size, crop_pct=pct, interpolation="bicubic", use_prefetcher=True)
        for shape in ((375, 500), (501, 333), (100, 90), (256, 256)):
            data = _jpeg(shape)
            expected = transform(Image.fromarray(decode_rgb(data, "x"))).permute(1, 2, 0).numpy().astype(int)
            recipe = recipe_named("eval", size=size, crop_pct=pct)
            difference = np.abs(render_views(data, recipe, "key", [0], "x")[0] - expected)
            assert difference.max() <= 2 and difference.mean() < 0.2, (size, pct, shape)


@pytest.mark.parametrize("size", [16, 28, 56, 80, 112, 224])
@pytest.mark.parametrize("pct", [0.875, 0.9, 1.0])
@pytest.mark.slow
def test_evaluation_of_a_photo_of_any_size_is_timms(size: int, pct: float) -> None:
    """Where a random crop would be scaled while it is decoded, too: sides that are rounded up would move the centre."""
    from timm.data import create_transform

    transform = create_transform(size, crop_pct=pct, interpolation="bicubic", use_prefetcher=True)
    for shape in ((512, 512), (509, 511), (467, 701), (703, 481), (905, 1333)):
        photo = np.asarray(Image.fromarray(skimage.data.astronaut()).resize(shape[::-1], Image.Resampling.BICUBIC))
        data = simplejpeg.encode_jpeg(photo, 90, "RGB", "420")
        expected = transform(Image.fromarray(decode_rgb(data, "x"))).permute(1, 2, 0).numpy().astype(int)
        recipe = recipe_named("eval", size=size, crop_pct=pct)
        difference = np.abs(render_views(data, recipe, "key", [0], "x")[0] - expected)
        assert difference.max() <= 3 and difference.mean() < 0.3, shape


@pytest.mark.parametrize("pct", [0.5, 0.875, 0.88, 0.9, 0.95, 1.0])
def test_the_short_side_that_is_printed_is_the_one_that_is_used(pct: float) -> None:
    """`evaluate` says it: rounded down, as timm does."""
    for size in (16, 32, 80, 160, 224, 288, 384):
        recipe = recipe_named("eval", size=size, crop_pct=pct)
        assert recipe.short_side == min(view_params(recipe, "key", 0, (701, 467)).resized) == int(size / pct)


def test_a_centre_crop_of_version_0_1_keeps_its_pixels() -> None:
    """A cache that was made of large photos opens as it was: its recipe names no newer crop."""
    photo = simplejpeg.encode_jpeg(skimage.data.astronaut(), 90, "RGB", "420")
    for size, shrink, bound in ((112, 2, 1.0), (56, 4, 1.5), (28, 8, 2.0)):
        old, new = (recipe_named("eval", size=size, crop_pct=0.875, **v) for v in ({"versions": ()}, {}))
        assert (shrink_of(old, (512, 512)), shrink_of(new, (512, 512))) == (shrink, 1)
        before, after = (render_views(photo, recipe, "key", [0], "x")[0].astype(int) for recipe in (old, new))
        assert 0 < np.abs(before - after).mean() < bound


def test_simple_random_crop_reaches_every_offset_and_reflects() -> None:
    recipe = recipe_named("deit3_src", size=64)
    windows = [view_params(recipe, "key", view, (64, 96)).window for view in range(3000)]
    assert {y for y, _ in windows} == set(range(-4, 5)) and {x for _, x in windows} == set(range(-4, 37))


def test_crops_hold_at_least_a_pixel_and_lie_inside() -> None:
    for size in SIZES:
        for view in range(300):
            box = view_params(RECIPES["deit"], "key", view, size).box
            assert box.height >= 1 and box.width >= 1 and box.y >= 0 and box.x >= 0
            assert box.y + box.height <= size[0] and box.x + box.width <= size[1]


@pytest.mark.parametrize(
    ("recipe", "size", "shrink"),
    [
        (RECIPES["deit"], (375, 500), 1),
        (RECIPES["deit"], (1828, 1828), 1),
        (RECIPES["deit"], (1830, 1830), 2),
        (RECIPES["deit"], (4000, 6000), 4),
        (RECIPES["deit"], (8, 10000), 1),
        (RECIPES["eval"], (1023, 2000), 1),
        (RECIPES["eval"], (1024, 2000), 2),
        (RECIPES["plain"], (1800, 1800), 4),
    ],
)
def test_large_images_are_shrunk_only_as_far_as_no_crop_suffers(
    recipe: ViewRecipe, size: tuple[int, int], shrink: int
) -> None:
    assert shrink_of(recipe, size) == shrink
    needed = {"rrc": 224, "center": 256, "resize": 224}[recipe.crop]
    decoded = (-(-size[0] // shrink), -(-size[1] // shrink))
    if shrink > 1:
        for view in range(300):
            box = view_params(recipe, "key", view, decoded).box
            assert min(box.height, box.width) >= needed - 1


def test_damaged_bytes_are_an_error_that_names_the_sample() -> None:
    with pytest.raises(ShardError, match=r"a\.tar: n1/5: .*truncated or corrupt"):
        render_views(_jpeg((99, 99))[:-500], recipe_named("deit"), "n1/5", [0], "a.tar: n1/5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m5", "expected a string such as"),
        ("rand-m9-tweights", "cannot read the section 'tweights'"),
        ("rand-m9-w0", "cannot read the section 'w0'"),
        ("rand-9", "cannot read the section '9'"),
        ("rand-m9-m8", "gives m twice"),
        ("rand-m9.5", "m of .* whole number"),
        ("rand-n0", "n of"),
        ("rand-p1.5", "p of"),
        ("rand-inc2", "inc of"),
        ("rand-minf", "m of"),
    ],
)
def test_a_string_that_is_not_understood_is_refused_when_the_recipe_is_made(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_named("deit", rand_augment=text)


def test_strings_of_the_family_mean_what_timm_reads_in_them() -> None:
    from timm.data.auto_augment import rand_augment_transform

    texts = (
        "rand-m9-mstd0.5-inc1",
        "rand-m7-n3",
        "rand-mstd101-m5-inc0",
        "rand-p0.3-m15-mmax20",
        "rand-m9-inc1-mstdinf",
    )
    for text in texts[:4]:
        timm, ours = rand_augment_transform(text, {"img_mean": (0, 0, 0)}), parse_rand_augment(text)
        op = timm.ops[4]
        assert (ours.num_operations, ours.prob, ours.magnitude) == (timm.num_layers, op.prob, op.magnitude)
        assert (ours.magnitude_std, ours.magnitude_max) == (op.magnitude_std, op.magnitude_max or 10)
        assert ours.increasing == (op.name == "PosterizeIncreasing")
    assert parse_rand_augment(texts[4]).magnitude_std == float("inf")


def test_params_are_golden() -> None:
    """No release may draw other views than the caches in the world were made with."""
    assert views_here()["params"] == json.loads(VIEWS.read_text())["params"]


def test_pixels_are_golden() -> None:
    """With the libraries they were written with; with others, the behavioural digest is there to tell."""
    recorded, now = json.loads(VIEWS.read_text()), views_here()
    if recorded["libraries"] != now["libraries"]:
        pytest.skip(f"the golden pixels were made with {recorded['libraries']}")
    assert now["pixels"] == recorded["pixels"] and now["behaviour"] == recorded["behaviour"]


def test_golden_values_are_one_entry_a_line_and_never_altered() -> None:
    """The command adds what is new and refuses the rest; the file is what the command writes."""
    stored = json.loads(VIEWS.read_text())
    assert as_text(stored) == VIEWS.read_text()
    added = {**stored, "pixels": {**stored["pixels"], "new": "0"}}
    text = as_text(grown(stored, added))
    assert len(set(text.splitlines()) - set(VIEWS.read_text().splitlines())) == 2, "the new line, and a comma"
    with pytest.raises(ValueError, match="existing golden values would change: pixels: deit; nothing is written"):
        grown(stored, {**stored, "pixels": {**stored["pixels"], "deit": "0"}})


def test_a_new_recipe_gets_a_row_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it is a message with the command that adds it, not a KeyError."""
    assert set(RECIPES) <= set(REFERENCE)
    rows: dict[str, dict[str, str]] = {}
    text = with_rows(TABLE.read_text(), {"new": REFERENCE["plain"]})
    exec(compile(text, "reference.py", "exec"), rows)
    assert rows["REFERENCE"]["new"] == REFERENCE["plain"] and rows["REFERENCE"]["deit"] == REFERENCE["deit"]
    monkeypatch.setitem(RECIPES, "new", RECIPES["plain"])
    with pytest.raises(ValueError, match=r"found none for new; add it .*`python -m tests\.golden\.values`"):
        differing_here()


def changed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Another picture of one operation: no operation flips these bits."""
    old = OPERATIONS[name]
    monkeypatch.setitem(OPERATIONS, name, replace(old, table=None, kernel=lambda image, *_: image ^ np.uint8(85)))
    behaviour_parts.cache_clear()


@pytest.mark.parametrize("name", ["deit", "deit3", "deit3_src", "plain"])
@pytest.mark.slow
def test_the_behavioural_digest_covers_what_the_recipe_can_draw_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A changed kernel refuses the caches that use it, by its name, and no other cache."""
    recipe = recipe_named(name, size=32)
    before = behaviour_digest(recipe)
    drawn = {op.name for view in range(400) for op in view_params(recipe, "k", view, (64, 64)).operations}
    for operation in OPERATIONS:
        with monkeypatch.context() as patch:
            changed(patch, operation)
            expected = (operation,) if operation in drawn else ()
            found = behaviour_difference(before, behaviour_digest(recipe))
            assert tuple(part for part in found if part in OPERATIONS) == expected
    behaviour_parts.cache_clear()


def test_the_behavioural_digest_notices_a_kernel_that_differs_at_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation through another CPU path differs at two angles in five, where one probe per operation sees nothing."""
    recipe, rotate = replace(RECIPES["deit"], size=64), OPERATIONS["rotate"]
    assert rotate.kernel is not None

    def sometimes(image: np.ndarray, degrees: float, fill: tuple[int, int, int]) -> np.ndarray:
        assert rotate.kernel is not None
        return rotate.kernel(image, degrees, fill) ^ np.uint8(int(abs(degrees) * 1000) % 5 == 0)

    before = behaviour_digest(recipe)
    monkeypatch.setitem(OPERATIONS, "rotate", replace(rotate, kernel=sometimes))
    behaviour_parts.cache_clear()
    assert behaviour_difference(before, behaviour_digest(recipe)) == ("rotate",)
    behaviour_parts.cache_clear()


def test_a_newer_operation_draws_the_same_and_changes_its_own_part_alone() -> None:
    """A new version is drawn as the old one was; of the digest it changes its name and the parameters that carry it."""
    old, new = RECIPES["deit"], recipe_named("deit")
    assert new.versions == ("rotate2",) and "rotate2" not in json.dumps(old.to_json())
    for view in range(60):
        before, after = (view_params(recipe, "key", view, (375, 500)) for recipe in (old, new))
        renamed = [(op.name.replace("rotate2", "rotate"), op.value) for op in after.operations]
        assert replace(after, operations=before.operations) == before and renamed == [*map(tuple, before.operations)]
    differ = behaviour_difference(behaviour_digest(replace(old, size=64)), behaviour_digest(replace(new, size=64)))
    assert set(differ) == {"draw", "rotate", "rotate2"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("rotate2",)),
        ({"operations": ("invert", "rotate")}, ("rotate2",)),
        ({"operations": ("invert", "rotate2")}, ()),
        ({"rand_augment": ""}, ()),
        ({"versions": ()}, ()),
    ],
)
def test_a_new_recipe_has_the_newest_of_what_it_draws(settings: dict[str, object], expected: tuple[str, ...]) -> None:
    assert recipe_named("deit", **settings).versions == expected


def test_the_behavioural_digest_ignores_seed_and_name_and_sees_settings() -> None:
    recipe = recipe_named("deit", size=32)
    assert behaviour_digest(recipe) == behaviour_digest(replace(recipe, seed=5, name="mine"))
    assert behaviour_digest(recipe) != behaviour_digest(replace(recipe, flip=0.4))
