"""`predict`: the likeliest classes of image files."""

from pathlib import Path

import click

from shards.console import result
from shards.flags import PATH, device_option
from student.commands.flags import weights_options


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=PATH)
@weights_options
@click.option("--top", default=5, show_default=True, type=click.IntRange(1))
@device_option
def predict(images: tuple[Path, ...], weights: Path, model: str | None, top: int, device: str | None) -> None:
    """The likeliest classes of image files, with their names."""
    from student.run.export import load_student
    from student.run.export import predict as run
    from teacher_cache.network.device import chosen_device

    network, info = load_student(weights, model=model)
    for answer in run(network, info, images, top=top, device=chosen_device(device)):
        result(answer.path)
        for number, name, probability in answer.classes:
            result(f"  {100 * probability:6.2f} %  {name if name != str(number) else f'class {number}'}")
