"""`check-machine` names the operation that renders differently, and does so before anything is trained."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli import cli
from shards.views.behaviour import behaviour_digest, behaviour_parts
from shards.views.operations.table import OPERATIONS
from shards.views.reference import REFERENCE, differing_here, parts_differing_here, reference_recipe
from shards.views.view_recipe import RECIPES, recipe_named

ROOT = Path(__file__).parents[1]
OLD_CACHE = ROOT / "tests" / "golden" / "v0.1.0" / "lowrank.zarr"


@pytest.fixture
def other_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose new rotation rounds one pixel otherwise."""
    kernel = OPERATIONS["rotate2"].kernel
    assert kernel is not None

    def off_by_one(image: np.ndarray, degrees: float, fill: tuple[int, int, int]) -> np.ndarray:
        assert kernel is not None
        out = kernel(image, degrees, fill)
        out[3, 5, 1] ^= 1
        return out

    monkeypatch.setitem(OPERATIONS, "rotate2", replace(OPERATIONS["rotate2"], kernel=off_by_one))
    behaviour_parts.cache_clear()


def run(*words: str) -> Result:
    """The command in this process, nothing remembered before or after."""
    behaviour_parts.cache_clear()
    result = CliRunner().invoke(cli, ["check-machine", *words])
    behaviour_parts.cache_clear()
    return result


def test_this_machine_renders_what_the_table_says() -> None:
    """Not skipped for other library versions: docs/dev/portability.md promises the same of all that are admitted."""
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"{name}: the same pixels" for name in RECIPES]


def test_the_table_has_every_part_of_every_recipe() -> None:
    for name, digest in REFERENCE.items():
        drawn = {word.partition("=")[0] for word in digest.split()[1:]}
        assert set(behaviour_parts(replace(reference_recipe(name), seed=0, name="behaviour"))) == drawn


def test_another_rotation_is_named_and_nothing_else(other_rotation: None) -> None:
    result = run()
    assert result.exit_code == 1
    assert "deit: renders differently: rotate2\n" in result.stdout and "deit3: the same pixels\n" in result.stdout
    assert "make the cache where the students are trained" in result.stderr
    behaviour_parts.cache_clear()
    assert {name for name, parts in differing_here().items() if parts} == {"deit", "finetune384"}
    behaviour_parts.cache_clear()


def test_a_cache_is_compared_with_the_machine_that_made_it(
    other_rotation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own recipe: what that cannot draw makes no difference."""
    digest = behaviour_digest(recipe_named("deit", size=32))
    without = recipe_named("deit", size=32, operations=("invert", "color"))
    alike = behaviour_digest(without)
    monkeypatch.undo()
    behaviour_parts.cache_clear()
    assert parts_differing_here(digest, recipe_named("deit", size=32)) == ("rotate2",)
    assert parts_differing_here(alike, without) == ()


@pytest.mark.parametrize("name", ["invert", "rotate"])
def test_a_cache_of_the_first_version_gets_the_name_from_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--cache", str(OLD_CACHE)).exit_code == 0
    other = replace(OPERATIONS[name], table=None, kernel=lambda image, *_: image ^ np.uint8(1))
    monkeypatch.setitem(OPERATIONS, name, other)
    result = run("--cache", str(OLD_CACHE))
    assert result.exit_code == 1 and f"recipe deit: renders differently: {name}\n" in result.stdout
    assert "make the cache here" in result.stderr


def test_a_rounding_that_one_value_does_not_show_is_found_in_an_old_cache() -> None:
    """The first rotation without AVX2 equals itself at the one angle that the digest of version 0.1 has."""
    narrow = {**os.environ, "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FMA3,AVX,FP16", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "cli.py"), "check-machine", "--cache", str(OLD_CACHE)]
    done = subprocess.run(words, env=narrow, capture_output=True, text=True, check=False)
    root = json.loads((OLD_CACHE / "zarr.json").read_text())["attributes"]
    assert " " not in root["spec"]["behaviour"], "a digest with parts would show it anyhow"
    assert (done.returncode, "rotate" in done.stdout) in ((1, True), (0, False)), done.stderr


def test_a_busy_machine_ends_without_a_traceback() -> None:
    """Zarr waits 0.2 s for its thread at exit and then closes a loop that still runs."""
    code = """
import time
from teacher_cache.store import zarr_objects
async def nothing(): pass
zarr_objects.sync(nothing())
zarr_objects.zarr_loop.loop[0].call_soon_threadsafe(time.sleep, 1.0)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stderr == ""
