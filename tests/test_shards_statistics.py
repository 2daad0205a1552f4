"""The statistics are DeiT's: at least 20,000 draws of every parameter against timm's own code.

Each comparison is shown to have teeth: the same test rejects our draws made with a slightly wrong constant.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as timm_augment
import torch
from PIL import Image
from scipy import stats
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter, RandomHorizontalFlip

from shards.rng import stream
from shards.views.augment import (
    draw_color_jitter,
    draw_erase,
    draw_magnitude,
    draw_rand_augment,
    draw_three_augment,
    operation_value,
)
from shards.views.operations.operation_names import RAND_AUGMENT_OPERATIONS
from shards.views.rand_augment import parse_rand_augment
from shards.views.view import draw
from shards.views.view_recipe import recipe_named

DRAWS = 20_000
RECIPE = recipe_named("deit")
DEIT = "rand-m9-mstd0.5-inc1"
RARER = DEIT + "-p0.47"
TIMM_NAMES = dict(zip(timm_augment._RAND_INCREASING_TRANSFORMS, RAND_AUGMENT_OPERATIONS, strict=True))
SAME, OTHER = 1e-3, 1e-6  # p-values: above is accepted, below is rejected


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """timm draws from three global generators."""
    random.seed(0)
    torch.manual_seed(0)
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


def continuous(ours: Any, theirs: Any) -> float:
    """p-value of the two-sample Kolmogorov–Smirnov test."""
    return float(stats.ks_2samp(np.asarray(ours, float), np.asarray(theirs, float), method="asymp").pvalue)


def discrete(ours: Any, theirs: Any) -> float:
    """p-value of the chi-square test that both come from one distribution; rare values are pooled."""
    values, code = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    table = np.stack([np.bincount(part, minlength=len(values)) for part in np.split(code, [len(ours)])])
    rare = table.sum(axis=0) < 20
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def _crops(**overrides: Any) -> np.ndarray:
    recipe = replace(RECIPE, rand_augment="", erase_prob=0.0, **overrides)
    rng = stream(1, "test", "crop")
    return np.array([draw(recipe, (375, 500), rng).box for _ in range(DRAWS)])


@pytest.fixture(scope="module")
def timm_crops() -> np.ndarray:
    random.seed(0)
    image = Image.new("RGB", (500, 375))
    get = RandomResizedCropAndInterpolation.get_params
    return np.array([get(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)])


CROP_MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "area": lambda box: box[:, 2] * box[:, 3],
    "ratio": lambda box: box[:, 3] / box[:, 2],
    "top": lambda box: box[:, 0] / (376 - box[:, 2]),
    "left": lambda box: box[:, 1] / (501 - box[:, 3]),
}


@pytest.mark.parametrize("name", CROP_MEASURES)
@pytest.mark.slow
def test_crops_are_distributed_as_in_timm(name: str, timm_crops: np.ndarray) -> None:
    measure = CROP_MEASURES[name]
    assert continuous(measure(_crops()), measure(timm_crops)) > SAME


def test_crops_with_a_wrong_constant_are_rejected(timm_crops: np.ndarray) -> None:
    area, ratio = CROP_MEASURES["area"], CROP_MEASURES["ratio"]
    assert continuous(area(_crops(crop_scale=(0.12, 1.0))), area(timm_crops)) < OTHER
    assert continuous(ratio(_crops(crop_ratio=(0.8, 1.25))), ratio(timm_crops)) < OTHER


def _flips(probability: float) -> np.ndarray:
    recipe = replace(RECIPE, crop="resize", rand_augment="", erase_prob=0.0, flip=probability)
    rng = stream(1, "test", "flip")
    return np.array([draw(recipe, (8, 8), rng).flip for _ in range(DRAWS)])


def test_flips_are_as_frequent_as_in_timm_and_a_wrong_rate_is_rejected() -> None:
    transform, row = RandomHorizontalFlip(0.5), torch.tensor([[[0, 1]]])
    theirs = np.array([bool(transform(row)[0, 0, 0]) for _ in range(DRAWS)])
    assert discrete(_flips(0.5), theirs) > SAME
    assert discrete(_flips(0.53), theirs) < OTHER


def _recorded(name: str) -> tuple[timm_augment.AugmentOp, list[tuple[Any, ...]]]:
    """timm's operation with its pixels taken out: what it is called with is written down."""
    calls: list[tuple[Any, ...]] = []
    op = timm_augment.AugmentOp(name, prob=1.0, magnitude=9, hparams={"magnitude_std": 0.5})
    op.aug_fn = lambda image, *args, **kwargs: calls.append(args)
    return op, calls


def _timm_values(name: str) -> np.ndarray:
    op, calls = _recorded(name)
    for _ in range(DRAWS):
        op(None)
    values = np.array([args[0] if args else 0.0 for args in calls])
    return values * 224 if name.startswith("Translate") else values


def _our_values(name: str, text: str = DEIT) -> np.ndarray:
    settings, rng = parse_rand_augment(text), stream(1, "test", name)
    return np.array([operation_value(name, draw_magnitude(settings, rng), settings, 224, rng) for _ in range(DRAWS)])


