"""`models` and `recipes`: list students and recipes, and explain names and fields."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from shards.console import result

if TYPE_CHECKING:
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
    """The recipes of students and of views; with NAME, its fields with units and meaning, what deviates marked.

    A student recipe is set with --recipe and --set in train-student and ablate, a view recipe with --view-recipe and
    --view-set where a cache is made. Some names are of both kinds: `recipes deit` prints both.
    """
    from shards.names import unknown
    from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named
    from student.recipe.field_words import STUDENT_WORDS, VIEW_WORDS
    from student.recipe.papers import STUDENT_RECIPES
    from student.recipe.student_recipe import StudentRecipe

    views = {view: recipe_named(view) for view in RECIPES}
    kinds: dict[str, tuple[Mapping[str, Any], Any, Mapping[str, tuple[str, str]]]] = {
        "student": (STUDENT_RECIPES, StudentRecipe(), STUDENT_WORDS),
        "view": (views, views[ViewRecipe().name], VIEW_WORDS),
    }
    if name is None:
        names = {kind: sorted(table) for kind, (table, _, _) in kinds.items()}
        lines = [f"{kind:8} {', '.join(names_of_kind)}" for kind, names_of_kind in names.items()]
        result(json.dumps(names) if as_json else "\n".join([*lines, "`recipes NAME` prints the fields of one"]))
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
