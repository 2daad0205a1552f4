"""Stage 1 under kill -9: the short form of tests/kill_stage1.py, in a process that has opened no cache."""

import os
import re
import subprocess
import sys
from pathlib import Path


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
