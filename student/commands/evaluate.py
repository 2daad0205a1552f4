"""`evaluate`: measure top-1 and top-5 of a student."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.console import Bar, result, say
from shards.flags import ShardPlace, device_option, json_option, precision_option, shard_options, workers_option
from shards.index.classes import Classes, classes_of, match_classes
from shards.text.figures import count
from student.commands.flags import student_of, weights_options
from teacher_cache.commands.flags import announced_precision
from teacher_cache.network.weights_metadata import require_named, require_weights

if TYPE_CHECKING:
    from shards.index.shard_index import ShardIndex
    from student.run.export import ExportInfo


@click.command("evaluate")
@shard_options()
@weights_options
@precision_option
@device_option
@workers_option()
@json_option
def evaluate(
    shard_place: ShardPlace,
    weights: Path,
    model: str | None,
    precision: str | None,
    device: str | None,
    workers: int,
    as_json: bool,
) -> None:
    """Top-1 and top-5 of a student on shards: every sample counted exactly once."""
    index = shard_place.labelled(shard_place.shards, "--shards", "evaluation")
    require_named(require_weights("--weights", weights), model)
    import torch

    from shards.views.view_recipe import ViewRecipe
    from shards.world import World
    from student.learn.evaluation import eval_batches, eval_views
    from student.learn.evaluation import evaluate as run
    from teacher_cache.network.device import chosen_device

    network, info = student_of(weights, model)
    class_order = _class_order(info, index, weights)
    _say_other_pixels(info, index)
    target = torch.device(chosen_device(device))
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std))
    with shard_place.reader(index) as reader, Bar("evaluate", index.num_samples, "sample") as bar:
        for event in run(
            network.to(target),
            eval_batches(reader, views, world=World(), workers=workers),
            views=views,
            num_samples=index.num_samples,
            num_own=index.num_samples,
            device=target,
            precision=announced_precision(target.type, precision),
            class_order=class_order,
        ):
            bar.to(event.num_done)
    accuracy = event.result
    assert accuracy is not None, "the last event carries the result"
    n = accuracy.num_samples
    rows = {
        head: {"top1": 100 * accuracy.top1[head] / n, "top5": 100 * accuracy.top5[head] / n} for head in accuracy.top1
    }
    crop = f"short side {views.short_side}, centre {views.size}"
    if as_json:
        result(json.dumps({"num_samples": n, "crop": crop, "num_not_finite": accuracy.num_not_finite, **rows}))
        return
    result(f"{count(n, 'sample')}, {crop}")
    for head, row in rows.items():
        top5 = f"   top-5 {row['top5']:6.2f} %" if info.num_classes > 5 else ""  # of five classes it says nothing
        result(f"  {head:8} top-1 {row['top1']:6.2f} %{top5}")


def _class_order(info: "ExportInfo", index: "ShardIndex", weights: Path) -> tuple[int, ...]:
    """For each class of the shards its number in the weights, () for the same; ValueError where it is none of them."""
    match = match_classes(classes_of(index), Classes("the weights", info.class_names, info.num_classes))
    if match.difference:
        raise ValueError(
            f"--weights {weights}: {match.difference}; give shards of the classes that it was trained on, under "
            "the same names"
        )
    if match.words:
        say(f"classes: {match.words}" + ("; labels are counted in the order of the weights" if match.order else ""))
    return match.order


def _say_other_pixels(info: "ExportInfo", index: "ShardIndex") -> None:
    """Warn where the images of the shards were made in another way than those that were trained on."""
    trained, here = (pixels.words() or "as they are stored" for pixels in (info.pixels, index.pixels))
    if trained != here:
        say(f"warning: the student was trained on images {trained}, those of the shards are {here}")
