"""The GPU's benchmark runs here with tiny sizes, so that the day there is a GPU costs no debugging."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import host
from benchmarks.gpu.__main__ import SECTIONS

ROOT = Path(__file__).parent.parent
# What the benchmark must do without: extras of this project, and what other benchmarks compare with.
ABSENT = ("matplotlib", "scipy", "skimage", "pandas", "moto", "boto3", "s3fs", "gcsfs", "adlfs")
CODE = f"""
import runpy, sys

sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = ["benchmarks.gpu", "--tiny", "--json", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", CODE, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
def test_every_section_runs_with_few_packages_and_prints_json() -> None:
    """Killed is uninterrupted here to the bit, and no figure differs from the CPU's: a CPU has no excuse."""
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    figures = printed[-1]
    assert [line["section"] for line in printed[:-1]] == [name for name in SECTIONS if name not in ("layouts", "truth")]
    assert figures["failed"] == [] and all(figures[line["section"]]["ok"] for line in printed[:-1])
    assert figures["start"]["device"] == "cpu" and figures["start"]["rendered_views_per_s"] > 0
    differences = [figures["same"][part].values() for part in ("records", "losses", "pixels")]
    assert not any(value for part in differences for value in part) and figures["same"]["damaged_copies"] == 0
    assert figures["same"]["repeated_minus_first"] == 0
    assert figures["kernels"]["launches_per_step"] > 100 and figures["student"]["bf16"]["counted_gb"] > 0
    assert len(figures["teacher"]["images_per_s"]) == 4 and figures["stage1"]["views_per_s"] > 0
    ranks = figures["ranks"]
    assert ranks["was_killed"] and ranks["resumed"] and ranks["killed_is_uninterrupted"] and ranks["world_size"] == 2
    assert ranks["world_of_one"].startswith("sum 4, gradient norm")
    assert figures["files"]["resumed_at"] == [0, 2, 4] and not any(figures["files"]["evaluated_minus_cpu"].values())
    assert 0 <= figures["feed"]["between_steps_share"] < 1 and figures["compile"]["training_graphs"] == 1


@pytest.mark.slow
def test_cached_is_online_in_the_long_form() -> None:
    figures = json.loads(run("--long", "--only", "layouts,truth").stdout.splitlines()[-1])
    truth, ratios = figures["truth"], figures["layouts"]["channels_last_over_contiguous"]
    assert list(ratios) == ["test_resnet"] and ratios["test_resnet"] > 0
    assert truth["cached_is_online"] is True and truth["killed_is_uninterrupted"] is True
    assert truth["cached_minus_online_loss"] == 0 and 0 < truth["steps_after_the_kill"] < truth["steps"]


@pytest.mark.slow
def test_a_section_that_fails_costs_only_itself() -> None:
    """`feed` needs the cache that `start` makes; `teacher` does not."""
    done = run("--only", "feed,teacher")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and figures["failed"] == ["feed"]
    assert "no cache here" in figures["feed"]["failed"] and figures["teacher"]["ok"]


def test_an_unknown_section_is_refused() -> None:
    done = run("--only", "nothing")
    assert done.returncode == 2 and "expected start, same" in done.stderr


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("GPU", 1000.0)),
        ({"cores": 2.0}, ("rendering", 900.0)),
        ({"cores": 0.5}, ("rendering", 900.0)),
        ({"host_ms": 200.0}, ("main process", 500.0)),
        ({"main_us": 2000.0, "host_ms": 0.0}, ("main process", 500.0)),
    ],
)
def test_the_least_of_three_parts_bounds_a_rank(changes: dict[str, float], expected: tuple[str, float]) -> None:
    given = {"gpu": 1000.0, "cores": 16.0, "views_per_s": 900.0, "main_us": 0.0, "host_ms": 1.0, "batch": 100}
    found = host.bound(**(given | changes))  # type: ignore[arg-type]
    assert (found["bound"], found["images_per_s"]) == (expected[0], pytest.approx(expected[1]))


@pytest.mark.slow
def test_the_host_benchmark_says_what_bounds_each_network() -> None:
    words = [sys.executable, "-m", "benchmarks.host", "--rounds", "1", "--json", "--size", "32"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert 600 < figures["launches"]["DeiT-Ti"] == figures["launches"]["DeiT-B"] < 1100
    assert all(figures[name][ranks]["bound"] for name in host.GPU_RATES for ranks in ("1 rank", "8 ranks"))
