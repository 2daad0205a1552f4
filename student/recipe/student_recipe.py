"""How a student is trained: every setting of a run as one frozen value, and the recipes of the papers by name.

Facts: DeiT, arXiv:2012.12877 (table 9) and the defaults of the authors' `main.py`; DeiT-III, arXiv:2204.07118
(table 1) and the commands of `README_revenge.md`. docs/recipes.md says where a default is ours and why. Where the
authors' code has a quirk, a field names it: `lr_lag`, `decay_dist_token`, `reduction`, `layer_scale_init`,
`drop_path_shape`. This file imports no torch: the CLI reads it for its help.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_type_hints

from shards.views.view_recipe import RECIPES as VIEW_RECIPES
from shards.views.view_recipe import ViewRecipe, recipe_named
from student.recipe.zoo import model_entry

Scalar = str | int | float | bool
Value = Scalar | tuple[float, ...]

RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 4096),
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "repeats": (1, 1_000),
    "eps": (0.0, 1.0),
    "weight_decay": (0.0, 10.0),
    "clip_grad": (0.0, 1e6),
    "lr": (0.0, 100.0),
    "lr_base_batch": (1, 1_000_000),
    "warmup_epochs": (0, 100_000),
    "warmup_lr": (0.0, 100.0),
    "min_lr": (0.0, 100.0),
    "drop_path": (0.0, 0.95),
    "layer_scale_init": (0.0, 10.0),
    "ema_decay": (0.0, 0.9999999),
    "label_smoothing": (0.0, 0.99),
    "distill_weight": (0.0, 1.0),
    "temperature": (0.01, 1_000.0),
    "eval_crop_pct": (0.05, 1.0),
}

_TABLES = ("model_args", "view_overrides")  # sorted (key, value) pairs in memory, objects in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecipe:
    """Every setting that decides the result of a student run.

    Attributes:
        name: what the recipe is called; model: a timm name or one of `student.recipe.zoo`.
        image_size: side of the training and evaluation image, pixels; with a cache it is the cache's.
        model_args: keyword arguments for timm beyond the name's own, such as embed_dim of a smaller student.
        finetune: the run starts from `init_weights` (a .safetensors or torch file), which must then be given.
        epochs, batch_size (global; counts repeats), repeats (views of a sample per visit: repeated augmentation).
        optimizer, betas, eps, weight_decay: weight decay is decoupled.
        decay_groups: "matrices" spares 1-D parameters, biases and what the model lists (pos_embed, cls_token …);
            "all" decays everything. decay_dist_token: the authors' code decays it, timm and this default do not.
        clip_grad: bound of the global gradient norm before the step; 0 is off.
        lr, lr_scaling, lr_base_batch: "linear" runs at lr × batch_size / lr_base_batch, "none" at lr.
        warmup_epochs, warmup_lr, min_lr (not scaled), schedule, schedule_unit: see `student.learn.learning_rate`.
        lr_lag: the authors step the schedule at the end of an epoch with that epoch's index, so it lags by one.
        drop_path, drop_path_shape: rate of the last block; "linear" from 0 over depth, or "uniform".
        layer_scale_init: initial LayerScale of models that have it; 0 leaves the model's own.
        ema_decay: per optimiser step; 0 is off.
        base_loss: "cross_entropy", or "binary" on `target > 0` (DeiT-III); label_smoothing inside the mixed target.
        distill, distill_weight (λ), temperature (τ), reduction of the soft loss: "textbook" divides by the batch,
            "reference" by batch × classes as the authors' code does.
        view, view_overrides: the view recipe of a run without a cache, by name, and fields to change in it.
        eval_crop_pct: evaluation resizes the short side to image_size / eval_crop_pct and crops the centre.
    """

    name: str = "deit"
    model: str = "deit_tiny_patch16_224"
    model_args: tuple[tuple[str, Value], ...] = ()
    image_size: int = 224
    finetune: bool = False
    init_weights: str = ""
    epochs: int = 300
    batch_size: int = 1024
    repeats: int = 3
    optimizer: Literal["adamw", "lamb"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_groups: Literal["matrices", "all"] = "matrices"
    decay_dist_token: bool = False
    clip_grad: float = 0.0
    lr: float = 5e-4
    lr_scaling: Literal["linear", "none"] = "linear"
    lr_base_batch: int = 512
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_unit: Literal["epoch", "step"] = "epoch"
    lr_lag: bool = False
    drop_path: float = 0.1
    drop_path_shape: Literal["linear", "uniform"] = "linear"
    layer_scale_init: float = 0.0
    ema_decay: float = 0.99996
    base_loss: Literal["cross_entropy", "binary"] = "cross_entropy"
    label_smoothing: float = 0.1
    distill: Literal["none", "hard", "soft"] = "none"
    distill_weight: float = 0.5
    temperature: float = 1.0
    reduction: Literal["textbook", "reference"] = "textbook"
    view: str = "deit"
    view_overrides: tuple[tuple[str, Value], ...] = ()
    eval_crop_pct: float = 0.875

    def __post_init__(self) -> None:
        """Check every field; ValueError names field, value and range."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, hints[field.name], getattr(self, field.name))
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number in [{low}, {high}], got {getattr(self, name)!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas!r}")
        if self.view not in VIEW_RECIPES:
            raise ValueError(f"view: expected one of {', '.join(sorted(VIEW_RECIPES))}, got {self.view!r}")
        for name in _TABLES:
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        self._check_together()

    def _check_together(self) -> None:
        """Settings that contradict each other."""
        if self.base_loss == "binary" and self.label_smoothing > 0:
            raise ValueError(
                f"label_smoothing: expected 0 with base_loss binary, got {self.label_smoothing}: the binary target is "
                "`target > 0`, and smoothing makes every class positive; set label_smoothing=0"
            )
        if self.lr_lag and self.schedule_unit == "step":
            raise ValueError("lr_lag: is a lag of one epoch; it needs schedule_unit=epoch, got step")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: expected less than epochs ({self.epochs}), got {self.warmup_epochs}; "
                "set warmup_epochs=0"
            )
        if self.init_weights and not self.finetune:
            raise ValueError(f"init_weights: given ({self.init_weights}) but finetune is false; set finetune=true")
        _ = self.view_recipe  # validates view_overrides

    @property
    def scaled_lr(self) -> float:
        """The peak learning rate after the scaling rule."""
        return self.lr * self.batch_size / self.lr_base_batch if self.lr_scaling == "linear" else self.lr

    @property
    def view_recipe(self) -> ViewRecipe:
        """The views of a run without a cache; with a cache they come from its spec (`with_cache_views`)."""
        return recipe_named(self.view, **{"size": self.image_size, **dict(self.view_overrides)})

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; `view_overrides` and `model_args` as objects."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        for name in _TABLES:
            data[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in getattr(self, name)}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StudentRecipe":
        """The inverse of `to_json`; ValueError for missing or unknown fields."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            missing, unknown = sorted(names - set(data)), sorted(set(data) - names)
            raise ValueError(f"student recipe: missing fields {missing}, unknown fields {unknown}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for name in _TABLES:
            values[name] = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in data[name].items())
        return cls(**values)


def _check_type(name: str, hint: Any, value: Any) -> None:
    """ValueError when a value is not of its field's type; an int is a float, a bool is not a number."""
    choices = get_args(hint) if getattr(hint, "__origin__", None) is Literal else ()
    if choices:
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        return
    kinds: tuple[type, ...] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}.get(hint, (tuple,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


_FINETUNE: dict[str, Any] = {"finetune": True, "optimizer": "adamw", "lr_scaling": "none", "batch_size": 512}
_DEIT3 = StudentRecipe(
    name="deit3",
    epochs=800,
    batch_size=2048,
    optimizer="lamb",
    clip_grad=1.0,  # the fused LAMB of the authors bounds the gradient norm at 1 by default
    lr=3e-3,
    lr_scaling="none",
    drop_path_shape="uniform",
    layer_scale_init=1e-4,
    base_loss="binary",
    label_smoothing=0.0,
    view="deit3",
    eval_crop_pct=1.0,
)
_DEIT3_FINETUNE = replace(
    _DEIT3,
    **_FINETUNE,
    epochs=20,
    repeats=1,
    clip_grad=0.0,
    lr=1e-5,
    weight_decay=0.1,
    base_loss="cross_entropy",
    label_smoothing=0.1,
    view="deit",
    view_overrides=(("erase_prob", 0.0),),
)


def _named() -> dict[str, StudentRecipe]:
    """Every recipe by name; sizes of DeiT-III differ in lr, resolution and drop path."""
    deit = StudentRecipe()
    finetune = replace(
        deit, **_FINETUNE, image_size=384, epochs=30, lr=5e-6, min_lr=5e-6, weight_decay=1e-8, drop_path=0.0
    )
    recipes = {
        "deit": deit,
        "deit_hard": replace(deit, distill="hard", distill_weight=0.5),
        "deit_soft": replace(deit, distill="soft", distill_weight=0.1, temperature=3.0),
        "deit_finetune384": finetune,
        "deit_hard_finetune384": replace(finetune, distill="hard", distill_weight=0.5),
        "deit3_small": replace(_DEIT3, lr=4e-3, drop_path=0.05),
        "deit3_base": replace(_DEIT3, image_size=192, drop_path=0.2),
        "deit3_large": replace(_DEIT3, image_size=192, drop_path=0.45),
        "deit3_huge": replace(_DEIT3, image_size=160, drop_path=0.6),
        "deit3_base_finetune224": replace(_DEIT3_FINETUNE, drop_path=0.2),
        "deit3_large_finetune224": replace(_DEIT3_FINETUNE, drop_path=0.45),
        "deit3_huge_finetune224": replace(_DEIT3_FINETUNE, drop_path=0.55),
        "deit3_small_finetune384": replace(_DEIT3_FINETUNE, image_size=384, drop_path=0.0),
        "deit3_base_finetune384": replace(_DEIT3_FINETUNE, image_size=384, drop_path=0.15),
        "deit3_large_finetune384": replace(_DEIT3_FINETUNE, image_size=384, drop_path=0.4),
    }
    return {name: replace(recipe, name=name) for name, recipe in recipes.items()}


STUDENT_RECIPES: dict[str, StudentRecipe] = _named()


def student_recipe_named(name: str, *, model: str) -> StudentRecipe:
    """The recipe of that name for a model; ValueError with the nearest name."""
    if name not in STUDENT_RECIPES:
        raise ValueError(unknown("recipe", name, STUDENT_RECIPES))
    return replace(STUDENT_RECIPES[name], model=model)


def recipe_for(model: str, *, stage: int = 0, with_cache: bool = False) -> StudentRecipe:
    """The recipe a model is trained with.

    Args:
        model: a name of `student.recipe.zoo`, or any other timm name, which gets the recipe "deit".
        stage: models that are trained, then fine-tuned, have more than one recipe in order; ValueError beyond.
        with_cache: a student that is given a teacher cache learns from it: a recipe without distillation becomes
            DeiT's hard distillation (λ = ½).
    """
    entry = model_entry(model)
    names = entry.recipes if entry else ("deit",)
    if not 0 <= stage < len(names):
        raise ValueError(
            f"stage: {model} is trained with {' then '.join(names)}; expected 0 … {len(names) - 1}, got {stage}"
        )
    recipe = student_recipe_named(names[stage], model=model)
    if with_cache and recipe.distill == "none":
        recipe = replace(recipe, distill="hard", distill_weight=0.5)
    return recipe


def with_cache_views(recipe: StudentRecipe, cached: ViewRecipe, *, explicit: Iterable[str] = ()) -> StudentRecipe:
    """The recipe with the views of a cache; the views of a cached run are the cache's, always (law 5).

    Args:
        explicit: the keys the user set; ValueError when one of them asks for other views than the cache holds.
    """
    for key in explicit:
        if key == "view" or key.startswith("view.") or key == "view_overrides":
            raise ValueError(
                f"{key}: the views of this run are those of the cache (recipe {cached.name!r}); drop the setting, or "
                "train without a cache (--distill none), or build a cache with that recipe"
            )
        if key == "image_size" and recipe.image_size != cached.size:
            raise ValueError(
                f"image_size: the cache holds views of {cached.size} px, got {recipe.image_size}; drop the setting or "
                "build a cache of that size"
            )
    return replace(recipe, image_size=cached.size)


def unknown(what: str, got: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1, cutoff=0.0)
    return f"unknown {what} {got!r}: the nearest is {near[0]!r}; there are {', '.join(names)}"
