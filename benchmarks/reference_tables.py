"""Print the table of what this machine renders, as Python: for shards/views/reference.py.

    python -m benchmarks.reference_tables

Only for new recipes and operations: what is in the tables is what every machine renders, and stays.
"""

from shards.views.behaviour import behaviour_digest
from shards.views.reference import FIRST, reference_recipe
from shards.views.view_recipe import RECIPES

_WIDTH = 100


def main() -> None:
    """Print `REFERENCE`."""
    print("REFERENCE: Mapping[str, str] = {")
    for name in (*RECIPES, FIRST):
        text = behaviour_digest(reference_recipe(name))
        rows = [text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH)]
        lines = [f'    "{name}": (', *(f'        "{row}"' for row in rows), "    ),"]
        print(*lines, sep="\n")
    print("}")


if __name__ == "__main__":
    main()
