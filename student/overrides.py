"""Changing a recipe from outside: `--set key=value` and TOML files, typed, with the nearest name for a mistake.

A key is a field of `StudentRecipe`, or `view.FIELD` for a field of the view recipe (a [view] table in TOML).
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from shards.recipe import ViewRecipe
from student.recipes import StudentRecipe, unknown

_HINTS: Mapping[str, Any] = MappingProxyType(get_type_hints(StudentRecipe))
_VIEW_HINTS: Mapping[str, Any] = MappingProxyType(get_type_hints(ViewRecipe))
# set through other doors: the model by its flag, the view's fields as view.FIELD; name and size follow from the rest
_NOT_SET = {"model": "--model", "view_overrides": "view.FIELD"}
_VIEW_NOT_SET = {"name": "view", "size": "image_size"}
_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def parse_sets(items: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as {key: typed value}; a later one wins. ValueError naming the item."""
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r}: expected key=value")
        values[key.strip()] = _from_text(key.strip(), text.strip())
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file as {key: typed value}, [view] flattened to view.FIELD; ValueError naming file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"--config {path}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"--config {path}: cannot be read as TOML: {error}") from error
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[key] = value
    try:
        return {key: _typed(key, value) for key, value in flat.items()}
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error


def override(recipe: StudentRecipe, values: Mapping[str, Any]) -> StudentRecipe:
    """The recipe with some settings replaced.

    A run that is made shorter without a word about its warm-up keeps at most a tenth of it as warm-up, in whole
    epochs: 5 of 300 stay 5, 3 epochs have none. ValueError for unknown keys and for values that do not fit.
    """
    values = {key: _typed(key, value) for key, value in values.items()}
    plain = {key: value for key, value in values.items() if not key.startswith("view.")}
    view = {key.removeprefix("view."): value for key, value in values.items() if key.startswith("view.")}
    if "epochs" in plain and "warmup_epochs" not in plain and plain["epochs"] < recipe.epochs:
        plain["warmup_epochs"] = min(recipe.warmup_epochs, plain["epochs"] // 10)
    kept = () if "view" in plain and plain["view"] != recipe.view else recipe.view_overrides
    return replace(recipe, **plain, view_overrides=tuple((dict(kept) | view).items()))


def _hint(key: str) -> Any:
    """The type of a key; ValueError with the nearest key when there is none."""
    owner, _, inner = key.rpartition(".")
    hints, doors = (_VIEW_HINTS, _VIEW_NOT_SET) if owner == "view" else (_HINTS, _NOT_SET)
    name = inner if owner == "view" else key
    if name in doors:
        raise ValueError(f"key {key!r}: is set with {doors[name]}")
    if name not in hints:
        settable = [n for n in _HINTS if n not in _NOT_SET]
        settable += [f"view.{n}" for n in _VIEW_HINTS if n not in _VIEW_NOT_SET]
        raise ValueError(unknown("key", key, settable))
    return hints[name]


def _from_text(key: str, text: str) -> Any:
    """A value from the command line."""
    hint = _hint(key)
    if hint is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(f"{key}: expected true or false, got {text!r}")
        return _BOOLS[text.lower()]
    if hint in (int, float):
        return _number(key, text, hint)
    if _is_tuple(hint):
        return tuple(_number(key, part, float) for part in text.strip("()[]").split(","))
    return text


def _number(key: str, text: str, kind: type) -> int | float:
    try:
        number: int | float = kind(text.strip())
    except ValueError as error:
        raise ValueError(f"{key}: expected {'an integer' if kind is int else 'a number'}, got {text!r}") from error
    return number


def _typed(key: str, value: Any) -> Any:
    """A value that has a type already (TOML, flags): lists become tuples, integers stay; texts are not numbers."""
    hint = _hint(key)
    if isinstance(value, list):
        value = tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = (tuple,) if _is_tuple(hint) else (hint,) if isinstance(hint, type) else (str,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{key}: expected {' or '.join(w.__name__ for w in wanted)}, got {value!r}")
    return value


def _is_tuple(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is tuple
