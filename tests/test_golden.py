"""Artefacts of every version that has been are opened, extended, resumed, reported and exported by this one, for ever.

tests/golden/vX.Y.Z holds what that version's own commands wrote (tests/golden/make.py). Nothing here may be repaired by
making a set anew: a user cannot do that with his.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from cli import cli
from shards.index.shard_index import open_index
from student.run.run_reader import read_run
from teacher_cache.store.cache import TeacherCache
from tests.golden import SETS
from tests.golden.make import NUM_VIEWS, TEACHER, cache_command, student_command, sweep_command


def done(*words: str | Path) -> str:
    """The output of a command that must succeed."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(params=SETS, ids=lambda path: path.name)
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a set, in which the test runs, as its maker did."""
    shutil.copytree(request.param, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    return Path()


def test_there_are_sets() -> None:
    """A glob that finds nothing would pass everything below."""
    assert SETS


def test_shards_and_index_still_agree(made: Path) -> None:
    for split in ("train", "val"):
        assert "checked against" in done("check-shards", split, "--decode")


@pytest.mark.parametrize("kind", NUM_VIEWS)
@pytest.mark.slow
def test_caches_verify_down_to_pixels_and_answers(made: Path, kind: str) -> None:
    weights = ["--teacher-weights", "teacher.safetensors"]
    said = done("verify-cache", f"{kind}.zarr", "--shards", "train", *TEACHER, *weights)
    assert "digests: 4 checked" in said or "digests: 2 checked" in said
    assert said.count("no problems") == 2
    assert json.loads(done("cache-status", f"{kind}.zarr", "--fidelity", "--json"))["units_done"] > 0


@pytest.mark.parametrize("kind", NUM_VIEWS)
def test_fingerprints_are_what_they_were(made: Path, kind: str) -> None:
    """A reader of this version computes of an old root what its maker had written there."""
    root = json.loads((made / f"{kind}.zarr" / "zarr.json").read_text())["attributes"]
    with TeacherCache.open(f"{kind}.zarr") as cache:
        assert cache.spec.fingerprint == root["spec_fingerprint"]
        assert cache.spec.to_json() == root["spec"]
        assert cache.spec.index_fingerprint == open_index("train").fingerprint


@pytest.mark.parametrize("kind", NUM_VIEWS)
@pytest.mark.slow
def test_caches_grow_and_old_units_stay(made: Path, kind: str) -> None:
    views = NUM_VIEWS[kind]
    with TeacherCache.open(f"{kind}.zarr") as cache:
        before = {unit: cache.read_unit(*unit) for unit in np.ndindex(cache.num_view_blocks, cache.num_shards)}
    said = done(*cache_command(made, kind, views=2 * views))
    assert "extended" in said and "0 chunks missing" in said
    with TeacherCache.open(f"{kind}.zarr") as cache:
        assert cache.num_views == 2 * views and not cache.missing()
        for unit, arrays in before.items():
            after = cache.read_unit(*unit)
            assert all(np.array_equal(arrays[name], after[name], equal_nan=True) for name in arrays)
    assert "\n0 teacher forwards" in done(*cache_command(made, kind, views=2 * views))


def test_a_run_resumes_and_ends_as_the_one_that_was_not_interrupted(made: Path) -> None:
    """Law 10 over versions. The machine that made the set may round otherwise, so close, not equal."""
    before = (made / "interrupted" / "metrics.jsonl").read_bytes()
    said = done(*student_command(made, Path("interrupted")))
    assert "resumed after step" in said
    assert (made / "interrupted" / "metrics.jsonl").read_bytes().startswith(before)
    resumed, whole = read_run(Path("interrupted")), read_run(Path("run"))
    assert [p.step for p in resumed.epochs] == [p.step for p in whole.epochs]
    for point, other in zip(resumed.epochs, whole.epochs, strict=True):
        assert point["loss"] == pytest.approx(other["loss"], rel=1e-4)
    weights, expected = (load_file(Path(run) / "weights.safetensors") for run in ("interrupted", "run"))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-3, err_msg=name)


def test_a_finished_run_is_found_finished(made: Path) -> None:
    before = (made / "run" / "summary.json").read_bytes()
    done(*student_command(made, Path("run")))
    assert (made / "run" / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_sweep_is_found_done_grows_and_is_reported(made: Path) -> None:
    assert "2 of 2 cells done" in done(*sweep_command(made, Path("sweep")))
    said = done(*sweep_command(made, Path("sweep"), distill="hard,soft"))
    assert "training hard-l0.5-s0" in said and "3 of 3 cells done" in said
    done("report", "sweep", "--png", "figures", "--csv", "table.csv")
    assert len((made / "table.csv").read_text().splitlines()) == 4
    done("report", "run", "interrupted", "--html", "runs.html")


def test_weights_are_exported_evaluated_and_predict(made: Path) -> None:
    done("export", "run/weights.safetensors", "out/student.safetensors")
    said = done("evaluate", "--shards", "val", "--weights", "out/student.safetensors", "--json")
    top = json.loads(said.splitlines()[-1])
    assert top["num_samples"] == 8
    assert top["average"]["top1"] == pytest.approx(read_run(Path("run")).result("top1"), abs=0.01)
