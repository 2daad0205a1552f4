"""The card of a cache: a README.md beside it that says what it is, how true it is, and how to use it.

It begins as the cards of data sets on a hub do, with a block of YAML. The licence is a placeholder: whoever publishes
the answers of a teacher decides that, and knows under what the weights and the images came.
"""

import json
import re
import shlex
from collections.abc import Sequence

from shards.errors import CacheError
from shards.text.escapes import markdown, markdown_code, one_line
from shards.text.figures import count
from teacher_cache.inspect.status import Status, cache_fidelity, cache_status
from teacher_cache.record.fidelity import Fidelity
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.place import Place
from teacher_cache.store.zarr_objects import Objects

CARD_NAME = "README.md"
_MAX_UNITS = 256
_PLAIN = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
"""A name that YAML takes for the text that it is."""


def card_text(cache: TeacherCache, status: Status, errors: Sequence[Fidelity], *, name: str) -> str:
    """The card of an open cache, Markdown.

    Args:
        status, errors: what was measured on it. name: of the cache beside the card.
    """
    spec, record, teacher = cache.spec, cache.spec.record, cache.spec.teacher
    done, units = int(status.done_BS.sum()), int(status.done_BS.size)
    recipe = ", ".join(f"{key} = {value}" for key, value in spec.recipe.to_json().items())
    classes = count(teacher.num_classes, "class")
    rows = [
        ("teacher", f"{markdown_code(teacher.name)}, {teacher.precision}, {teacher.input_size} px, {classes}"),
        ("sha256 of its weights", markdown_code(teacher.weights_sha256)),
        ("views", f"{cache.num_views} of each sample, recipe {markdown_code(spec.recipe.name)}"),
        ("samples", f"{int(cache.rows_S.sum()):,} in {count(cache.num_shards, 'shard')}"),
        ("data fingerprint", f"{markdown_code(spec.index_fingerprint)} (of the shard index)"),
        ("record", f"{record.kind}: {record.entry.summary}; k = {record.k}"),
        ("bytes per view on disk", f"{status.total_bytes_per_view:.2f}"),
        ("units", f"{done} of {units}" + ("" if done == units else ": **a part of a cache**")),
        ("spec fingerprint", f"`{spec.fingerprint}`"),
        ("made with", markdown(", ".join(f"{key} {value}" for key, value in cache.header.made_with.items()))),
    ]
    if skipped := cache.header.num_skipped:
        rows.insert(4, ("images left out", f"{skipped:,}, which could not be read when the shards were made"))
    return _TEMPLATE.format(
        name=markdown(name),
        yaml_name=name if _PLAIN.fullmatch(name) else json.dumps(name),
        path=shlex.quote(one_line(name)),
        table="\n".join(f"| {key} | {value} |" for key, value in rows),
        error=_errors(errors),
        recipe=markdown(recipe),
        mark=_mark(name),
    )


def write_card(cache: TeacherCache) -> str:
    """Measure a cache and write its card beside it; where it was written.

    Errors:
        CacheError when another README.md is there, or nothing can be written; ValueError for a cache that is the root
        of its place, and so has no beside.
    """
    parent, _, name = cache.url.rpartition("/")
    if cache.folder is not None:
        parent, name = str(cache.folder.absolute().parent), cache.folder.absolute().name
    if not name or not parent or parent.endswith(":/"):
        raise ValueError(f"{cache.url}: its card lies beside it; give the cache a name inside this place")
    text = card_text(cache, cache_status(cache), cache_fidelity(cache, max_units=_MAX_UNITS), name=name)
    where = f"{parent}/{CARD_NAME}"
    objects = Objects.at(Place.parse(parent, writable=True), writable=True)
    try:
        before = objects.read([CARD_NAME])[0]
        if before is not None and _mark(name).encode() not in before:
            raise CacheError(
                f"{where}: is there, and is not the card of {name}; move it away, or copy to another folder"
            )
        objects.write(CARD_NAME, text.encode())
    finally:
        objects.close_session()
    return where


def _mark(name: str) -> str:
    return f"<!-- card of {one_line(name).replace('>', '&gt;')} -->"


def _errors(errors: Sequence[Fidelity]) -> str:
    if not errors:
        return "Nothing is lost in records of this kind, or they hold first classes only: there is no error to state."
    rows = [" | ".join((f"| {row.temperature:g}", *row.words)) + " |" for row in errors]
    table = ["| τ | G | KL mean | KL p99 |", "|---|---|---|---|", *rows]
    return "\n".join([f"Measured on {count(errors[0].num_views, 'view')}.", "", *table])


_TEMPLATE = """\
---
license: other
license_name: to-be-chosen
pretty_name: {yaml_name}
tags: [knowledge-distillation, teacher-cache, deit]
---
{mark}

# {name}: answers of a teacher, to distil students from

| | |
|---|---|
{table}

Images are not in it. Whoever has the same images, in shards of the same fingerprint, trains students from these
answers for any λ and any τ, without the teacher: every view is drawn from (recipe, key, view number) and its pixels are
compared with a checksum that is kept here.

## Error

Of the records against full logits of the teacher that are kept beside them; G is the relative error of the gradient of
an untrained student's last layer, KL is in nats per view.

{error}

## Use

    python cli.py verify-cache {path}
    python cli.py train-student --shards SHARDS --cache {path} \\
        --model deit_tiny_distilled_patch16_224 --distill soft --lambda .5 --tau 3 --out runs/one

`cache-status --fidelity` prints the table above anew. It is a Zarr v3 group, which any Zarr
library reads.

## Recipe of the views

{recipe}

## Licence

To be chosen by whoever publishes this. It depends on the licence of the teacher's weights and on the terms of the
images that it answered to; replace `license` above and this paragraph.
"""
