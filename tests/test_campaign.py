"""A short part of the campaign: at least one trial of every kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    """Nothing lost, silent, hanging or unclean; `python -m tests.campaign --minutes 60` looks longer."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", "--minutes", "0.1", "--seed", "1", "--folder", str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "documents damaged" in done.stdout
