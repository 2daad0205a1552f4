"""Members of open sets from other packages: found by entry point, loaded when named, named in fingerprints.

The package of these tests is a module and a dist-info folder on the path: what pip leaves of a package.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from shards import names
from shards.errors import CacheError, OtherVersionError, UnknownMemberError
from shards.formats.table import FORMATS
from shards.names import OpenSet
from shards.views.operations.table import OPERATIONS
from shards.views.view_recipe import ViewRecipe, recipe_named
from student.learn.losses.table import LOSSES
from student.recipe.papers import recipe_for
from student.recipe.student_recipe import StudentRecipe
from student.recipe.zoo import MODELS
from student.sweep.grid import Grid
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.store.cache import TeacherCache
from tests.golden import SETS
from tests.golden.make import TEACHER

MODULE = """
import numpy as np
from shards.formats.input_format import InputFormat
from shards.views.operations.operation import OperationKind
from student.learn.losses.distill_loss import DistillLoss
from student.recipe.zoo import ModelEntry
from teacher_cache.record.kinds.record_kind import Field, RecordKind, index_field


class HalfCodec:
    num_clamped = 0

    def encode(self, logit_BC):
        return {"class_index": logit_BC.argmax(1)[:, None].astype("<u2"), "half": logit_BC.astype("<f2")}

    def log_prob(self, record, temperature):
        return (record["half"].float() / temperature).log_softmax(-1)


HALF = RecordKind(
    name="tiny-half", summary="all logits in half precision",
    fields=lambda shape: (index_field(shape), Field("half", "<f2", shape.num_classes, float("nan"))),
    codec=lambda shape, basis: HalfCodec(), logit_bytes=lambda num_classes: 2 * num_classes,
)
MIRROR = OperationKind(name="tiny-mirror", unit="", kernel=lambda image, *_: np.ascontiguousarray(image[::-1]))
ERROR = DistillLoss(
    name="tiny-error", title="squared error of log probabilities",
    compute=lambda logit_BC, answer, recipe: ((logit_BC.log_softmax(-1) - answer.log_prob(1.0)) ** 2).sum(-1).mean(),
)
NET = ModelEntry(name="tiny-net", timm_name="resnet10t", recipes=("deit_hard",))
MISNAMED = ERROR
TILES = InputFormat(name="tiny-tiles", summary="tiles", suits=lambda source: False, read=lambda source: {})
"""
ENTRY_POINTS = """
[deit_teacher_cache.record_kinds]
tiny-half = tiny_package:HALF
[deit_teacher_cache.operations]
tiny-mirror = tiny_package:MIRROR
[deit_teacher_cache.students]
tiny-net = tiny_package:NET
[deit_teacher_cache.formats]
tiny-tiles = tiny_package:TILES
[deit_teacher_cache.losses]
tiny-error = tiny_package:ERROR
other-name = tiny_package:MISNAMED
no-module = tiny_package_that_is_not_there:LOSS
"""
TABLES: tuple[tuple[OpenSet, str], ...] = (  # type: ignore[type-arg]
    (KINDS, "tiny-half"),
    (OPERATIONS, "tiny-mirror"),
    (MODELS, "tiny-net"),
    (LOSSES, "tiny-error"),
    (FORMATS, "tiny-tiles"),
)


def forget() -> None:
    """As in a new process: nothing of other packages was named."""
    names._installed.cache_clear()
    for table, _ in TABLES:
        for name in list(table._packages):
            for known in (table._packages, table._places, table._members):
                known.pop(name, None)


def install(site: Path, version: str) -> None:
    """What pip leaves behind."""
    (site / "tiny_package.py").write_text(MODULE)
    for old in site.glob("*.dist-info"):
        shutil.rmtree(old)
    info = site / f"tiny_package-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-package\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    forget()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with version 1.0 of the package."""
    site = tmp_path / "site"
    site.mkdir()
    install(site, "1.0")
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("tiny_package", None)
    forget()


