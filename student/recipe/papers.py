"""The recipes of the papers by name, and which one a model is trained with.

Facts: DeiT, arXiv:2012.12877 (table 9) and the defaults of the authors' `main.py`; DeiT-III, arXiv:2204.07118 (table 1)
and the commands of `README_revenge.md`. docs/recipes.md says where a default is ours and why. This file imports no
torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from shards.data_defaults import SMALL_VIEW
from shards.names import unknown
from shards.views.view_recipe import ViewRecipe
from student.learn.losses.table import LOSSES, NONE
from student.recipe.overrides import override
from student.recipe.student_recipe import StudentRecipe
from student.recipe.zoo import model_entry

_FINETUNE: dict[str, Any] = {"finetune": True, "optimizer": "adamw", "lr_scaling": "none", "batch_size": 512}
_TEACHER = StudentRecipe(
    epochs=10,
    batch_size=64,
    repeats=1,
    lr=5e-4,
    lr_scaling="none",
    warmup_epochs=1,
    schedule_unit="step",
    drop_path=0.0,
    ema_decay=0.0,
    view_overrides=(("crop_scale", (0.35, 1.0)), ("erase_prob", 0.0), ("mixup_alpha", 0.2), ("cutmix_alpha", 0.0)),
)
_SMALL = StudentRecipe(
    image_size=96,
    epochs=300,
    batch_size=32,
    repeats=1,
    lr=2e-3,
    lr_scaling="none",
    schedule_unit="step",
    drop_path=0.0,
    label_smoothing=0.0,  # the teacher says how sure one may be
    distill="soft",
    distill_weight=0.5,
    temperature=1.0,
    view=SMALL_VIEW,
)
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
    finetune = replace(deit, **_FINETUNE, image_size=384, epochs=30, lr=5e-6, min_lr=5e-6, weight_decay=1e-8)
    recipes = {
        "deit": deit,
        "deit_hard": replace(deit, distill="hard", distill_weight=0.5),
        "deit_soft": replace(deit, distill="soft", distill_weight=0.1, temperature=3.0, reduction="reference"),
        "deit_finetune384": finetune,
        "deit_hard_finetune384": replace(finetune, distill="hard", distill_weight=0.5),
        "teacher": _TEACHER,
        "small": _SMALL,
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
        raise ValueError(unknown("recipe", name, STUDENT_RECIPES, others="`recipes` lists them"))
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
    if with_cache and recipe.distill == NONE:
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


def chosen_recipe(
    model: str,
    *,
    name: str | None,
    stage: int,
    user_fields: Mapping[str, Any],
    cached: ViewRecipe | None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> StudentRecipe:
    """The recipe of a run: by name or the model's own, with what the user gave, with a cache's views if one is read.

    `defaults` are fields that were chosen for the data; what the user gave comes before them, and a cache's views.

    Errors:
        ValueError for unknown names and keys, and for views other than the cache's.
    """
    with_cache = cached is not None
    named = student_recipe_named(name, model=model) if name else recipe_for(model, stage=stage, with_cache=with_cache)
    of_views = {key for key in defaults if cached is not None and (key == "image_size" or key.startswith("view"))}
    named = override(named, {key: value for key, value in defaults.items() if key not in {*of_views, *user_fields}})
    recipe = override(named, _as_published(named, user_fields) | dict(user_fields))
    if recipe.base_loss == "binary" and recipe.reduction == "textbook" and "reduction" not in user_fields:
        # The labels' loss is a mean over the classes; the teacher's, a sum over them, would drown it.
        distils = recipe.distill != NONE or (with_cache and "distill" not in user_fields)
        recipe = replace(recipe, reduction="per_class") if distils else recipe
    return with_cache_views(recipe, cached, explicit=user_fields) if cached else recipe


def _as_published(named: StudentRecipe, user_fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that belong to a loss the user asks for in place of the recipe's own, where he says nothing.

    λ means something in one reduction only: a λ of the user's is on the textbook form, so the paper's reduction comes
    with the paper's λ or not at all.
    """
    loss = LOSSES.get(user_fields.get("distill", named.distill))
    if loss is None or loss.name == named.distill:
        return {}
    settings = dict(loss.published)
    if "distill_weight" in user_fields:
        settings.pop("reduction", None)
    return settings
