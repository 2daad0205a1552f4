"""Changing a recipe from outside: `--set key=value` and TOML files, typed, with the nearest name for a mistake.

A key is a field of `StudentRecipe`, `view.FIELD` for a field of the view recipe, or `model_args.NAME` for an
argument of timm's. In TOML the last two are tables, [view] and [model_args]; there the view recipe is `name`.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from shards.documents import read_regular, toml_value
from shards.errors import ArtefactError
from shards.names import unknown
from shards.own_folder import what_is
from shards.views.view_recipe import FIELD_SYNONYMS, ViewRecipe
from student.recipe.student_recipe import StudentRecipe

_HINTS: Mapping[str, Any] = MappingProxyType(get_type_hints(StudentRecipe))
_VIEW_HINTS: Mapping[str, Any] = MappingProxyType(get_type_hints(ViewRecipe))
# set through other doors: the model by its flag, the view's fields as view.FIELD; name and size follow from the rest
_NOT_SET = {"model": "--model", "view_overrides": "view.FIELD", "model_args": "model_args.NAME"}
_VIEW_NOT_SET = {"name": "view", "size": "image_size"}
_MOST_CONFIG_BYTES = 1 << 20
# what timm, the authors' code and others call it
_SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("learning_rate", "base_lr", "blr", "peak_lr"), "lr"),
        **dict.fromkeys(("opt", "optim"), "optimizer"),
        **dict.fromkeys(("wd", "decay"), "weight_decay"),
        **dict.fromkeys(("bs", "batch"), "batch_size"),
        **dict.fromkeys(("sched", "lr_schedule", "scheduler"), "schedule"),
        **dict.fromkeys(("warmup", "warm_up", "warmup_steps"), "warmup_epochs"),
        **dict.fromkeys(("smoothing", "ls"), "label_smoothing"),
        **dict.fromkeys(("drop_path_rate", "stochastic_depth", "dropout", "drop"), "drop_path"),
        **dict.fromkeys(("ema", "model_ema", "model_ema_decay"), "ema_decay"),
        **dict.fromkeys(("clip", "grad_clip", "max_norm"), "clip_grad"),
        **dict.fromkeys(("repeated_aug", "repeated_augmentation"), "repeats"),
        **dict.fromkeys(("img_size", "input_size", "resolution", "size"), "image_size"),
        **dict.fromkeys(("crop_pct", "crop"), "eval_crop_pct"),
        **dict.fromkeys(("tau", "temp", "t", "distillation_tau"), "temperature"),
        **dict.fromkeys(("lambda", "alpha", "distillation_alpha"), "distill_weight"),
        **dict.fromkeys(("distillation", "distillation_type", "kd"), "distill"),
        **dict.fromkeys(("finetune_from", "pretrained", "checkpoint"), "init_weights"),
        **dict.fromkeys(("augmentation", "recipe", "aug"), "view"),
        **{word: f"view.{field}" for word, field in FIELD_SYNONYMS.items()},
        **{f"view.{word}": f"view.{field}" for word, field in FIELD_SYNONYMS.items()},
    }
)
_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def parse_sets(items: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as {key: typed value}; a later one wins. ValueError naming the item."""
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r}: expected key=value")
        key = _canonical(key.strip())
        values[key] = _from_text(key, text.strip())
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file as {key: typed value}, tables flattened to TABLE.FIELD.

    Errors:
        ArtefactError for no such file; ValueError naming the file.
    """
    try:
        data = tomllib.loads(read_regular(path, most_bytes=_MOST_CONFIG_BYTES).decode())
    except FileNotFoundError as error:
        raise ArtefactError(f"--config {path}: no such file; check the path") from error
    except RecursionError:
        raise ValueError(f"--config {path}: cannot be read as TOML: it is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        got = f"it is {what}" if (what := what_is(path)) else error
        raise ValueError(f"--config {path}: cannot be read as TOML: {got}") from error
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {_canonical(f"{key}.{inner}"): entry for inner, entry in value.items()}
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
    typed = {_canonical(key): value for key, value in values.items()}
    typed = {key: _typed(key, value) for key, value in typed.items()}
    plain = {key: value for key, value in typed.items() if "." not in key}
    if "epochs" in plain and "warmup_epochs" not in plain and plain["epochs"] < recipe.epochs:
        plain["warmup_epochs"] = min(recipe.warmup_epochs, plain["epochs"] // 10)
    view_overrides = () if "view" in plain and plain["view"] != recipe.view else recipe.view_overrides
    view, args = dict(view_overrides) | _table("view", typed), dict(recipe.model_args) | _table("model_args", typed)
    return replace(recipe, **plain, view_overrides=tuple(view.items()), model_args=tuple(args.items()))


def field_named(word: str) -> str:
    """The field of a student recipe of that name, or that other programs call so; "" for none."""
    field = _SYNONYMS.get(word, word)
    return field if field in _HINTS and field not in _NOT_SET else ""


def _canonical(key: str) -> str:
    """The name of the view recipe has two spellings: a TOML file with a [view] table cannot also have a key `view`."""
    return "view" if key == "view.name" else key


def _table(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one table among dotted keys."""
    return {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}


def _hint(key: str) -> Any:
    """The type of a key; ValueError with the nearest key when there is none."""
    owner, _, inner = key.rpartition(".")
    if owner == "model_args" and inner.isidentifier():
        return Any  # timm's own; it refuses what it does not know when the model is built
    hints, doors = (_VIEW_HINTS, _VIEW_NOT_SET) if owner == "view" else (_HINTS, _NOT_SET)
    name = inner if owner == "view" else key
    if name in doors:
        raise ValueError(f"key {key!r}: is set with {doors[name]}")
    if name not in hints:
        settable = [n for n in _HINTS if n not in _NOT_SET]
        settable += [f"view.{n}" for n in _VIEW_HINTS if n not in _VIEW_NOT_SET] + ["model_args.NAME"]
        others = "`recipes NAME` prints the fields of a recipe"
        raise ValueError(unknown("key", key, settable, others=others, synonyms=_SYNONYMS))
    return hints[name]


def _from_text(key: str, text: str) -> Any:
    """A value from the command line."""
    hint = _hint(key)
    if hint is Any:
        value = toml_value(text)
        return tuple(value) if isinstance(value, list) else value
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
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = (tuple,) if _is_tuple(hint) else (hint,) if isinstance(hint, type) else (str,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{key}: expected {' or '.join(w.__name__ for w in wanted)}, got {value!r}")
    return value


def _is_tuple(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is tuple
