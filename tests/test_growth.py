"""What exists stays usable when the project grows: a new member of every open set, added at run time.

Nothing of the packages is touched: an operation, a loss, a record kind, a field of the recipe and a student are put
into their tables, every old artefact still opens with its fingerprint, and the new ones go through the command line,
the grid, the checks, the export and the report, which ask the values and never their names.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shards.errors import CacheError
from shards.values import from_json, later, to_json
from shards.views.behaviour import behaviour_digest
from shards.views.operations.operation import OperationKind
from shards.views.operations.table import OPERATIONS
from shards.views.view_recipe import RECIPES, ViewRecipe, recipe_named
from student.learn.losses.distill_loss import DistillLoss
from student.learn.losses.table import LOSSES
from student.recipe.student_recipe import StudentRecipe
from student.recipe.zoo import MODELS, model_entry
from student.run.loop import own_views
from student.run.students import StudentJob
from teacher_cache.record.kinds.record_kind import Field, RecordKind, index_field
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.header import _attributes_digest
from tests.golden.make import STUDENT, TEACHER, cache_command, sweep_command
from tests.test_golden import SETS

VIEWS = ["--recipe", "deit", "--size", "32", "--set", "block_size=4", "--views-per-unit", "2", "--views", "2"]


def done(*words: str | Path) -> str:
    """The output of a command that must succeed."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


class HalfCodec:
    """All logits in half precision: a kind that this project does not have."""

    num_clamped = 0

    def encode(self, logit_BC: np.ndarray) -> dict[str, np.ndarray]:
        """First class and logits."""
        return {"class_index": logit_BC.argmax(1)[:, None].astype("<u2"), "half": logit_BC.astype("<f2")}

    def log_prob(self, record: Any, temperature: float) -> torch.Tensor:
        """At any τ."""
        return torch.log_softmax(record["half"].float() / temperature, -1)


