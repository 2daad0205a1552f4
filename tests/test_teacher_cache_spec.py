"""A cache is for exactly one spec: any field that differs is named, nothing else matters."""

from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from shards.errors import CacheError
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.store.header import make_header, require_index
from teacher_cache.store.spec import CacheSpec, TeacherSpec, require_equal
from tests.cache_maker import make_spec

SPEC = make_spec()
MEAN = (0.5, 0.5, 0.5)

# The changed spec, and the dotted name under which the refusal must report it.
CHANGES: dict[str, tuple[CacheSpec, str]] = {
    "index": (replace(SPEC, index_fingerprint="2" * 64), "index_fingerprint"),
    "teacher": (replace(SPEC, teacher=replace(SPEC.teacher, name="other")), "teacher.name"),
    "weights": (replace(SPEC, teacher=replace(SPEC.teacher, weights_sha256="c" * 64)), "teacher.weights_sha256"),
    "precision": (replace(SPEC, teacher=replace(SPEC.teacher, precision="bf16")), "teacher.precision"),
    "recipe seed": (replace(SPEC, recipe=replace(SPEC.recipe, seed=1)), "recipe.seed"),
    "recipe flip": (replace(SPEC, recipe=replace(SPEC.recipe, flip=0.25)), "recipe.flip"),
    "views of a unit": (replace(SPEC, recipe=replace(SPEC.recipe, block_views=6)), "recipe.block_views"),
    "record kind": (replace(SPEC, record=RecordFormat.chosen("hard", 10)), "record.kind"),
}
"""The behaviour has words of its own: `test_every_difference_is_named_at_once`."""


@pytest.mark.parametrize("name", CHANGES)
def test_another_spec_is_refused_naming_field_expected_and_got(name: str) -> None:
    changed, field = CHANGES[name]
    assert [f for f, _, _ in SPEC.difference(changed)][:1] == [field]
    _, got, expected = SPEC.difference(changed)[0]
    with pytest.raises(CacheError) as caught:
        require_equal(SPEC, changed, "there.zarr")
    message = str(caught.value)
    assert "there.zarr" in message and "make a new cache" in message
    assert f"{field}: expected {_short(expected)} as there, got {_short(got)}" in message
    assert len(message) <= 600 and len(message.splitlines()) <= 6


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) <= 28 else f"{repr(value)[:27]}…"


def test_a_cache_of_quite_another_kind_is_refused_in_few_lines() -> None:
    """The first differences, and how many more there are."""
    recipe = replace(SPEC.recipe, flip=0.3, seed=7, crop="rrc", crop_scale=(0.5, 1.0), mixup_alpha=0.3, block_size=2)
    teacher = replace(SPEC.teacher, name="a" * 90, weights_sha256="d" * 64, precision="fp16")
    changed = replace(SPEC, recipe=recipe, teacher=teacher, index_fingerprint="2" * 64, behaviour="c" * 64)
    with pytest.raises(CacheError) as caught:
        require_equal(changed, SPEC, f"/{'long/' * 15}cache.zarr")
    message = str(caught.value)
    assert len(message) <= 600 and len(message.splitlines()) <= 6
    assert "and 7 more" in message and "behaviour" not in message


def test_k_is_named_when_another_k_is_asked_for() -> None:
    big = make_spec("topk", 100)
    other = replace(big, record=RecordFormat.chosen("topk", 100, k=3))
    assert "record.k" in [name for name, _, _ in big.difference(other)]


def test_every_difference_is_named_at_once() -> None:
    changed = replace(SPEC, behaviour="c" * 64, index_fingerprint="2" * 64)
    with pytest.raises(CacheError, match=r"(?s)index_fingerprint: expected.*behaviour: this machine"):
        require_equal(SPEC, changed, "there")


@pytest.mark.parametrize("name", CHANGES)
def test_fingerprints_differ_when_a_field_does(name: str) -> None:
    assert CHANGES[name][0].fingerprint != SPEC.fingerprint


def test_the_name_of_a_recipe_is_no_difference() -> None:
    renamed = replace(SPEC, recipe=replace(SPEC.recipe, name="mine"))
    require_equal(SPEC, renamed, "there")
    assert renamed.fingerprint == SPEC.fingerprint