def done(*words: str | Path) -> str:
    """The output of a command that must succeed."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("table", "name"), TABLES, ids=[name for _, name in TABLES])
def test_a_member_of_another_package_is_imported_when_it_is_used(site: Path, table: OpenSet, name: str) -> None:  # type: ignore[type-arg]
    """Not when the table is listed, and not when a name is checked."""
    assert name not in list(table) and name in table and "tiny_package" not in sys.modules
    assert table[name].name == name and name in list(table)
    assert table.packages([name, next(iter(table))]) == ("tiny-package==1.0",)


def test_what_an_entry_point_promises_is_checked(site: Path) -> None:
    with pytest.raises(ValueError, match=r"no-module.* of tiny-package==1\.0 cannot be loaded: No module"):
        LOSSES["no-module"]
    with pytest.raises(ValueError, match="expected a DistillLoss named 'other-name'"):
        LOSSES["other-name"]
    with pytest.raises(UnknownMemberError, match=r"expected one of hard, .*tiny-error, got 'tiny-eror'"):
        LOSSES.named("tiny-eror")


def test_names_of_recipes_are_checked_without_the_kernels() -> None:
    """A named view recipe with operations is made where `--help` is: there is neither cv2 nor torch."""
    code = (
        "import sys\n"
        "from shards.views.view_recipe import ViewRecipe\n"
        "ViewRecipe(operations=('rotate', 'invert'))\n"
        "sys.exit(str({'cv2', 'torch', 'tiny_package'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.strip(), done.stderr


def test_fingerprints_name_package_and_version(site: Path) -> None:
    """With built-in members nothing is added."""
    recipe = recipe_named("deit", operations=("tiny-mirror", "invert"))
    first, written = recipe.fingerprint, recipe.to_json()
    assert written["packages"] == ["tiny-package==1.0"] and ViewRecipe.from_json(written) == recipe
    assert "packages" not in recipe_named("deit", operations=("invert",)).to_json()
    student = StudentRecipe(distill="tiny-error", model="tiny-net")
    assert student.to_json()["packages"] == ["tiny-package==1.0"]
    assert StudentRecipe.from_json(student.to_json()) == student
    assert recipe_for("tiny-net").name == "deit_hard"
    grid = Grid(weights=(0.5,), temperatures=(), distillations=("tiny-error",))
    assert [column for column, _ in grid.columns()] == ["tiny-error"]
    install(site, "1.1")
    assert recipe.fingerprint != first
    with pytest.raises(OtherVersionError, match=r"expected tiny-package==1\.0, found tiny-package==1\.1; pip install"):
        ViewRecipe.from_json(written)
    assert StudentRecipe.from_json(student.to_json()) == student


def test_a_cache_of_another_package_goes_the_whole_way(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record kind and operation in stage 1, loss and student in stage 2; refused by name without the package."""
    shutil.copytree(SETS[-1], tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    views = ["--recipe", "deit", "--size", "32", "--set", "block_size=4", "--views-per-unit", "2", "--views", "2"]
    done("cache-teacher", "--shards", "train", "--cache", "tiny.zarr", *TEACHER, "--teacher-weights",
         "teacher.safetensors", *views, "--set", 'operations=["tiny-mirror","invert"]', "--record", "tiny-half",
         "--batch-size", "16", "--workers", "0")  # fmt: skip
    root = json.loads(Path("tiny.zarr/zarr.json").read_text())["attributes"]
    assert root["spec"]["record"]["packages"] == root["spec"]["recipe"]["packages"] == ["tiny-package==1.0"]
    assert done("verify-cache", "tiny.zarr", "--deep", "--shards", "train").count("no problems") == 2
    done("train-student", "--shards", "train", "--cache", "tiny.zarr", "--model", "tiny-net", "--out", "tiny-run",
         "--distill", "tiny-error", "--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "batch_size=8",
         "--set", "drop_path=0", "--workers", "0")  # fmt: skip
    assert json.loads(Path("tiny-run/config.json").read_text())["recipe"]["packages"] == ["tiny-package==1.0"]
    install(site, "2.0")
    with pytest.raises(CacheError, match=r"pip install tiny-package==1\.0") as newer:
        TeacherCache.open("tiny.zarr")
    shutil.rmtree(next(site.glob("*.dist-info")))
    forget()
    with pytest.raises(CacheError, match=r"it comes with a package: pip install tiny-package==1\.0") as missing:
        TeacherCache.open("tiny.zarr")
    assert not any("damaged" in str(error.value) or "from a copy" in str(error.value) for error in (newer, missing))