HALF = RecordKind(
    name="half",
    summary="all logits in half precision",
    fields=lambda f: (index_field(f), Field("half", "<f2", f.num_classes, float("nan"))),
    codec=lambda f, basis: HalfCodec(),
    logit_bytes=lambda num_classes: 2 * num_classes,
)
MIRROR = OperationKind(name="mirror", unit="", kernel=lambda image, *_: np.ascontiguousarray(image[::-1]))
MSE = DistillLoss(
    name="mse",
    title="mean squared error of probabilities",
    compute=lambda logit_BC, answer, recipe: (
        ((logit_BC.float() / recipe.temperature).softmax(-1) - answer.log_prob(recipe.temperature).exp()) ** 2
    ).sum(-1).mean(),
    fields=("temperature",),
)  # fmt: skip
STUDENT_NAME = "deit_tiny_distilled_patch16_32"


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A copy of the newest golden set in a world with one more of everything."""
    shutil.copytree(SETS[-1], tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    entry = model_entry("deit_tiny_distilled_patch16_224")
    assert entry is not None
    monkeypatch.setitem(OPERATIONS, MIRROR.name, MIRROR)
    monkeypatch.setitem(KINDS, HALF.name, HALF)
    monkeypatch.setitem(LOSSES, MSE.name, MSE)
    timm_name = "deit_tiny_distilled_patch16_224"
    monkeypatch.setitem(MODELS, STUDENT_NAME, replace(entry, name=STUDENT_NAME, image_size=32, timm_name=timm_name))
    yield Path()


def test_old_caches_open_with_the_same_fingerprints(grown: Path) -> None:
    for kind in ("lowrank", "dense"):
        root = json.loads((grown / f"{kind}.zarr" / "zarr.json").read_text())["attributes"]
        with TeacherCache.open(f"{kind}.zarr") as cache:
            assert cache.spec.fingerprint == root["spec_fingerprint"]
        assert "already finished" in done(*cache_command(grown, kind))


def test_a_new_operation_changes_no_digest_and_is_drawn_where_a_recipe_names_it(grown: Path) -> None:
    """The digest covers what the recipe can draw."""
    recipe = recipe_named("deit", size=32, operations=("mirror", "invert"))
    assert " mirror=" in behaviour_digest(recipe) and " rotate=" not in behaviour_digest(recipe)
    assert " mirror=" not in behaviour_digest(recipe_named("deit", size=32))


@pytest.mark.slow
def test_new_members_go_through_the_whole_path(grown: Path) -> None:
    """Operation and record kind through stage 1; loss and student through grid, checks, export and report."""
    stage1 = ["--shards", "train", "--cache", "half.zarr", *TEACHER, "--teacher-weights", "teacher.safetensors"]
    said = done("cache-teacher", *stage1, *VIEWS, "--set", 'operations=["mirror","invert"]', "--record", "half",
                "--batch-size", "16", "--workers", "0")  # fmt: skip
    assert "0 chunks missing" in said
    status = json.loads(done("cache-status", "half.zarr", "--fidelity", "--json"))
    assert status["spec"]["recipe"]["operations"] == ["mirror", "invert"] and status["spec"]["record"]["kind"] == "half"
    assert max(row["gradient_error"] for row in status["fidelity"]) < 0.01
    assert done("verify-cache", "half.zarr", "--deep", "--shards", "train").count("no problems") == 2
    command = sweep_command(grown, Path("grown"), distill="hard,soft,mse")
    command[command.index("--cache") + 1] = "half.zarr"
    command[command.index("--model") + 1] = STUDENT_NAME
    assert "4 of 4 cells done" in done(*command)
    done("report", "grown", "--html", "grown.html", "--png", "png", "--csv", "grown.csv")
    page = (grown / "grown.html").read_text()
    assert "soft τ 2" in page and "mse τ 2" in page
    assert "mse" in (grown / "grown.csv").read_text()
    weights = grown / "grown" / "cells" / "mse-l0.5-t2-s0" / "weights.safetensors"
    done("export", weights, "out/student.safetensors")
    card = Path("out/student.md").read_text()
    assert "mean squared error of probabilities from a teacher cache, λ = 0.5, τ = 2.0" in card


def test_a_hard_cache_refuses_the_new_loss(grown: Path) -> None:
    """The check asks the loss what it needs and the kind what it has."""
    stage1 = ["--shards", "train", "--cache", "hard.zarr", *TEACHER, "--teacher-weights", "teacher.safetensors"]
    done("cache-teacher", *stage1, *VIEWS, "--record", "hard", "--batch-size", "16", "--workers", "0")
    words = ["train-student", "--shards", "train", "--cache", "hard.zarr", *STUDENT, "--out", "new", "--distill", "mse"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2 and "holds hard labels only, got mse" in result.output


NEWER = {
    "record kind": ("record", "kind", "quarter"),
    "operation": ("recipe", "operations", ["sepia"]),
    "version of an operation": ("recipe", "versions", ["rotate9"]),
    "field": ("recipe", "sepia", 0.5),
}


@pytest.mark.parametrize(("part", "field", "value"), NEWER.values(), ids=NEWER.keys())
def test_a_cache_of_a_newer_version_is_called_that(grown: Path, part: str, field: str, value: object) -> None:
    """Its digest holds, so nothing is damaged and no copy would help."""
    path = Path("dense.zarr/zarr.json")
    root = json.loads(path.read_text())
    attributes = root["attributes"]
    attributes["spec"]["recipe"]["rand_augment"] = "rand-m9-mstd0.5-inc1"
    attributes["spec"][part][field] = value
    del attributes["attributes_digest"]
    attributes["attributes_digest"] = _attributes_digest(attributes)
    path.write_text(json.dumps(root))
    with pytest.raises(CacheError, match=f"made by a newer version: .*{field}.*update this project") as refused:
        TeacherCache.open("dense.zarr")
    assert "damaged" not in str(refused.value) and "copy" not in str(refused.value)


def later_recipe() -> type:
    """A view recipe of the next version, with a field that this one does not have."""
    new = field(default=0.0, metadata=later(0.0).metadata)
    return make_dataclass(
        "LaterRecipe", [("sepia", float, new)], bases=(ViewRecipe,), frozen=True, slots=True, kw_only=True
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_later_field_leaves_old_recipes_and_their_fingerprints_alone(name: str) -> None:
    """At the value that means "as before" it is in no file and no fingerprint; away from it, this version refuses."""
    newer, recipe = later_recipe(), RECIPES[name]
    read = newer.from_json(recipe.to_json())
    assert read.sepia == 0.0 and read.to_json() == recipe.to_json() and read.fingerprint == recipe.fingerprint
    assert ViewRecipe.from_json(read.to_json()) == recipe
    changed = replace(read, sepia=0.5)
    assert changed.fingerprint != recipe.fingerprint
    with pytest.raises(ValueError, match=r"made by a newer version: unknown fields \['sepia'\]"):
        ViewRecipe.from_json(changed.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value of two fields, the second of which came later."""

    first: int
    second: tuple[float, ...] = later(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"missing fields \['first'\]"),
        ({"first": "1"}, "first: expected `int`, got `str`"),
        ({"first": True}, "first: expected `int`, got `bool`"),
        ({"first": 1, "third": 2}, r"made by a newer version: unknown fields \['third'\]"),
        ({"first": 1, "second": [1, "x"]}, "expected `float`, got `str`"),
        ([1], "expected an object, got list"),
        (None, "expected an object, got NoneType"),
    ],
)
def test_what_is_no_value_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Value, data, "value")


def test_values_round_trip_and_keep_numbers_as_written() -> None:
    assert to_json(Value(first=1)) == {"first": 1}
    for value in (Value(first=1), Value(first=2, second=(1, 2.5))):
        assert from_json(Value, to_json(value), "value") == value
    assert json.dumps(to_json(from_json(Value, {"first": 1, "second": [1]}, "value"))) == '{"first": 1, "second": [1]}'


@pytest.mark.parametrize(
    ("begun", "overrides", "versions"),
    [
        (None, (), ("rotate2",)),
        ({"data": {"views": {"versions": ["rotate2"]}}}, (), ("rotate2",)),
        ({"data": {"views": {}}}, (), ()),
        ({"data": {"views": {}}}, (("versions", ("rotate2",)),), ("rotate2",)),
    ],
    ids=["new", "new resumed", "old resumed", "said otherwise"],
)
def test_a_run_without_a_cache_keeps_the_operations_that_it_began_with(
    tmp_path: Path, begun: dict[str, Any] | None, overrides: tuple[Any, ...], versions: tuple[str, ...]
) -> None:
    """Resuming an old run must not change its views in the middle; a new run has the newest operations."""
    if begun is not None:
        (tmp_path / "config.json").write_text(json.dumps(begun))
    views = own_views([StudentJob(StudentRecipe(view_overrides=overrides), tmp_path)])
    assert views.versions == versions


def test_recipes_of_students_grow_the_same_way() -> None:
    data = StudentRecipe().to_json()
    with pytest.raises(ValueError, match="newer version"):
        StudentRecipe.from_json({**data, "sepia": 1})
    assert StudentRecipe.from_json(data) == StudentRecipe()
