"""The flags of a cache's views, and what is chosen for a small set of images where they are not typed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shards.commands.flags import COUNT, SEED, bundled, flag, pairs
from shards.commands.shard_place import ShardPlace
from shards.console import say, setting_lines
from shards.data_defaults import SMALL_SET, SMALL_VIEW, data_defaults
from shards.text.figures import count
from shards.world import world_from_env

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from shards.views.view_recipe import ViewRecipe
    from teacher_cache.store.header import Header
    from teacher_cache.store.spec import CacheSpec

DEIT_REPEATS = 3
"""Views of a sample per visit in the papers' training recipes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFlags:
    """The views of a new cache."""

    views: int | None = flag(
        "--views",
        type=COUNT,
        help="Views of every image; more can be added later. Default below 50,000 images: about 60,000 answers in all.",
    )
    recipe_name: str | None = flag(
        "--view-recipe",
        "--recipe",
        help="How views are augmented; see `recipes`. Default: deit; below 50,000 images small.",
    )
    size: int | None = flag(
        "--size", type=COUNT, help="Side of the views, pixels; default: the recipe's; below 50,000 images 96 or 64."
    )
    view_seed: int = flag("--view-seed", default=0, type=SEED, help="Seed of the views.")
    sets: tuple[str, ...] = flag(
        "--view-set", "--set", multiple=True, metavar="FIELD=VALUE", help="Change a field of the view recipe."
    )
    views_per_unit: int | None = flag(
        "--views-per-unit",
        type=COUNT,
        help="Views of a chunk, which is computed and saved at once; default 6, or what divides --views; "
        "less for small sets.",
    )

    @property
    def num_views(self) -> int:
        """Views of every sample, after `for_set` has chosen what was not typed."""
        assert self.views is not None, "for_set chooses it"
        return self.views

    def for_set(self, place: ShardPlace, index: "ShardIndex", existing: "Header | None" = None) -> "ViewFlags":
        """Return the same flags with what was not typed: as in an existing cache, else chosen for a small set.

        What is chosen is said with its reason. A large set has the recipe "deit".

        Raises:
            ValueError: no number of views for a large set. ShardError: an image that was looked at.
        """
        if existing is not None:
            if self.views is not None and self.views < existing.num_views and world_from_env(shared=True).rank == 0:
                say(
                    f"--views {self.views}: this cache has {count(existing.num_views, 'view')} and keeps them; for "
                    "fewer, give another --cache"
                )
            return self._as_in(existing)
        small = data_defaults(place.survey(index)) if self.views is None or self.recipe_name is None else None
        if small is None and self.views is None:
            raise ValueError(
                f"--views: expected the number of views of each image; it is chosen for fewer than {SMALL_SET:,} "
                f"images only, and the shards hold {index.num_samples:,}"
            )
        words: list[str] = []
        flags = replace(self, recipe_name=self.recipe_name or "deit")
        if small is not None and self.views is None:
            flags = replace(flags, views=small.num_views)
            words.append(small.reasons["num_views"])
        if small is not None and self.recipe_name is None:
            flags = flags._with_fields(small.view, small.view_fields)
            words.append(small.reasons["view"])
            if self.size is None and "size" not in view_settings(self.sets):
                flags = replace(flags, size=small.size)
                words.append(small.reasons["size"])
        for line in setting_lines(words) if world_from_env(shared=True).rank == 0 else ():
            say(line)
        return flags

    def _with_fields(self, recipe_name: str, fields: "Mapping[str, float]") -> "ViewFlags":
        """The flags with another recipe, and fields of it that were not typed."""
        typed = view_settings(self.sets)
        sets = (f"{name}={value}" for name, value in fields.items() if name not in typed)
        return replace(self, recipe_name=recipe_name, sets=(*self.sets, *sets))

    def _as_in(self, existing: "Header") -> "ViewFlags":
        """The flags with the number of views of an existing cache, and its recipe where that was chosen for a set."""
        flags, recipe = replace(self, views=max(self.views or 0, existing.num_views)), existing.spec.recipe
        if self.recipe_name is not None:
            return flags
        if recipe.name != SMALL_VIEW:
            return replace(flags, recipe_name="deit")
        if self.size is None and "size" not in view_settings(self.sets):
            flags = replace(flags, size=recipe.size)
        return flags._with_fields(recipe.name, {"flip": recipe.flip})

    def recipe(self, index: "ShardIndex", existing: "CacheSpec | None" = None) -> "ViewRecipe":
        """The view recipe for these shards; what is not given is as in an existing cache.

        Shards that are all smaller than a block get smaller blocks.
        """
        from shards.views.view_recipe import default_block_views, fitting_block_size, recipe_named

        parsed_sets = view_settings(self.sets)
        flags = {"seed": "--view-seed", "block_views": "--views-per-unit", "name": "--view-recipe"}
        flags |= {"size": "--size"} if self.size else {}
        for name, typed in flags.items():
            if name in parsed_sets:
                raise ValueError(f"--set {name}=…: would be ignored: {typed} says it; drop one of them")
        values = parsed_sets | {"seed": self.view_seed} | ({"size": self.size} if self.size else {})
        if existing is not None:
            values = {"versions": existing.recipe.versions} | values
        rows = index.rows_S.tolist()
        default_views = existing.recipe.block_views if existing else default_block_views(self.num_views, rows)
        recipe = recipe_named(
            self.recipe_name or "deit", **(values | {"block_views": self.views_per_unit or default_views})
        )
        fitting = fitting_block_size(recipe.block_size, rows)
        if "block_size" in parsed_sets or fitting == recipe.block_size:
            return recipe
        return replace(recipe, block_size=existing.recipe.block_size if existing else fitting)


def served(num_views: int, per_unit: int) -> str:
    """Describe the epochs and repeats that a cache of `num_views` views in chunks of `per_unit` serves."""
    from shards.views.view_recipe import fitting_repeats

    best = fitting_repeats(DEIT_REPEATS, block_views=per_unit, num_views=(num_views,))
    says = (
        f"students see new ones for {count(num_views, 'epoch')}, then the same again; a training batch can hold "
        f"{count(best, 'view')} of each of its images"
    )
    if best == DEIT_REPEATS:
        return f"{says}, as in DeiT"
    return (
        f"{says}, not {DEIT_REPEATS} as in DeiT: {count(num_views, 'view')} in chunks of {per_unit} cannot be divided "
        f"by {DEIT_REPEATS}; --views {-(-num_views // 6) * 6} can"
    )


def view_settings(sets: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a view recipe that --set gives."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in pairs("--set", sets).items()}


view_options = bundled(ViewFlags, "views")
