"""Define a view recipe: the augmentation settings as a frozen value with its seed.

Facts of DeiT and DeiT-III: Touvron et al., arXiv:2012.12877 (table 9) and arXiv:2204.07118 (table 1), and the authors'
published code. A recipe is part of the cache's spec; a student reads it from there and cannot have another.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from shards.data_defaults import SMALL_VIEW
from shards.names import unknown
from shards.values import JsonValue, check_fields, later, ranges_of, setting
from shards.views.operations.operation_names import (
    COLOR_JITTER_OPERATIONS,
    RAND_AUGMENT_OPERATIONS,
    THREE_AUGMENT_OPERATIONS,
    newest_versions,
    replaced,
)
from shards.views.rand_augment import parse_rand_augment

Crop = Literal["rrc", "src", "center", "resize"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRecipe(JsonValue):
    """The settings that decide the pixels of every view.

    Attributes:
        name: what the recipe is called in reports; not part of any random stream.
        seed: seed of every stream of the recipe.
        size: side of the square view, pixels.
        crop: "rrc" RandomResizedCrop, "src" simple random crop (resize the short side, reflect-pad 4, crop),
            "center" resize the short side to size / crop_pct and crop the centre, "resize" to size × size.
        crop_scale, crop_ratio: area and aspect ranges of "rrc".
        crop_pct: of "center".
        flip: probability of a horizontal flip.
        rand_augment: a timm-style string such as "rand-m9-mstd0.5-inc1"; "" is off.
        three_augment: DeiT-III's one of grey, solarise, blur.
        color_jitter: strength of brightness, contrast and saturation jitter; 0 is off.
        erase_prob, erase_scale, erase_ratio: random erasing with normal noise, one box.
        mixup_alpha, cutmix_alpha: Beta parameters; 0 is off.
        mix_prob: probability that a pair is mixed; switch_prob: that it is CutMix when both are on.
        block_size: samples that may be mixed with each other.
        block_views: consecutive views that share one partition of a shard into blocks; also the views of one unit.
        mean, std: normalisation after the uint8 view, in [0, 1] units.
        operations: what RandAugment chooses from, by name; () are timm's fifteen.
        versions: newer operations and crops that take the place of older ones, sorted ("rotate2" of "rotate"); () is
            as in 0.1.
    """

    KIND = "recipe"
    name: str = setting("deit", "", "what the recipe is called in reports")
    seed: int = setting(0, "", "of every random stream of the views")
    size: int = setting(224, "px", "side of the square view", within=(1, 4096))
    crop: Crop = setting("rrc", "", "rrc: random resized crop; src: simple random crop; center; resize")
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "share of the area", "smallest and largest crop of rrc")
    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), "width / height", "narrowest and widest crop of rrc")
    crop_pct: float = setting(0.875, "share of the side", "what center keeps of the short side", within=(0.05, 1.0))
    flip: float = setting(0.5, "probability", "of a horizontal flip", within=(0.0, 1.0))
    rand_augment: str = setting(
        "rand-m9-mstd0.5-inc1", "", "timm's string: m magnitude, mstd its spread, inc1 increasing; empty is off"
    )
    three_augment: bool = setting(False, "", "one of grey, solarise, blur (DeiT-III)")
    color_jitter: float = setting(
        0.0, "strength", "of brightness, contrast and saturation; 0 is off", within=(0.0, 1.0)
    )
    erase_prob: float = setting(0.25, "probability", "of erasing one box with noise", within=(0.0, 1.0))
    erase_scale: tuple[float, float] = setting((0.02, 1 / 3), "share of the area", "smallest and largest box")
    erase_ratio: tuple[float, float] = setting((0.3, 1 / 0.3), "width / height", "narrowest and widest box")
    mixup_alpha: float = setting(0.8, "", "of Mixup's Beta distribution; 0 is off", within=(0.0, 1e3))
    cutmix_alpha: float = setting(1.0, "", "of CutMix's Beta distribution; 0 is off", within=(0.0, 1e3))
    mix_prob: float = setting(1.0, "probability", "that a pair is mixed", within=(0.0, 1.0))
    switch_prob: float = setting(0.5, "probability", "that it is CutMix where both are on", within=(0.0, 1.0))
    block_size: int = setting(
        16, "samples", "that may be mixed with each other; a batch is made of whole blocks", within=(1, 65536)
    )
    block_views: int = setting(
        6, "views", "that share one partition into blocks: the views of one chunk of a cache", within=(1, 65536)
    )
    mean: tuple[float, float, float] = setting(IMAGENET_MEAN, "0 … 1", "taken off each channel of the finished view")
    std: tuple[float, float, float] = setting(IMAGENET_STD, "0 … 1", "that each channel is divided by")
    operations: tuple[str, ...] = later((), words=("", "what RandAugment chooses from; none: timm's fifteen"))
    versions: tuple[str, ...] = later(
        (), words=("", "newer operations in the place of older ones; none: as in version 0.1")
    )

    def __post_init__(self) -> None:
        """Check every field; ValueError names field, value and range."""
        if self.crop not in get_args(Crop):
            raise ValueError(f"recipe.crop: expected one of {', '.join(get_args(Crop))}, got {self.crop!r}")
        for name, (low, high) in ranges_of(type(self)).items():
            _check(name, getattr(self, name), low, high)
        for name, low, high in (
            ("crop_scale", 1e-6, 1.0),
            ("crop_ratio", 1e-3, 1e3),
            ("erase_scale", 0.0, 1.0),
            ("erase_ratio", 1e-3, 1e3),
        ):
            first, second = getattr(self, name)
            _check(name, first, low, high)
            _check(name, second, first, high)
        for name in ("mean", "std"):
            for value in getattr(self, name):
                _check(name, value, 0.0 if name == "mean" else 1e-6, 1.0)
        if self.crop == "src":
            _check("size", self.size, 9, 4096)  # reflecting 4 pixels needs 5 that stay
        if self.rand_augment:
            parse_rand_augment(self.rand_augment)
        if self.operations:
            self._check_operations()
        try:
            replaced(self.versions)
        except ValueError as error:
            raise type(error)(f"recipe.versions: {error}") from None
        if self.rand_augment and self.three_augment:
            raise ValueError("recipe: rand_augment and three_augment are both on; choose one")

    def _check_operations(self) -> None:
        from shards.views.operations.table import OPERATIONS

        if not self.rand_augment:
            raise ValueError("recipe.operations: are RandAugment's, which is off; set rand_augment as well")
        for name in self.operations:
            OPERATIONS.require(name, "recipe.operations")

    @property
    def mixes(self) -> bool:
        """Whether any pair can be mixed."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0) and self.block_size > 1

    @property
    def short_side(self) -> int:
        """To how many pixels the crop "center" resizes the short side of a picture: size / crop_pct, rounded down."""
        return math.floor(self.size / self.crop_pct)

    @property
    def drawn_operations(self) -> tuple[str, ...]:
        """The operations that a view may be drawn with, by the names of their first versions."""
        drawn = self.operations or RAND_AUGMENT_OPERATIONS if self.rand_augment else ()
        if self.three_augment:
            drawn += THREE_AUGMENT_OPERATIONS
        return drawn + COLOR_JITTER_OPERATIONS if self.color_jitter else drawn

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that add operations of this recipe, as NAME==VERSION; they are part of its fingerprint."""
        if not self.operations:
            return ()
        from shards.views.operations.table import OPERATIONS

        return OPERATIONS.packages(self.operations)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the canonical JSON of every field but the name."""
        settings = {key: value for key, value in self.to_json().items() if key != "name"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _check(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"recipe.{name}: expected a number in [{low}, {high}], got {value!r}")


_PLAIN: dict[str, Any] = {
    "flip": 0.0,
    "rand_augment": "",
    "erase_prob": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}

# As version 0.1 drew them; `recipe_named` gives them with the newest operations.
RECIPES: dict[str, ViewRecipe] = {
    "deit": ViewRecipe(),
    "deit3": ViewRecipe(name="deit3", rand_augment="", three_augment=True, color_jitter=0.3, erase_prob=0.0),
    "deit3_src": ViewRecipe(
        name="deit3_src", crop="src", rand_augment="", three_augment=True, color_jitter=0.3, erase_prob=0.0
    ),
    "finetune384": ViewRecipe(name="finetune384", size=384),
    "eval": ViewRecipe(name="eval", crop="center", **_PLAIN),
    "plain": ViewRecipe(name="plain", crop="resize", **_PLAIN),
    SMALL_VIEW: ViewRecipe(name=SMALL_VIEW, size=96, crop_scale=(0.25, 1.0), rand_augment="", erase_prob=0.0),
}


FIELD_SYNONYMS = {
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "mixup_prob": "mix_prob",
    "mixup_switch_prob": "switch_prob",
    **dict.fromkeys(("aa", "auto_augment", "randaugment", "randaug"), "rand_augment"),
    **dict.fromkeys(("three_aug", "threeaugment", "3augment"), "three_augment"),
    **dict.fromkeys(("jitter", "colour_jitter"), "color_jitter"),
    **dict.fromkeys(("reprob", "erase", "erasing", "random_erasing"), "erase_prob"),
    **dict.fromkeys(("hflip", "horizontal_flip"), "flip"),
    **dict.fromkeys(("scale", "rrc_scale"), "crop_scale"),
    **dict.fromkeys(("ratio", "rrc_ratio"), "crop_ratio"),
    **dict.fromkeys(("image_size", "img_size", "input_size", "resolution"), "size"),
    "views_per_unit": "block_views",
}
"""What timm and others call fields of a view recipe; for messages only."""


def recipe_named(name: str, **overrides: Any) -> ViewRecipe:
    """The recipe of that name with some fields replaced, and the newest operations unless `versions` says others.

    Errors:
        ValueError naming what exists.
    """
    if name not in RECIPES:
        raise ValueError(unknown("view recipe", name, RECIPES))
    known = [f.name for f in fields(ViewRecipe)]
    for field in overrides:
        if field not in known:
            others = "`recipes NAME` prints the fields of a recipe"
            raise ValueError(f"recipe: {unknown('field', field, known, others=others, synonyms=FIELD_SYNONYMS)}")
    check_fields(ViewRecipe, overrides, "recipe")
    recipe = replace(RECIPES[name], **overrides)
    if "versions" in overrides:
        return recipe
    return replace(recipe, versions=newest_versions((*recipe.drawn_operations, recipe.crop)))


_FEW_UNITS = 32  # from here on a lost unit is at most a thirtieth of the work
_SMALL_UNIT = 600  # views: seconds of work


def default_block_views(num_views: int, rows: Sequence[int] = ()) -> int:
    """Views per unit of a cache of so many: 6 where it divides them, else a divisor up to 12.

    The largest one that serves three repeats of a sample, else two, else one (`fitting_repeats`), so that every cache
    made so can be trained on. Where that would cut the work into a few large units, of which a stopped stage 1 loses
    one, it is the smallest such divisor instead.

    Args:
        rows: samples of each shard; empty where they are not known.
    """
    divisors = [d for d in range(1, 13) if num_views % d == 0]
    largest = 6 if num_views % 6 == 0 else max(divisors, key=lambda d: (d % 3 == 0, d % 2 == 0, d))
    few = len(rows) * num_views // largest < _FEW_UNITS and max(rows, default=0) * largest > _SMALL_UNIT
    repeats = next(r for r in (3, 2, 1) if largest % r == 0)
    return repeats if few else largest


def fitting_block_size(wanted: int, rows: Iterable[int]) -> int:
    """Samples of a block: as wanted, unless no shard holds so many; then the largest power of two that one holds."""
    largest = max(rows, default=wanted)
    return wanted if largest >= wanted else 1 << (max(largest, 1).bit_length() - 1)


def require_whole_groups(batch_size: int, recipe: ViewRecipe) -> None:
    """ValueError unless a batch consists of whole mixing groups (blocks)."""
    block = recipe.block_size
    if batch_size < 1 or batch_size % block:
        fewer, more = batch_size // block * block, (max(batch_size, 0) // block + 1) * block
        near = f"{fewer} or {more}" if fewer > 0 else f"{more}"
        raise ValueError(
            f"batch_size: expected a multiple of {block}, such as {near}, got {batch_size}: Mixup and CutMix combine "
            f"images in groups of {block} (block_size of recipe {recipe.name}), and a batch holds whole groups"
        )


def fitting_repeats(wanted: int, *, block_views: int, num_views: Iterable[int] = ()) -> int:
    """Views of a sample per visit (repeated augmentation): the largest number up to `wanted` that fits.

    Args:
        block_views: of the view recipe; the views of a visit lie in one view block.
        num_views: how many views are cycled through, in each of several runs; none where they never end.
    """
    common = math.gcd(block_views, *num_views)
    return max(r for r in range(1, max(1, wanted) + 1) if common % r == 0)
