"""`models`: the students, their recipes, and what their names mean."""

import json
from typing import TYPE_CHECKING

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
        shape = f"{row['dim']}/{row['depth']}/{row['heads']}"
        top = f"{row['top1_published']:.1f}" if row["top1_published"] else "–"
        taught = f"  teacher {row['teacher']}" if row["teacher"] else ""
        result(
            f"{row['name']:34} {shape:>16} {row['params_m']:7.2f} {row['gmacs']:7.2f} {top:>6}  "
            f"{' then '.join(row['recipes'])}{taught}"
        )


def _explanation(explained: "Explanation") -> str:
    """A model's name piece by piece, and its stages as a table."""
    lines = [explained.entry.name, ""]
    lines += [f"  {piece:12} {meaning}" for piece, meaning in explained.pieces]
    lines += ["", f"  {'stage':36} {'output':>18} {'parameters':>12} {'MMACs':>9}"]
    for stage in explained.stages:
        name = stage.name + (f" (× {stage.times})" if stage.times > 1 else "")
        lines.append(f"  {name:36} {stage.shape:>18} {stage.params:12,} {stage.macs / 1e6:9.1f}")
    lines.append(f"  {'all':36} {'':>18} {explained.params:12,} {explained.macs / 1e6:9.1f}")
    return "\n".join(lines + ([f"\n  note: {explained.entry.note}"] if explained.entry.note else []))
