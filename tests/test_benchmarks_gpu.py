"""The GPU's benchmark runs here with tiny sizes, so that the day there is a GPU costs no debugging."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What the benchmark must do without: everything but what its docstring names, and what comes with that.
ABSENT = ("matplotlib", "tensorboard", "scipy", "skimage", "pandas", "moto", "boto3", "s3fs", "gcsfs", "adlfs")
CODE = f"""
import runpy, sys

sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = ["benchmarks.gpu", "--tiny", "--json", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", CODE, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_every_section_runs_with_few_packages_and_the_last_line_is_json() -> None:
    """Cached is online and killed is uninterrupted here to the bit: a CPU has no excuse."""
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failed"] == [] and found["seconds"] < 480
    assert found["machine"]["device"] == "cpu" and found["rendering"]["views_per_s"] > 0
    assert found["stage1"]["bf16"]["ratio"] > 0 and found["compiled"] == {"left_out": "tiny sizes"}
    for name in ("cached_over_plain", "speedup", "bound", "speedup_over_bound", "images_per_s_cached"):
        assert found["students"]["tiny"][name] > 0
    assert max(found["precisions"][name]["loss_differs"] for name in ("bf16", "fp16")) < 0.05
    assert found["precisions"]["fp16"]["loss_scale"] > 1
    assert 0 <= found["overlap"]["between_steps_share"] < 1
    truth = found["truth"]
    assert truth["cached_is_online"] is True and truth["killed_is_uninterrupted"] is True
    assert truth["cached_minus_online_loss"] == 0 and 0 < truth["steps_after_the_kill"] < truth["steps"]


@pytest.mark.slow
def test_a_section_that_fails_costs_only_itself() -> None:
    """`overlap` needs the cache that `rendering` makes; `machine` does not."""
    done = run("--only", "overlap,machine")
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and found["failed"] == ["overlap"]
    assert "no cache here" in found["overlap"]["failed"] and found["machine"]["device"] == "cpu"


@pytest.mark.parametrize("words", [["--only", "nothing"]])
@pytest.mark.slow
def test_an_unknown_section_is_refused(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2 and "expected machine, rendering" in done.stderr
