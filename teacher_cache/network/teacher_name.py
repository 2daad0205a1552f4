"""Parse and check names of teachers without importing timm: its sources say which models it has."""

import difflib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from shards.documents import matching
from shards.errors import ArtefactError, advisable
from shards.names import as_path, nearest, short
from shards.own_folder import is_run_folder, kind_at, what_is

DEFAULT_TEACHER = "regnety_160.deit_in1k"
LITE0 = "efficientnet_lite0"
"""EfficientNet-Lite0 with the real ImageNet weights that the extra `lite0` installs; no download."""
SOURCES = ("hf-hub", "local-dir")
"""Where a name may say that a model and its weights lie: a repository of the hub, a folder."""


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """The model's name and the JSON arguments behind it; ValueError when they are no object."""
    base, brace, rest = name.partition("{")
    if not brace:
        return base, {}
    try:
        return base, dict(json.loads(brace + rest))
    except ValueError as error:
        raise ValueError(f"teacher: {name!r}: the arguments behind {base!r} are not a JSON object: {error}") from None


def spec_name(base: str, arguments: Mapping[str, Any]) -> str:
    """Name and arguments as a cache's spec writes them."""
    return base + (json.dumps(arguments, sort_keys=True) if arguments else "")


def is_own(base: str) -> bool:
    """Whether a teacher's name is that of a function of the user's."""
    return ":" in base and not source_of(base)[0]


def require_function(name: str) -> None:
    """Refuse `package.module:function` where no such package is found, or a loaded module lacks it; ValueError.

    It is looked for on the Python path and, by commands, in the current folder. Nothing is imported.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"teacher: expected package.module:function, got {name!r}")
    if (module := sys.modules.get(module_name)) is not None:
        if callable(getattr(module, function_name, None)):
            return
        callables = [known for known in dir(module) if callable(getattr(module, known))]
        near = ", ".join(difflib.get_close_matches(function_name, callables, 3, 0.5)) or "none"
        raise ValueError(f"teacher: {module_name} has no function {function_name!r}; similar: {near}")
    package = module_name.partition(".")[0]
    if PathFinder.find_spec(package, [*sys.path, os.getcwd()]) is None and package not in sys.builtin_module_names:
        reason = f"ModuleNotFoundError: No module named {package!r}"
        raise ValueError(
            f"teacher: module {module_name} cannot be imported: {reason}; it is looked for on the Python path and, by "
            "commands, in the current folder"
        )


def source_of(base: str) -> tuple[str, str]:
    """The source of a teacher as timm writes it ("hf-hub" or "local-dir") and its place there; "" and the name else."""
    source, colon, place = base.partition(":")
    return (source, place) if colon and source in SOURCES else ("", base)


def timm_name(base: str) -> str:
    """Return timm's name of a teacher."""
    # The published TensorFlow network, "SAME" padding included; timm's efficientnet_lite0 (.ra_in1k) is another one.
    return "tf_efficientnet_lite0" if base == LITE0 else base


def require_known(flag: str, name: str) -> None:
    """ValueError, naming what is near, for a name that the installed timm cannot know.

    A name passes that timm's sources hold in any form, and one that was registered with an imported timm. Whatever else
    is wrong with it is found when the model is built.
    """
    base, _ = split_name(name)
    source, place = source_of(base)
    if source == "local-dir":
        _require_folder(flag, place)
    elif source and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", place):
        raise ValueError(f"{flag}: expected hf-hub:USER/NAME, or hf-hub:USER/NAME@REVISION, got {short(base)!r}")
    if is_own(base):
        require_function(base)
    if source or is_own(base) or not (known := _timm_words()).models:
        return
    architecture, _, tag = timm_name(base).partition(".")
    if architecture not in known.words and not _is_registered(architecture):
        if os.path.exists(base):
            raise ValueError(_of_a_path(flag, base))
        near = nearest(architecture, known.models)
        similar = "the nearest is " + ", then ".join(map(repr, near)) if near else "none is like it"
        raise ValueError(f"{flag}: timm has no model {short(architecture)!r}: {similar}")
    tags = sorted(word.partition(".")[2] for word in known.words if word.startswith(f"{architecture}."))
    if tag and tags and tag not in tags and not _is_registered(architecture, tag):
        near = nearest(tag, tags) or tags[:8]
        raise ValueError(f"{flag}: {architecture} has no weights {short(tag)!r}: there are {', '.join(near)}")


def _of_a_path(flag: str, path: str) -> str:
    """Say that a path was given where a model's name belongs, and which flag takes it."""
    weights = advisable(*(("--teacher-weights",) if flag == "--teacher" else ("--init-weights", "--pretrained")))
    takes = {
        "--teacher-weights": f"weights are given with --teacher-weights {path}",
        "--init-weights": f"weights are given with --model NAME --init-weights {path}",
        "--pretrained": f"weights are given with --model NAME --pretrained {path}",
    }
    got = kind_at(Path(path)) or ("a folder" if os.path.isdir(path) else "a file")
    return "; ".join(
        [f"{flag} {path}: expected the name of a model, got {got}", *(takes[name] for name in weights[:1])]
    )


def _is_registered(architecture: str, tag: str = "") -> bool:
    """Whether a timm that is imported already has an architecture, or weights of it: code may have registered them."""
    timm = sys.modules.get("timm")
    if timm is None:
        return False
    return bool(timm.is_model_pretrained(f"{architecture}.{tag}") if tag else timm.is_model(architecture))


def _require_folder(flag: str, place: str) -> None:
    """Refuse a folder without a configuration (ValueError), or without whole weights (ArtefactError)."""
    from teacher_cache.network.model_folder import read_model_folder
    from teacher_cache.network.weights_metadata import require_weights, weights_file

    folder = as_path(f"{flag} local-dir", place)
    if not place or is_run_folder(folder) or not (folder / "config.json").is_file():
        raise ValueError(
            f"{flag} local-dir:{place}: expected a folder with the config.json of timm; `export` writes one"
            f"{f', this is {what}' if (what := what_is(folder)) else ''}"
        )
    try:
        read_model_folder(folder)
        require_weights("weights", weights_file(folder))
    except ArtefactError as error:
        raise ArtefactError(f"{flag} local-dir:{place}: {error}") from None


class _Words(NamedTuple):
    """The models that timm registers, and every name that its sources hold: tags, and old names of models."""

    models: frozenset[str]
    words: frozenset[str]


@cache
def _timm_words() -> _Words:
    """Read from the files of the package, in less than a tenth of a second; empty where they are not to be found."""
    spec = importlib.util.find_spec("timm")
    folders = [Path(place) / "models" for place in spec.submodule_search_locations or []] if spec else []
    models: set[str] = set()
    words: set[str] = set()
    for path in (path for folder in folders for path in matching(folder, "*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        models.update(re.findall(r"@register_model\s+def (\w+)\(", text))
        words.update(re.findall(r"['\"]([\w.]+)['\"]", text))
    return _Words(frozenset(models), frozenset(models | words))