@pytest.mark.parametrize("timm_name", TIMM_NAMES)
@pytest.mark.slow
def test_magnitudes_of_each_operation_are_distributed_as_in_timm(timm_name: str) -> None:
    """… and those of a mean magnitude of 8.8, or a spread of 0.6, are not."""
    name = TIMM_NAMES[timm_name]
    theirs = _timm_values(timm_name)
    whole = name in ("posterize", "solarize", "solarize_add")
    compare = discrete if whole else continuous
    assert compare(_our_values(name), theirs) > SAME
    if name not in ("auto_contrast", "equalize", "invert"):
        assert compare(_our_values(name, "rand-m8-mstd0.5-inc1"), theirs) < OTHER
        assert compare(_our_values(name, "rand-m9-mstd0.7-inc1"), theirs) < OTHER
        if name in ("color", "contrast", "brightness", "sharpness", "posterize", "solarize"):
            assert compare(_our_values(name, "rand-m9-mstd0.5-inc0"), theirs) < OTHER


def _our_operations(text: str) -> np.ndarray:
    settings, rng = parse_rand_augment(text), stream(1, "test", "operations")
    return np.array(["+".join(op.name for op in draw_rand_augment(settings, 224, rng)) for _ in range(DRAWS)])


def test_operations_are_chosen_as_often_as_in_timm_alone_and_in_pairs() -> None:
    """All 1 + 15 + 225 outcomes of a view, so also the number applied, the order and the replacement."""
    transform = timm_augment.rand_augment_transform(DEIT, {"img_mean": (124, 116, 104)})
    done: list[str] = []
    for op in transform.ops:
        op.aug_fn = lambda image, *_, name=TIMM_NAMES[op.name], **__: done.append(name)
    theirs = []
    for _ in range(DRAWS):
        done.clear()
        transform(None)
        theirs.append("+".join(done))
    assert discrete(_our_operations(DEIT), np.array(theirs)) > SAME
    assert discrete(_our_operations(DEIT + "-n3"), np.array(theirs)) < OTHER
    applied, rarer = (np.char.count(done, "+") + (done != "") for done in (np.array(theirs), _our_operations(RARER)))
    assert discrete(rarer, applied) < OTHER


class _Slices:
    """Stands in for an image; keeps the box that is written to."""

    def __init__(self) -> None:
        self.box: tuple[int, int, int, int] | None = None

    def __setitem__(self, where: tuple[slice, slice, slice], _: Any) -> None:
        self.box = (where[1].start, where[2].start, where[1].stop - where[1].start, where[2].stop - where[2].start)


def _our_holes(prob: float = 1.0, scale: tuple[float, float] = RECIPE.erase_scale, low: float = 0.3) -> list[Any]:
    rng = stream(1, "test", "erase")
    return [draw_erase(224, prob, scale, (low, 1 / low), rng) for _ in range(DRAWS)]


def test_erasing_is_distributed_as_in_timm_and_wrong_constants_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.data.random_erasing._get_pixels", lambda *_, **__: None)
    eraser, theirs_all = RandomErasing(1.0, mode="pixel", device="cpu"), []
    for _ in range(DRAWS):
        target = _Slices()
        eraser._erase(target, 3, 224, 224, torch.float32)
        theirs_all.append(target.box)
    theirs = np.array([box for box in theirs_all if box is not None])

    def box_of(holes: list[Any]) -> np.ndarray:
        return np.array([hole[:4] for hole in holes if hole is not None])

    measures = {
        **CROP_MEASURES,
        "top": lambda b: b[:, 0] / (225 - b[:, 2]),
        "left": lambda b: b[:, 1] / (225 - b[:, 3]),
    }
    for name, measure in measures.items():
        assert continuous(measure(box_of(_our_holes())), measure(theirs)) > SAME, name
    assert continuous(measures["area"](box_of(_our_holes(scale=(0.03, 1 / 3)))), measures["area"](theirs)) < OTHER
    assert continuous(measures["ratio"](box_of(_our_holes(low=0.35))), measures["ratio"](theirs)) < OTHER


def test_a_quarter_of_the_views_is_erased() -> None:
    erased = sum(hole is not None for hole in _our_holes(RECIPE.erase_prob))
    assert stats.binomtest(erased, DRAWS, 0.25).pvalue > SAME
    assert stats.binomtest(erased, DRAWS, 0.28).pvalue < OTHER


def test_three_augment_takes_each_third_and_a_uniform_radius() -> None:
    rng = stream(1, "test", "three")
    operations = [draw_three_augment(rng) for _ in range(3 * DRAWS)]
    count = [sum(op.name == name for op in operations) for name in ("grey", "solarize", "blur")]
    assert stats.chisquare(count).pvalue > SAME
    assert stats.chisquare(count, np.array([0.32, 0.34, 0.34]) * 3 * DRAWS).pvalue < OTHER
    radius = np.array([op.value for op in operations if op.name == "blur"])
    assert stats.kstest(radius, stats.uniform(0.1, 1.9).cdf).pvalue > SAME
    assert stats.kstest(radius, stats.uniform(0.1, 2.0).cdf).pvalue < OTHER
    assert {op.value for op in operations if op.name == "solarize"} == {128.0}


def test_colour_jitter_has_torchvisions_orders_and_factors() -> None:
    names = ("brightness", "contrast", "color")
    jitter = ColorJitter(0.3, 0.3, 0.3)
    orders, factors = [], []
    for _ in range(DRAWS):
        order, *factor = ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        orders.append("+".join(names[i] for i in order.tolist() if i < 3))
        factors.append(factor[:3])
    rng = stream(1, "test", "jitter")
    ours = [draw_color_jitter(0.3, rng) for _ in range(DRAWS)]
    assert discrete(np.array(["+".join(op.name for op in ops) for ops in ours]), np.array(orders)) > SAME
    for n, name in enumerate(names):
        values = [op.value for ops in ours for op in ops if op.name == name]
        assert continuous(values, [factor[n] for factor in factors]) > SAME
        assert continuous(0.9 * (np.array(values) - 1) + 1, [factor[n] for factor in factors]) < OTHER
