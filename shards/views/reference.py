"""Reference digests of the built-in recipes, by part: the same on every machine and with every admitted version.

Compared by `check-machine` before there is a cache, and to name what differs where a cache of version 0.1 cannot.
docs/dev/portability.md says which machines and versions gave these.
"""

from collections.abc import Mapping

from shards.views.behaviour import behaviour_difference, behaviour_digest, has_parts
from shards.views.first_behaviour import behaviour_like
from shards.views.operations.operation_names import replaced
from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named

FIRST = "deit of 0.1"
REFERENCE: Mapping[str, str] = {
    "deit": (
        "2 draw=d3aa020d30ce decode=2a58a52da83b crop=21e9395afc17 flip=bd79dacabe34 erase=4f8c06c5ca4d "
        "auto_contrast=f7fa8c0e1934 equalize=a91c5e7e555a invert=2d94232a00fa rotate2=952b19bd3fde "
        "posterize=f4ec72b98129 solarize=57aa960bcf2a solarize_add=f00ed77225e6 color=ac464593eb70 "
        "contrast=a09bd24ce4b9 brightness=b477841535e3 sharpness=222d3bc59858 shear_x=575f13d0023d "
        "shear_y=557fd49065a5 translate_x=c1d6e74d3541 translate_y=fad6b77549cf"
    ),
    "deit3": (
        "2 draw=887af512c5a7 decode=2a58a52da83b crop=21e9395afc17 flip=bd79dacabe34 blur=b2cd3aaea83a "
        "contrast=8e6884410ae5 color=cf0672a0c35f brightness=e068ca5121f8 solarize=466fba4b9f63 "
        "grey=891d2f724b12"
    ),
    "deit3_src": (
        "2 draw=06ea65c0e387 decode=2a58a52da83b crop=00746579e6fb flip=73b5d3728966 blur=b2cd3aaea83a "
        "contrast=8e6884410ae5 color=cf0672a0c35f brightness=e068ca5121f8 solarize=466fba4b9f63 "
        "grey=891d2f724b12"
    ),
    "finetune384": (
        "2 draw=e1b642d269dc decode=da1e69d94aa5 crop=8c78e4bbca06 flip=90af920648d0 erase=e549e72e4515 "
        "auto_contrast=f7fa8c0e1934 equalize=a91c5e7e555a invert=2d94232a00fa rotate2=952b19bd3fde "
        "posterize=f4ec72b98129 solarize=57aa960bcf2a solarize_add=f00ed77225e6 color=ac464593eb70 "
        "contrast=a09bd24ce4b9 brightness=b477841535e3 sharpness=222d3bc59858 shear_x=575f13d0023d "
        "shear_y=557fd49065a5 translate_x=ff77acd3a283 translate_y=9ac4decff55e"
    ),
    "eval": ("2 draw=00a762d02173 decode=2a58a52da83b crop=c30bfab82073"),
    "plain": ("2 draw=12ff7b4bf920 decode=2a58a52da83b crop=e69b30a05059"),
    "deit of 0.1": (
        "2 draw=ea1a6c25fb87 decode=2a58a52da83b crop=21e9395afc17 flip=bd79dacabe34 erase=4f8c06c5ca4d "
        "auto_contrast=f7fa8c0e1934 equalize=a91c5e7e555a invert=2d94232a00fa rotate=8987516d9b30 "
        "posterize=f4ec72b98129 solarize=57aa960bcf2a solarize_add=f00ed77225e6 color=ac464593eb70 "
        "contrast=a09bd24ce4b9 brightness=b477841535e3 sharpness=222d3bc59858 shear_x=575f13d0023d "
        "shear_y=557fd49065a5 translate_x=c1d6e74d3541 translate_y=fad6b77549cf"
    ),
    "small": ("2 draw=a2b0cc16488c decode=57140473ef7b crop=fe711e94a223 flip=ab75f773e6d9"),
}
"""Recipe → `behaviour_digest`; `python -m tests.golden.values` adds the row of a new recipe."""


def reference_recipe(name: str) -> ViewRecipe:
    """The recipe that a line of the table is about."""
    return recipe_named("deit", versions=()) if name == FIRST else recipe_named(name)


def differing_here() -> dict[str, tuple[str, ...]]:
    """Of each built-in recipe, the parts that this machine renders differently; () where none."""
    missing = [name for name in RECIPES if name not in REFERENCE]
    if missing:
        raise ValueError(
            f"REFERENCE: expected a row for each view recipe, found none for {', '.join(missing)}; add it to "
            "shards/views/reference.py with `python -m tests.golden.values`"
        )
    return {name: behaviour_difference(REFERENCE[name], behaviour_digest(reference_recipe(name))) for name in RECIPES}


def parts_differing_here(recorded: str, recipe: ViewRecipe) -> tuple[str, ...]:
    """The parts in which this machine differs from a recorded digest of a recipe, by name.

    A digest of version 0.1 has no parts. Where it differs, the parts are those that differ from this table; ("pixels",)
    if there are none.
    """
    differ = behaviour_difference(recorded, behaviour_like(recorded, recipe))
    if not differ or has_parts(recorded):
        return differ
    return suspects_here(recipe) or differ


def suspects_here(recipe: ViewRecipe) -> tuple[str, ...]:
    """The parts of a recipe that this machine renders otherwise than the table says."""
    version = replaced(recipe.versions)
    its = {"draw", "decode", "crop", "flip", "erase", *(version.get(name, name) for name in recipe.drawn_operations)}
    differences = [
        behaviour_difference(REFERENCE[name], behaviour_digest(reference_recipe(name))) for name in REFERENCE
    ]
    return tuple(dict.fromkeys(part for parts in differences for part in parts if part in its))