@pytest.mark.parametrize("spec", [SPEC, make_spec("topk", 1000), *(c for c, _ in CHANGES.values())])
def test_json_round_trip(spec: CacheSpec) -> None:
    again = CacheSpec.from_json(spec.to_json())
    assert again == spec and again.fingerprint == spec.fingerprint


@pytest.mark.parametrize("field", [f.name for f in fields(CacheSpec)])
def test_json_without_a_field_is_refused(field: str) -> None:
    data = SPEC.to_json()
    del data[field]
    with pytest.raises(ValueError, match=field):
        CacheSpec.from_json(data)


def test_json_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="zoom"):
        CacheSpec.from_json({**SPEC.to_json(), "zoom": 1})


def test_json_of_another_format_version_is_refused() -> None:
    with pytest.raises(ValueError, match="format_version: expected 1, got 2"):
        CacheSpec.from_json({**SPEC.to_json(), "format_version": 2})


BAD_TEACHERS: dict[str, dict[str, Any]] = {
    "name": {"name": ""},
    "weights_sha256": {"weights_sha256": "A" * 64},
    "precision": {"precision": "int8"},
    "input_size": {"input_size": 0},
    "num_classes": {"num_classes": 1},
    "mean": {"mean": (0.5,)},
}


@pytest.mark.parametrize("field", BAD_TEACHERS)
def test_a_teacher_that_cannot_be_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"teacher.{field}"):
        replace(SPEC.teacher, **BAD_TEACHERS[field])


MISFITS: dict[str, tuple[TeacherSpec, str]] = {
    "classes": (replace(SPEC.teacher, num_classes=11), "record.num_classes"),
    "size": (replace(SPEC.teacher, input_size=64), "recipe.size"),
    "mean": (replace(SPEC.teacher, mean=MEAN), "recipe.mean"),
    "std": (replace(SPEC.teacher, std=MEAN), "recipe.std"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parts_that_do_not_fit_each_other_are_refused(name: str) -> None:
    """The teacher must be fed what the student sees."""
    teacher, field = MISFITS[name]
    with pytest.raises(ValueError, match=field):
        replace(SPEC, teacher=teacher)


class Shards(NamedTuple):
    """What a refusal knows of a set of shards: names, samples of each, fingerprint."""

    names: tuple[str, ...]
    rows: tuple[int, ...]
    fingerprint: str = "2" * 64
    num_skipped: int = 0

    @property
    def rows_S(self) -> np.ndarray:  # noqa: N802 - the shape is part of the name
        return np.array(self.rows, np.int64)


MADE_OF = Shards(("a.tar", "b.tar", "c.tar"), (250, 250, 227), SPEC.index_fingerprint)
CACHE = make_header(SPEC, MADE_OF, SPEC.recipe.block_views, {})


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (
            Shards(("a.tar",), (184,)),
            "184 samples (shards: 1), the cache has 727 (shards: 3): perhaps another set, such",
        ),
        (
            Shards(("a.tar", "c.tar"), (250, 227)),
            "477 samples (shards: 2), the cache has 727 (shards: 3): b.tar missing",
        ),
        (Shards(("x.tar", "b.tar", "c.tar"), (250, 250, 227)), "in other shards or another order: x.tar here"),
        (Shards(("a.tar", "b.tar", "c.tar"), (249, 251, 227)), "2 of 3 shards differ: a.tar has 249 samples, 250"),
        (Shards(("a.tar", "b.tar", "c.tar"), (250, 250, 227)), "by name and number, but other images, labels, keys or"),
    ],
)
def test_a_cache_of_other_shards_is_refused_with_what_differs(here: Shards, said: str) -> None:
    """Two fingerprints side by side tell nobody what to do."""
    with pytest.raises(CacheError) as caught:
        require_index(CACHE, here, "c.zarr")
    assert said in str(caught.value) and here.fingerprint not in str(caught.value)
    require_index(CACHE, here._replace(fingerprint=SPEC.index_fingerprint), "c.zarr")
