"""Hold what the user asks of a recipe: a model, the name of a recipe, and the fields set in a file or by flags.

Flags and files are parsed once, into this value; a command asks it for the recipe as soon as it knows the views, and
again for the recipe that fits the data. This file imports no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shards.index.index_checks import require_classes
from shards.views.view_recipe import ViewRecipe
from student.learn.losses.table import NONE
from student.recipe.papers import chosen_recipe
from student.recipe.steps import require_steps
from student.recipe.student_recipe import StudentRecipe
from student.recipe.suited import Suited, TrainingData, suited, with_fitting_blocks

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeChoice:
    """A model, the name of a recipe, and the fields that the user set.

    Attributes:
        model: name of the student. name: of the recipe; None: the model's own. stage: 0 trains, 1 fine-tunes.
        fields: the recipe fields that the user set, by name.
    """

    model: str
    name: str | None = None
    stage: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    def with_fields(self, **fields: Any) -> "RecipeChoice":
        """Return the same with further fields; None leaves a field as it is."""
        return replace(self, fields=dict(self.fields) | {k: v for k, v in fields.items() if v is not None})

    def recipe(self, cached: ViewRecipe | None = None) -> StudentRecipe:
        """Return the recipe, with the views of a cache if one is read; ValueError for unknown names and keys."""
        return chosen_recipe(self.model, name=self.name, stage=self.stage, user_fields=self.fields, cached=cached)

    def suited_to(
        self,
        index: "ShardIndex",
        cached: ViewRecipe | None = None,
        *,
        num_views: Iterable[int | None] = (),
        parts: int = 1,
        before: Mapping[str, Any],
    ) -> Suited:
        """Return the recipe in which what the user did not set is chosen for the data.

        Args:
            cached: views of a cache. num_views: that are cycled through, one number a run; None: endless.
            parts, before: as of `TrainingData`.

        Raises:
            ValueError: numbers that do not fit each other or the data.
        """
        require_classes(index.path or "shards", index.class_names, index.num_classes)
        rows = index.rows_S.tolist()
        recipe, reasons = with_fitting_blocks(self.recipe(cached), cached, rows)
        data = TrainingData(
            views=cached or recipe.view_recipe,
            num_views=tuple(number for number in num_views if number),
            shard_rows=tuple(rows),
            num_unlabelled=index.num_unlabelled,
            parts=parts,
            before=before,
        )
        fitted = suited(recipe, data, set_by_user=self.fields)
        if fitted.recipe.distill != NONE:
            fitted.recipe.require_labels(index.num_samples - index.num_unlabelled)
        for number in data.num_views or (None,):
            require_steps(
                rows,
                cached or fitted.recipe.view_recipe,
                batch_size=fitted.recipe.batch_size,
                repeats=fitted.recipe.repeats,
                num_views=number,
                epochs=fitted.recipe.epochs,
                parts=parts,
            )
        return fitted._replace(reasons=reasons + fitted.reasons)
