"""`evaluate`: measure the accuracy of a student, of each class too."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shards.commands.flags import PATH, device_option, json_option, precision_option, workers_option
from shards.commands.shard_place import ShardPlace, shard_options
from shards.console import Bar, result, say
from shards.index.classes import Classes, classes_of, majority, match_classes
from shards.own_folder import require_file
from shards.text.figures import accuracy, count, noise
from shards.world import world_from_env
from student.commands.flags import student_of, weights_options
from teacher_cache.commands.flags import announced_precision
from teacher_cache.network.weights_metadata import require_named, require_weights

if TYPE_CHECKING:
    from torch import nn

    from shards.index.reader import ShardReader
    from shards.index.shard_index import ShardIndex
    from shards.views.view_recipe import ViewRecipe
    from student.learn.confusion import Confusion
    from student.learn.evaluation import EvalResult, Forward
    from student.run.export import ExportInfo


@click.command("evaluate")
@shard_options()
@weights_options
@precision_option
@device_option
@workers_option()
@click.option("--html", type=PATH, help="Also a page: accuracy of each class, confusion matrix, the worst answers.")
@json_option
def evaluate(
    shard_place: ShardPlace,
    weights: Path,
    model: str | None,
    precision: str | None,
    device: str | None,
    workers: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Top-1 of a student on shards, of each class too: every sample counted exactly once.

    Under torchrun every process evaluates its share of the images, and the first one says the result.
    """
    index = shard_place.labelled(shard_place.shards, "--shards", "evaluation")
    require_named(require_weights("--weights", weights), model)
    if html is not None:
        require_file("--html", html)
    world = world_from_env()
    from shards.views.view_recipe import ViewRecipe
    from student.learn.evaluation import Forward, eval_batch_size, eval_views
    from teacher_cache.network.device import chosen_device, rank_device

    network, info = student_of(weights, model, quiet=world.rank > 0)
    class_order = _class_order(info, index, weights, quiet=world.rank > 0)
    if world.rank == 0:
        _say_other_pixels(info, index)
    target = rank_device(device, world)
    block_size = eval_batch_size(target.type)
    views = eval_views(info.recipe, ViewRecipe(mean=info.mean, std=info.std), block_size=block_size)
    dtype_name = announced_precision(chosen_device(device), precision, world=world)
    forward = Forward(views=views, device=target, precision=dtype_name, model=info.recipe.model)
    shard_place.fetch(world, index)
    with shard_place.reader(index) as reader:
        counted, confusion = _counted(network, info, reader, forward, workers, class_order)
    if world.rank > 0:
        return
    if as_json:
        result(json.dumps(_as_json(counted, confusion, _crop(views))))
    else:
        _show(counted, confusion, views, majority(index))
    if html is not None:
        _write_page(html, weights, index, counted, confusion)


def _counted(
    network: "nn.Module",
    info: "ExportInfo",
    reader: "ShardReader",
    forward: "Forward",
    workers: int,
    class_order: tuple[int, ...],
) -> "tuple[EvalResult, Confusion]":
    """Evaluate this process's images, with a bar, and return the counts of all processes."""
    from student.learn.confusion import Confusion
    from student.learn.evaluation import EvalResult, eval_batches, evaluate, own_samples
    from student.learn.process_group import meeting_place, process_group

    world, views = world_from_env(), forward.views
    confusion = Confusion(info.class_names or [f"class {c}" for c in range(info.num_classes)])
    of = f" (rank 0 of {world.size})" if world.size > 1 else ""

    def own() -> EvalResult:
        num_own = own_samples(reader.index.rows_S, views, world)
        batches = eval_batches(reader, views, world=world, workers=workers)
        with ExitStack() as stack:
            bar = stack.enter_context(Bar(f"evaluate{of}", num_own, "sample")) if world.rank == 0 else None
            moved = network.to(forward.device)
            for event in evaluate(moved, batches, forward, num_own=num_own, class_order=class_order):
                if bar is not None:
                    bar.to(event.num_done)
                if event.answered is not None:
                    confusion.add(event.answered.batch, event.answered.heads, event.answered.label_B)
        assert event.result is not None, "the last event carries the result"
        return event.result

    if world.size > 1 and world.rank == 0:
        say(f"rank 0 of {world.size} waits at {meeting_place(world)} for the other {world.size - 1}")
    with process_group(world, forward.device, precision=forward.precision) as group:
        counted = EvalResult.of_all_ranks(group.gathered(group.on_every_rank(own)), reader.index.num_samples)
        confusion.gather(group)
    return counted, confusion


