"""`export`: a student's weights as plain timm loads them."""

from pathlib import Path

import click

from shards.console import result
from shards.flags import PATH
from teacher_cache.commands.stage1_checks import check_weights


@click.command("export")
@click.argument("weights", type=PATH)
@click.argument("dest", type=PATH)
@click.option("--model", help="Needed when the file does not say it.")
def export(weights: Path, dest: Path, model: str | None) -> None:
    """Write WEIGHTS as a .safetensors DEST that plain timm loads, with a model card beside it."""
    check_weights("WEIGHTS", weights)
    if dest.suffix != ".safetensors":
        raise ValueError(f"DEST: expected a file name ending in .safetensors, got {dest.name!r}")
    if dest.is_dir() or dest.resolve() == weights.resolve():
        raise ValueError(f"DEST {dest}: expected a new file, got {'a folder' if dest.is_dir() else 'WEIGHTS itself'}")
    from student.run.export import export_weights, load_student, model_card, timm_call

    network, info = load_student(weights, model=model)
    dest.parent.mkdir(parents=True, exist_ok=True)
    export_weights(network, dest, info)
    card = dest.with_suffix(".md")
    card.write_text(model_card(info, dest.name), encoding="utf-8")
    result(f"{dest}\n{card}\n{timm_call(info, str(dest))}")
