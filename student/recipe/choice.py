"""Hold what the user asks of a recipe: a model, the name of a recipe, and the fields set in a file or by flags.

Flags and files are parsed once, into this value; a command asks it for the recipe as soon as it knows the views, and
again for the recipe that fits the data. This file imports no torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from shards.data_defaults import SMALL_VIEW, ImageSet, data_defaults
from shards.index.index_checks import require_classes
from shards.views.view_recipe import ViewRecipe
from student.learn.losses.table import NONE
from student.recipe.papers import chosen_recipe, recipe_for
from student.recipe.steps import require_steps
from student.recipe.student_recipe import StudentRecipe
from student.recipe.suited import Suited, TrainingData, suited, with_fitting_blocks
from teacher_cache.network.teacher_name import timm_name

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex


TEACHER_RECIPE = "teacher"
"""The recipe by which a teacher is fine-tuned."""

_PARAMETERS = {
    "image_size": ("size",),
    "name": ("recipe", "stage"),
    "init_weights": ("pretrained", "init_weights"),
}
"""Parameters of commands that have another name than the field that they set."""

DEFAULT_STUDENT = "deit_tiny_distilled_patch16_224"
"""The student of a large set, and where the user sets what belongs to a DeiT."""


class Changed(NamedTuple):
    """A field that a user asks to be `new` where what exists was begun with `old`; parameters: what may have set it."""

    field: str
    old: Any
    new: Any
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeChoice:
    """A model, the name of a recipe, and the fields that the user set.

    Attributes:
        model: name of the student; "" until `for_set` chooses one.
        name: of the recipe; None: the model's own. stage: 0 trains, 1 fine-tunes.
        fields: the recipe fields that the user set, by name.
        defaults: the recipe fields that `for_set` chose; those of the user come before them.
        reasons: a sentence for each choice, by its name.
        file: of --config; "" without one. in_file: the fields that it set, and nothing after it.
    """

    model: str
    name: str | None = None
    stage: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    in_file: frozenset[str] = frozenset()

    def with_epochs(self, epochs: int) -> "RecipeChoice":
        """Return the same with a number of epochs in place of the chosen one; its reason is the caller's to say."""
        reasons = {name: reason for name, reason in self.reasons.items() if name != "epochs"}
        return replace(self, defaults=dict(self.defaults) | {"epochs": epochs}, reasons=reasons)

    def for_set(self, images: ImageSet, before: Mapping[str, Any]) -> "RecipeChoice":
        """Choose what the user did not: as in an existing run or sweep, else by the size of the set.

        A recipe that the user names stays as it is. A large set has DeiT-Ti and its recipe.

        Args:
            before: recipe fields of the existing run or sweep; empty where there is none.
        """
        if before:
            return self._as_before(before)
        pretrained = bool(self.fields.get("init_weights"))
        small = data_defaults(images, pretrained=pretrained, teacher=self.name == TEACHER_RECIPE)
        named = self.name is not None or self.stage or any(key.startswith("model_args.") for key in self.fields)
        model, by_size = self.model or DEFAULT_STUDENT, []
        if not self.model and small is not None and not named:
            model = small.model
            by_size.append("model")
        fields: dict[str, Any] = {}
        if small is not None and self.name in (None, TEACHER_RECIPE) and not self.stage:
            if "epochs" not in self.fields:
                fields["epochs"] = small.epochs
                by_size.append("epochs")
            if self.name == TEACHER_RECIPE or recipe_for(model).view == SMALL_VIEW:
                by_size += [] if "image_size" in self.fields else ["size"]
                fields["image_size"] = small.size
                fields |= {f"view.{name}": value for name, value in small.view_fields.items()}
                if "repeats" in self.fields:  # which divides the views of a mixing group
                    fields.pop("view.block_views", None)
        reasons = {name: small.reasons[name] for name in by_size} if small is not None else {}
        return replace(self, model=model, defaults=fields, reasons=reasons)

    def _as_before(self, before: Mapping[str, Any]) -> "RecipeChoice":
        """The same with what was chosen for an existing run."""
        fields = {name: before[name] for name in ("epochs", "image_size") if name in before}
        overrides = before.get("view_overrides") or {}
        fields |= {f"view.{name}": overrides[name] for name in ("flip", "block_views") if name in overrides}
        return replace(self, model=self.model or str(before.get("model", DEFAULT_STUDENT)), defaults=fields)

    def changes(self, before: Mapping[str, Any]) -> Iterator[Changed]:
        """Yield what the user asks for and an existing run or sweep has otherwise, those first that others follow from.

        Args:
            before: its recipe fields; empty where there is none.
        """
        fields = dict(self.fields)
        typed = [("init_weights", fields.pop("init_weights"))] if "init_weights" in fields else []
        fields.pop("finetune" if typed else "", None)
        model = before.get("model", DEFAULT_STUDENT)
        typed += [("model", self.model)] if self.model and model not in (self.model, timm_name(self.model)) else []
        typed += [("name", recipe_for(self.model or model, stage=self.stage).name)] if self.stage else []
        for name, value in (*typed, ("name", self.name), *fields.items()):
            table, _, key = name.partition(".")
            existing = before.get({"view": "view_overrides"}.get(table, table), {}) if key else before
            old, new = existing.get(key or name), list(value) if isinstance(value, tuple) else value
            if None not in (old, new) and old != new:
                yield Changed(name, old, new, _PARAMETERS.get(name, (name,)))

    def with_fields(self, **fields: Any) -> "RecipeChoice":
        """Return the same with further fields; None leaves a field as it is."""
        return replace(self, fields=dict(self.fields) | {k: v for k, v in fields.items() if v is not None})

    def recipe(self, cached: ViewRecipe | None = None) -> StudentRecipe:
        """Return the recipe, with the views of a cache if one is read; ValueError for unknown names and keys."""
        with self._naming_the_file():
            return chosen_recipe(
                self.model or DEFAULT_STUDENT,
                name=self.name,
                stage=self.stage,
                user_fields=self.fields,
                cached=cached,
                defaults=self.defaults,
            )

    @contextmanager
    def _naming_the_file(self) -> Iterator[None]:
        """Put the file of --config before an error that begins with a field which the file set."""
        try:
            yield
        except ValueError as error:
            name = str(error).partition(":")[0].removeprefix("recipe.")
            if name in self.in_file or f"view.{name}" in self.in_file:
                raise type(error)(f"--config {self.file}: {error}") from error
            raise

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
        with self._naming_the_file():
            require_classes(index.path or "shards", index.class_names, index.num_classes)
            by_size = [reason for name, reason in self.reasons.items() if name != "size" or cached is None]
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
            return fitted._replace(reasons=(*by_size, *reasons, *fitted.reasons))
