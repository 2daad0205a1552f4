"""Adds golden values of new recipes: `python -m tests.golden.values`. An existing value is never altered.

`views.json` holds what views are drawn and rendered, `REFERENCE` in shards/views/reference.py what `check-machine`
compares, each with one entry a line. If the code of today gives another value than a stored one, the command writes
nothing and names it: then the change is wrong, not the value.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import simplejpeg

from shards.views.behaviour import behaviour_digest, fixed_image
from shards.views.first_behaviour import behaviour_like
from shards.views.reference import REFERENCE, reference_recipe
from shards.views.view import render_views, view_params
from shards.views.view_recipe import RECIPES, recipe_named

ROOT = Path(__file__).parent.parent.parent
VIEWS = Path(__file__).parent / "views.json"
TABLE = ROOT / "shards" / "views" / "reference.py"
TABLE_END = '}\n"""Recipe → `behaviour_digest`'
# What decides pixels besides this code.
LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "torch")
SIZES = ((375, 500), (500, 333), (64, 48), (1, 1), (8, 10000), (10000, 8), (2300, 2100))
NEWEST = {name: recipe_named(name) for name in RECIPES}
RECIPES_OF_VIEWS = RECIPES | {f"{name} {'+'.join(r.versions)}": r for name, r in NEWEST.items() if r.versions}
"""As the first version drew them, and with the newest operations."""
Values = Mapping[str, Mapping[str, Any]]


def views_here() -> Values:
    """What this code draws and renders: the sections of `views.json`, as JSON types."""
    picture = simplejpeg.encode_jpeg(fixed_image(375, 500), 90, "RGB", "420")
    values = {
        "params": {
            f"{name} {size[0]}×{size[1]}": [
                view_params(recipe, "n01440764/7", view, size).to_json() for view in range(6)
            ]
            for name, recipe in RECIPES_OF_VIEWS.items()
            for size in SIZES
        },
        "pixels": {
            name: hashlib.sha256(
                render_views(picture, recipe, "n01440764/7", range(12), "golden").tobytes()
            ).hexdigest()
            for name, recipe in RECIPES_OF_VIEWS.items()
        },
        "behaviour": {name: behaviour_like("by the first rule", recipe) for name, recipe in RECIPES_OF_VIEWS.items()},
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    parsed: Values = json.loads(json.dumps(values))
    return parsed


def as_text(values: Values) -> str:
    """JSON with one entry a line."""
    sections = []
    for name, entries in values.items():
        lines = ",\n".join(f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(entries[key])}" for key in entries)
        sections.append(f'"{name}": {{\n{lines}\n}}')
    return "{\n" + ",\n".join(sections) + "\n}\n"


def grown(stored: Values, here: Values) -> Values:
    """The stored values and those that are new; ValueError naming the stored ones that are not today's."""
    altered = [
        f"{section}: {name}"
        for section, entries in stored.items()
        for name, value in entries.items()
        if name in here[section] and here[section][name] != value
    ]
    if altered:
        raise ValueError(f"existing golden values would change: {', '.join(altered)}; nothing is written")
    return {section: {**stored.get(section, {}), **entries} for section, entries in here.items()}


def with_rows(table: str, digests: Mapping[str, str]) -> str:
    """The text of reference.py with a row for each new recipe, one part of its digest a line."""
    rows = []
    for name, digest in digests.items():
        rule, *parts = digest.split(" ")
        lines = [f'        "{rule} "', *(f'        "{part} "' for part in parts[:-1]), f'        "{parts[-1]}"']
        rows.append("\n".join([f'    "{name}": (', *lines, "    ),\n"]))
    head, found, tail = table.partition(TABLE_END)
    assert found, f"{TABLE}: expected the end of REFERENCE"
    return head + "".join(rows) + found + tail


def main() -> None:
    """Add what is new to both files, or say what would change."""
    digests = {name: behaviour_digest(reference_recipe(name)) for name in dict.fromkeys((*REFERENCE, *RECIPES))}
    try:
        table = grown({"REFERENCE": REFERENCE}, {"REFERENCE": digests})["REFERENCE"]
        views = grown(json.loads(VIEWS.read_text()), views_here())
    except ValueError as error:
        sys.exit(str(error))
    TABLE.write_text(with_rows(TABLE.read_text(), {name: table[name] for name in table if name not in REFERENCE}))
    VIEWS.write_text(as_text(views))


if __name__ == "__main__":
    main()
