"""The tables of what this machine renders, as Python: for shards/views/reference.py and shards/views/sketch.py.

    python -m benchmarks.reference_tables

Only for new recipes and operations: what is in the tables is what every machine renders, and stays.
"""

import base64

from shards.views.behaviour import behaviour_digest
from shards.views.operations.table import OPERATIONS
from shards.views.reference import FIRST, reference_recipe
from shards.views.sketch import VARIANTS, sketch
from shards.views.view_recipe import RECIPES

_WIDTH = 100


def main() -> None:
    """Print both."""
    digests = {name: behaviour_digest(reference_recipe(name)) for name in (*RECIPES, FIRST)}
    sketches = {part: base64.b85encode(sketch(part).tobytes()).decode() for part in (*VARIANTS, *OPERATIONS)}
    for name, table in (("REFERENCE", digests), ("SKETCHES", sketches)):
        print(f"{name}: Mapping[str, str] = {{")
        for key, text in table.items():
            rows = [text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH)]
            print("\n".join([f'    "{key}": (', *(f'        "{row}"' for row in rows), "    ),"]))
        print("}")


if __name__ == "__main__":
    main()
