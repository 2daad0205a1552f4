"""The training and validation shards of a run, and the views of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.index.classes import ClassMatch, classes_of, match_classes
from shards.index.index_checks import require_labels
from shards.index.shard_index import ShardIndex
from student.feed.cache_check import Views
from student.recipe.student_recipe import StudentRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSets:
    """Training and validation shards, the view recipe and how many views are cycled through."""

    index: ShardIndex
    val_index: ShardIndex | None
    views: Views
    shard_cache_dir: Path | None

    def check(self) -> None:
        """ShardError when the validation shards number their classes or treat pixels differently."""
        index, val = self.index, self.val_index
        if val is not None and val.pixels != index.pixels:
            expected, got = (pixels.words() or "as they are stored" for pixels in (index.pixels, val.pixels))
            raise ShardError(
                f"{val.path or 'validation shards'}: expected images {expected}, as in the training shards, got {got}; "
                "make both with the same --upright and --background"
            )
        if val is not None:
            require_labels(val, val.path or "validation shards", "validation")
        if val is not None and (difference := self.val_classes.difference):
            raise ShardError(
                f"{val.path or 'validation shards'}: expected classes of the training shards: {difference}; give the "
                "same --class-names (or check-shards --num-classes) for both"
            )

    def require_taught_heads(self, recipe: StudentRecipe, *, two: bool) -> None:
        """ValueError for a head that would learn from nobody and still be half of the answer of a student with two."""
        untaught = self.index.num_unlabelled == self.index.num_samples and recipe.teacher_heads == "dist"
        if two and untaught:
            raise ValueError(
                f"teacher_heads: no training image has a label, so the CLS head of {recipe.model} would learn nothing "
                "and still be half of its answer: expected both, got dist; leave it out, or set teacher_heads=both"
            )

    @property
    def val_classes(self) -> ClassMatch:
        """The match of the classes of the validation shards with those of the training shards."""
        if self.val_index is None:
            return ClassMatch()
        val = classes_of(self.val_index, "the validation shards")
        return match_classes(val, classes_of(self.index, "the training shards"))

    @property
    def class_words(self) -> str:
        """The difference of the validation shards' classes in words; "" for none, or where no side has names."""
        if self.val_index is None or not (self.index.class_names or self.val_index.class_names):
            return ""
        match = self.val_classes
        return match.words + ("; labels are counted in the order of the training shards" if match.order else "")

    @property
    def num_in_training(self) -> int:
        """Validation samples that are trained on as well: images of the same crc32c and size in both indexes."""
        return self.val_index.num_in(self.index) if self.val_index is not None else 0

    def identity(self) -> dict[str, Any]:
        """Return what decides the pixels and their order, as JSON types."""
        return {
            "shards": self.index.fingerprint,
            "views": self.views.recipe.to_json(),
            "num_views": self.views.num_views,
        }
