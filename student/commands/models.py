"""`models` and `recipes`: list students and recipes, and explain names and fields."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from shards.console import result

if TYPE_CHECKING:
    from student.recipe.student_recipe import StudentRecipe
    from student.recipe.zoo import Explanation


@click.command("models")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
def models(name: str | None, as_json: bool) -> None:
    """The DeiT students and their recipes; with NAME, that name explained piece by piece."""
    from student.recipe.zoo import MODELS, explain

    if name:
        explained = explain(name)
        result(json.dumps(explained.to_json(), ensure_ascii=False) if as_json else _explanation(explained))
        return
    rows = [entry.to_json() for entry in MODELS.values()]
    if as_json:
        result(json.dumps(rows, ensure_ascii=False))
        return
    result(f"{'model':34} {'dim/depth/heads':>16} {'M par.':>7} {'GMACs':>7} {'top-1':>6}  recipe")
    for row in rows:
        shape = f"{row['dim']}/{row['depth']}/{row['heads']}" if "dim" in row else "–"
        params, gmacs = (f"{row[name]:.2f}" if row[name] is not None else "–" for name in ("params_m", "gmacs"))
        top = f"{row['top1_published']:.1f}" if row["top1_published"] else "–"
        taught = f"  teacher {row['teacher']}" if row["teacher"] else ""
        result(f"{row['name']:34} {shape:>16} {params:>7} {gmacs:>7} {top:>6}  {' then '.join(row['recipes'])}{taught}")


def _explanation(explained: "Explanation") -> str:
    """A model's name piece by piece, and its stages as a table."""
    entry = explained.entry
    lines = [entry.name, ""]
    lines += [f"  {piece:12} {meaning}" for piece, meaning in explained.pieces]
    if not explained.stages:
        lines.append(f"  recipe {' then '.join(entry.recipes)}; only transformers are explained stage by stage")
        return "\n".join(lines + ([f"\n  note: {entry.note}"] if entry.note else []))
    lines += ["", f"  {'stage':36} {'output':>18} {'parameters':>12} {'MMACs':>9}"]
    for stage in explained.stages:
        name = stage.name + (f" (× {stage.times})" if stage.times > 1 else "")
        lines.append(f"  {name:36} {stage.shape:>18} {stage.params:12,} {stage.macs / 1e6:9.1f}")
    lines.append(f"  {'all':36} {'':>18} {explained.params:12,} {explained.macs / 1e6:9.1f}")
    return "\n".join(lines + ([f"\n  note: {entry.note}"] if entry.note else []))


@click.command("recipes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes of students and of views; with NAME, print its fields with units, meaning and learning rates.

    A student recipe is set with --recipe and --set in train-student and ablate, a view recipe with --view-recipe and
    --view-set where a cache is made. Some names are of both kinds: `recipes deit` prints both.
    """
    from shards.names import unknown
    from shards.values import words_of
    from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named
    from student.recipe.papers import STUDENT_RECIPES
    from student.recipe.student_recipe import StudentRecipe

    views = {view: recipe_named(view) for view in RECIPES}
    kinds: dict[str, tuple[Mapping[str, Any], Any, Mapping[str, tuple[str, str]]]] = {
        "student": (STUDENT_RECIPES, StudentRecipe(), words_of(StudentRecipe)),
        "view": (views, views[ViewRecipe().name], words_of(ViewRecipe)),
    }
    if name is None:
        names = {kind: sorted(table) for kind, (table, _, _) in kinds.items()}
        lines = [*_student_table(STUDENT_RECIPES.values()), f"\nview recipes: {', '.join(names['view'])}"]
        result(json.dumps(names) if as_json else "\n".join([*lines, "`recipes NAME` prints every field of one"]))
        return
    matches = {kind: (table[name], base, words) for kind, (table, base, words) in kinds.items() if name in table}
    if not matches:
        raise ValueError(unknown("recipe", name, {*STUDENT_RECIPES, *RECIPES}, others="`recipes` lists them"))
    if as_json:
        result(json.dumps({kind: recipe.to_json() for kind, (recipe, _, _) in matches.items()}, ensure_ascii=False))
        return
    for kind, (recipe, base, words) in matches.items():
        result(f"{kind} recipe {name}" + ("" if recipe == base else "   (* differs from deit)"))
        result(_table(recipe, base, words))
        if kind == "student":
            result(_learning_rates(recipe))


def _student_table(recipes_of_students: Iterable["StudentRecipe"]) -> list[str]:
    """One line per student recipe, below a heading and above what its words mean."""
    header = ("recipe", "px", "epochs", "batch", "repeats", "optim", "peak lr", "decay", "drop path", "views", "loss")
    rows = [header, *(_student_row(recipe) for recipe in recipes_of_students)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    meaning = [
        "loss: CE 0.1 is cross-entropy with label smoothing 0.1, BCE is sigmoid cross-entropy on target > 0; then the",
        "loss against the teacher. views: the view recipe of a run without a cache; * if some of its fields differ.",
    ]
    return [*lines, "", *meaning]


def _student_row(recipe: "StudentRecipe") -> tuple[str, ...]:
    """The fields in which recipes differ most, as text."""
    loss = "BCE" if recipe.base_loss == "binary" else f"CE {recipe.label_smoothing:g}"
    if recipe.distill != "none":
        loss += f", {recipe.distill} λ {recipe.distill_weight:g}"
        loss += f" τ {recipe.temperature:g}" if recipe.distill == "soft" else ""
        loss += f" {recipe.reduction}" if recipe.reduction != "textbook" else ""
    drop_path = f"{recipe.drop_path:g} {recipe.drop_path_shape}" if recipe.drop_path else "0"
    counts = (recipe.image_size, recipe.epochs, recipe.batch_size, recipe.repeats)
    rates = (f"{recipe.scaled_lr:g}", f"{recipe.weight_decay:g}")
    view = recipe.view + "*" * bool(recipe.view_overrides)
    return (recipe.name, *map(str, counts), recipe.optimizer, *rates, drop_path, view, loss)


def _learning_rates(recipe: "StudentRecipe") -> str:
    """Two lines after an empty one: epochs from warm-up to end, and the learning rate at the start of each."""
    from student.learn.learning_rate import lr_at

    last, warmup = recipe.epochs - 1, math.ceil(recipe.warmup_epochs)
    shown_epochs = {0, 1, warmup - 1, warmup, *(recipe.epochs * quarter // 4 for quarter in (1, 2, 3)), last}
    epochs = [epoch for epoch in sorted(shown_epochs) if 0 <= epoch <= last]
    rates = [f"{lr_at(recipe, epoch):.4e}" for epoch in epochs]
    return "\n".join(("", f"  {'epoch':13}" + _cells(epochs), f"  {'learning rate':13}" + _cells(rates)))


def _cells(values: Sequence[Any]) -> str:
    return "".join(f"{value:>12}" for value in values)


def _table(recipe: Any, base: Any, words: Mapping[str, tuple[str, str]]) -> str:
    """One line per field: its value, unit and meaning; a star where it is not that of `base`."""
    lines = []
    for field in recipe.__dataclass_fields__:
        value, (unit, meaning) = getattr(recipe, field), words.get(field, ("", ""))
        star = " " if value == getattr(base, field) or field == "name" else "*"
        lines.append(f"{star} {field:18} {_short(value):28} {unit:18} {meaning}".rstrip())
    return "\n".join(lines)


def _short(value: Any) -> str:
    """A value as one types it: lists with commas, booleans as true and false."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(f"{item[0]}={_short(item[1])}" if isinstance(item, tuple) else _short(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
