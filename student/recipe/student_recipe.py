"""Define a student's recipe: every setting of a training as one frozen value.

The defaults are DeiT's; `student.recipe.papers` has the recipes by name. Where the authors' code has a quirk, a field
names it: `lr_lag`, `decay_dist_token`, `reduction`, `layer_scale_init`, `drop_path_shape`. This file imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from shards.values import from_json, later, ranges_of, require_fields, setting, to_json
from shards.views.view_recipe import RECIPES as VIEW_RECIPES
from shards.views.view_recipe import ViewRecipe, recipe_named
from student.learn.losses.table import LOSSES, NONE
from student.recipe.combinations import MEAN, combination_named
from student.recipe.zoo import MODELS, bare_name
from teacher_cache.network.weights_metadata import require_arguments

Scalar = str | int | float | bool
Value = Scalar | tuple[float, ...]

PUBLISHED = "timm"
"""`init_weights` of "timm:NAME" are the published weights of that name and tag, from the hub or an extra."""

_TABLES = ("model_args", "view_overrides")  # sorted (key, value) pairs in memory, objects in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecipe:
    """Every setting that decides the result of a student run.

    Attributes:
        name: what the recipe is called; model: a timm name or one of `student.recipe.zoo`.
        image_size: side of the training and evaluation image, pixels; with a cache it is the cache's.
        model_args: keyword arguments for timm beyond the name's own, such as embed_dim of a smaller student.
        finetune: the run starts from `init_weights`, a .safetensors or torch file or timm:NAME, which must be given.
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
        distill ("none" or a name of `losses.table.LOSSES`), distill_weight (λ), temperature (τ), reduction:
            "textbook" divides a loss by the batch; "reference" the soft loss by batch × classes, as the authors' code
            does; "per_class" every loss by batch × classes, which is the scale of the binary base loss.
        view, view_overrides: the view recipe of a run without a cache, by name, and fields to change in it.
        dist_beta, dist_gamma: weights of the two parts of the loss "dist", within views and within classes.
        std_ddof: the loss "soft-std" divides its variances by the classes minus this; 1 is the authors' code.
        eval_crop_pct: evaluation resizes the short side to image_size / eval_crop_pct and crops the centre.
        teacher_heads: of a student with two heads, "dist" alone learns from the teacher, or "both" do: CLS then learns
            from labels and teacher, as the head of a student with one.
        combine: how several teachers teach, a name of `combinations.COMBINATIONS`; of one, both are the same.
    """

    name: str = setting("deit", "", "what the recipe is called")
    model: str = setting("deit_tiny_patch16_224", "", "the student: a name of `models`, or any of timm's")
    model_args: tuple[tuple[str, Value], ...] = setting(
        (), "", "further arguments for timm, such as embed_dim (model_args.NAME)"
    )
    image_size: int = setting(224, "px", "side of the images; with a cache it is the cache's", within=(1, 4096))
    finetune: bool = setting(False, "", "start from init_weights")
    init_weights: str = setting("", "file", "weights that fine-tuning starts from")
    epochs: int = setting(300, "epochs", "of the run", within=(1, 100_000))
    batch_size: int = setting(1024, "views", "per optimiser step, over all processes", within=(1, 1_000_000))
    repeats: int = setting(3, "views", "of a sample per visit: repeated augmentation", within=(1, 1_000))
    optimizer: Literal["adamw", "lamb"] = setting("adamw", "", "adamw or lamb")
    betas: tuple[float, float] = setting((0.9, 0.999), "", "of its two running means")
    eps: float = setting(1e-8, "", "added to the root of the second one", within=(0.0, 1.0))
    weight_decay: float = setting(0.05, "per step", "decoupled", within=(0.0, 10.0))
    decay_groups: Literal["matrices", "all"] = setting(
        "matrices", "", "matrices: not biases, norms and what the model lists; all: everything"
    )
    decay_dist_token: bool = setting(False, "", "also the distillation token, as the authors' code does")
    clip_grad: float = setting(0.0, "norm", "bound of the gradient's norm; 0 is off", within=(0.0, 1e6))
    lr: float = setting(5e-4, "", "peak learning rate, before scaling", within=(0.0, 100.0))
    lr_scaling: Literal["linear", "none"] = setting("linear", "", "linear: lr × batch_size / lr_base_batch; none: lr")
    lr_base_batch: int = setting(512, "views", "the batch that lr is meant for", within=(1, 1_000_000))
    warmup_epochs: float = setting(5, "epochs", "from warmup_lr up to the peak", within=(0, 100_000))
    warmup_lr: float = setting(1e-6, "", "where the warm-up begins; not scaled", within=(0.0, 100.0))
    min_lr: float = setting(1e-5, "", "where the schedule ends; not scaled", within=(0.0, 100.0))
    schedule: Literal["cosine", "constant"] = setting("cosine", "", "cosine or constant")
    schedule_unit: Literal["epoch", "step"] = setting("epoch", "", "the rate moves once an epoch, or at every step")
    lr_lag: bool = setting(False, "", "the authors' off-by-one: the rate of the epoch before")
    drop_path: float = setting(0.1, "probability", "of dropping the last block", within=(0.0, 0.95))
    drop_path_shape: Literal["linear", "uniform"] = setting("linear", "", "linear from 0 over depth, or uniform")
    layer_scale_init: float = setting(
        0.0, "", "first value of LayerScale; 0 leaves the model's own", within=(0.0, 10.0)
    )
    ema_decay: float = setting(0.99996, "per step", "of the average of the weights; 0 is off", within=(0.0, 0.9999999))
    base_loss: Literal["cross_entropy", "binary"] = setting(
        "cross_entropy", "", "against the labels: cross_entropy, or binary (DeiT-III)"
    )
    label_smoothing: float = setting(0.1, "share", "of the target that goes to all classes", within=(0.0, 0.99))
    distill: str = setting("none", "", "the loss against the teacher, or none")
    distill_weight: float = setting(
        0.5, "λ, 0 … 1", "weight of that loss; the base loss has the rest", within=(0.0, 1.0)
    )
    temperature: float = setting(1.0, "τ", "of that loss, where it reads one", within=(0.01, 1_000.0))
    reduction: Literal["textbook", "reference", "per_class"] = setting(
        "textbook", "", "textbook: by batch; reference: soft by batch × classes; per_class: every loss so"
    )
    view: str = setting("deit", "", "view recipe of a run without a cache")
    view_overrides: tuple[tuple[str, Value], ...] = setting((), "", "fields changed in it (view.FIELD)")
    eval_crop_pct: float = setting(
        0.875, "share of the side", "what evaluation keeps of the short side", within=(0.05, 1.0)
    )
    dist_beta: float = later(2.0, words=("", "weight of the part of the loss dist within views"), within=(0.0, 1_000.0))
    dist_gamma: float = later(2.0, words=("", "weight of its part within classes"), within=(0.0, 1_000.0))
    combine: str = later(MEAN, words=("", "how several teachers teach"))
    std_ddof: int = later(
        0,
        words=("classes", "that soft-std takes off the divisor of its variances; 1: the authors' code"),
        within=(0, 1),
    )
    teacher_heads: Literal["dist", "both"] = later(
        "dist", words=("", "of a two-headed student: which heads learn from the teacher")
    )

    def __post_init__(self) -> None:
        """Check every field; ValueError names field, value and range."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, hints[field.name], getattr(self, field.name))
        for name, (low, high) in ranges_of(type(self)).items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number in [{low}, {high}], got {getattr(self, name)!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas!r}")
        if self.distill != NONE:
            LOSSES.require(self.distill, also=[NONE])
        combination_named(self.combine)
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
        require_arguments(dict(self.model_args), "model_args.")
        _ = self.view_recipe  # validates view_overrides

    @property
    def scaled_lr(self) -> float:
        """The peak learning rate after the scaling rule."""
        return self.lr * self.batch_size / self.lr_base_batch if self.lr_scaling == "linear" else self.lr

    def require_teacher(self, taught: bool) -> None:
        """ValueError for a loss against a teacher where nobody teaches."""
        if self.distill != NONE and not taught:
            raise ValueError(f"distill: {self.distill} needs a teacher; give --cache, or --online with --teacher")

    def require_labels(self, num_labelled: int) -> None:
        """ValueError for a loss against labels where no training image has one."""
        if num_labelled == 0 and self.distill == NONE:
            raise ValueError(
                "distill: no training image has a label, so a student learns from a teacher or not at all; give "
                "--cache and a --distill other than none"
            )
        if num_labelled == 0 and self.distill_weight != 1:
            raise ValueError(
                f"distill_weight: no training image has a label, so all of the loss is the teacher's: expected λ = 1, "
                f"got {self.distill_weight:g}; leave it out, or give --lambda 1"
            )

    def require_start(self) -> None:
        """ValueError for fine-tuning without weights to start from."""
        if self.finetune and not self.init_weights:
            raise ValueError(
                f"init_weights: recipe {self.name!r} fine-tunes; give the weights with --set init_weights=FILE, "
                "or train from scratch with --set finetune=false"
            )

    @property
    def view_recipe(self) -> ViewRecipe:
        """The views of a run without a cache; with a cache they come from its spec (`with_cache_views`)."""
        return recipe_named(self.view, **{"size": self.image_size, **dict(self.view_overrides)})

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that add the loss, the model and operations of the views, as NAME==VERSION."""
        added = {*LOSSES.packages([self.distill]), *MODELS.packages([bare_name(self.model)])}
        return tuple(sorted(added.union(self.view_recipe.packages)))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; `view_overrides` and `model_args` as objects."""
        data = to_json(self)
        for name in _TABLES:
            data[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in getattr(self, name)}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StudentRecipe":
        """The inverse of `to_json`; ValueError for other fields and types."""
        require_fields(cls, data, "student recipe")
        for name in _TABLES:
            if not isinstance(data[name], Mapping):
                raise ValueError(f"student recipe: {name}: expected an object, got {type(data[name]).__name__}")
        pairs = {name: [list(item) for item in data[name].items()] for name in _TABLES}
        return from_json(cls, {**data, **pairs}, "student recipe")


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
