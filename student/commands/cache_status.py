"""`cache-status`: show what a cache holds, and the error of its records, also for the gradient of each loss."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shards.commands.flags import CACHE, COUNT, PATH, json_option, refuse_ignored
from shards.console import result
from shards.own_folder import require_file
from shards.text.figures import count
from teacher_cache.store.header import local_header

if TYPE_CHECKING:
    from teacher_cache.record.loss_error import LossError


@click.command("cache-status")
@click.argument("cache", type=CACHE)
@click.option(
    "--fidelity", "measure", is_flag=True, help="Also print the error of the stored logits, for each τ and loss."
)
@click.option("--max-units", default=256, type=COUNT, help="Chunks that --fidelity reads.")
@click.option("--png", type=PATH, help="Write the coverage as a picture.")
@json_option
def cache_status(cache: str, measure: bool, max_units: int, png: Path | None, as_json: bool) -> None:
    """Show what CACHE holds and misses, bytes per view and speed; with --fidelity also its measured error."""
    if not measure:
        refuse_ignored(["max_units"], "only --fidelity reads chunks")
    if png is not None:
        require_file("--png", png, ".png")
    local_header(cache)
    from student.learn.record_errors import loss_gradients
    from teacher_cache.inspect import status as status_of
    from teacher_cache.store.cache import TeacherCache

    with TeacherCache.open(cache) as opened:
        status = status_of.cache_status(opened)
        rows, errors = status_of.cache_errors(opened, loss_gradients(), max_units=max_units) if measure else ([], [])
        spec = opened.spec
    if png is not None:
        status_of.save_picture(status, png)
    if as_json:
        report = status_of.status_json(status, spec)
        report |= {"fidelity": [row.to_json() for row in rows], "loss_errors": [row.to_json() for row in errors]}
        report |= {"fidelity_views": rows[0].num_views} if rows else {}
        result(json.dumps(report))
        return
    for line in status_of.status_lines(status):
        result(line)
    teacher, record = spec.teacher, spec.record
    result(f"teacher {teacher.name} ({teacher.precision}), weights sha256 {teacher.weights_sha256[:16]}…")
    result(f"record {record.kind}, k = {record.k}, {count(record.num_classes, 'class')}; recipe {spec.recipe.name}")
    result(f"spec fingerprint {spec.fingerprint}")
    if measure and not rows:
        result("fidelity: records of this kind are exact, or hold no probabilities: nothing to measure")
    if rows:
        source = f"error of these records, from the kept full logits of {count(rows[0].num_views, 'view')}"
        result(f"{'τ':>5} {'G':>8} {'KL mean':>10} {'KL p99':>10}   {source}")
        for row in rows:
            gradient, mean, p99 = row.words
            result(f"{row.temperature:5g} {gradient:>8} {mean:>10} {p99:>10}")
        for line in _loss_lines(errors, rows[0].num_views):
            result(line)


def _loss_lines(errors: "Sequence[LossError]", num_views: int) -> list[str]:
    """The error of each loss's gradient, a line per loss and a column per τ."""
    from teacher_cache.record.fidelity import in_digits

    if not errors:
        return []
    taus = list(dict.fromkeys(row.temperature for row in errors))
    named = ["any τ" if tau is None else f"τ = {tau:g}" for tau in taus]
    known = {(row.loss, row.temperature): f"{in_digits(row.gradient_error, num_views):>9}" for row in errors}
    lines = [f"{'loss':>9}" + "".join(f"{name:>9}" for name in named) + "   error of its gradient, untrained student"]
    for loss in dict.fromkeys(row.loss for row in errors):
        lines.append(f"{loss:>9}" + "".join(known.get((loss, tau), f"{'–':>9}") for tau in taus))
    return lines
