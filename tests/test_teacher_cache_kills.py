"""Stage 1 under kill -9: the short form of tests/kill_stage1.py, in a process that has opened no cache."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_cache_killed_again_and_again_equals_an_undisturbed_one(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill_stage1", "--kills", "12", "--seed", "1", "--folder", str(tmp_path)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(int(kills) for kills in re.findall(r"(\d+) kills", done.stdout)) == 12


WITH_WORKERS = """
import sys, time
from pathlib import Path
from tests.stage1_tiny import build, make_shards, opened, tiny_teacher

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    index, teacher = make_shards(folder / "shards", num_samples=2000, per_shard=40), tiny_teacher()
    cache = opened(folder / "cache.zarr", index, teacher)
    build(cache, index, teacher, workers=2, should_stop=lambda: bool(print("forward", flush=True)))
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the process table of Linux")
@pytest.mark.slow
def test_rendering_workers_end_with_a_killed_process(tmp_path: Path) -> None:
    """What outlives its parent holds files, memory and cores until somebody notices."""
    script, mark = tmp_path / "main.py", f"stage1-test-{os.getpid()}-{time.time_ns()}"
    script.write_text(WITH_WORKERS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent), "MARK": mark},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    seen = 0
    while seen < 60:
        assert process.stdout.readline() == "forward\n"
        seen += 1
    assert len(_marked(mark)) == 3, "the process and its two workers"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 10
    while _marked(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert _marked(mark) == []


def _marked(mark: str) -> list[int]:
    """The processes that were started with this mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