def _crop(views: "ViewRecipe") -> str:
    """Describe how an image is cut before it is shown to the student."""
    return f"short side {views.short_side}, centre {views.size}"


def _as_json(counted: "EvalResult", confusion: "Confusion", crop: str) -> dict[str, Any]:
    """The numbers as JSON types: accuracies in percent, and right answers and images of each class."""
    n = counted.num_samples
    rows = {head: {"top1": 100 * counted.top1[head] / n, "top5": 100 * counted.top5[head] / n} for head in counted.top1}
    classes = {
        confusion.names[c]: {"right": int(confusion.count_CC[c, c]), "images": int(confusion.total_C[c])}
        for c in sorted(confusion.present.tolist())
    }
    return {"num_samples": n, "crop": crop, "num_not_finite": counted.num_not_finite, **rows, "classes": classes}


def _show(counted: "EvalResult", confusion: "Confusion", views: "ViewRecipe", largest: float) -> None:
    """The one number with its noise, what it is compared with, then each class."""
    n, values, two_heads = counted.num_samples, counted.metrics(), "dist" in counted.top1
    result(
        f"{count(n, 'image')}, each resized to a short side of {views.short_side} pixels, then its centre of "
        f"{views.size} × {views.size}"
    )
    top5 = f", top-5 {accuracy(values['top5'], n)}" if len(confusion.names) > 5 else ""  # of five it says nothing
    heads = [f"{name} {accuracy(values[f'{name.lower()}_top1'], n)}" for name in ("CLS", "DIST") if two_heads]
    two = f"; the average of its heads {', '.join(heads)}" if two_heads else ""
    result(f"top-1 {accuracy(values['top1'], n)} (± {noise(values['top1'], n):.1f} points){top5}{two}")
    chance = accuracy(100 / len(confusion.names), n)
    result(f"compare: always naming the largest class {accuracy(largest, n)}, chance {chance}")
    if counted.num_not_finite:
        result(f"{count(counted.num_not_finite, 'answer')} with numbers that are not finite count as wrong")
    for line in confusion.lines():
        result(line)


def _write_page(html: Path, weights: Path, index: "ShardIndex", counted: "EvalResult", confusion: "Confusion") -> None:
    from shards.atomic import replace_file
    from shards.text.escapes import visible
    from student.report.evaluation_page import Evaluated, evaluation_page

    evaluated = Evaluated(
        weights=str(weights),
        shards=str(index.path or "shards"),
        num_samples=counted.num_samples,
        top1=counted.metrics()["top1"],
        majority=majority(index),
        confusion=confusion,
    )
    replace_file(html, visible(evaluation_page(evaluated, index.key)).encode())
    result(html)


def _class_order(info: "ExportInfo", index: "ShardIndex", weights: Path, *, quiet: bool) -> tuple[int, ...]:
    """For each class of the shards its number in the weights, () for the same; ValueError where it is none of them."""
    match = match_classes(classes_of(index), Classes("the weights", info.class_names, info.num_classes))
    if match.difference:
        raise ValueError(
            f"--weights {weights}: {match.difference}; give shards of the classes that it was trained on, under "
            "the same names"
        )
    if match.words and not quiet:
        say(f"classes: {match.words}" + ("; labels are counted in the order of the weights" if match.order else ""))
    return match.order


def _say_other_pixels(info: "ExportInfo", index: "ShardIndex") -> None:
    """Warn where the images of the shards were made in another way than those that were trained on."""
    from shards.index.pixel_rule import other_pixels

    if words := other_pixels(info.pixels, index.pixels):
        say(f"warning: the student was {words}")
