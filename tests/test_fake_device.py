"""The laws of the fake device hold, in a process of their own: torch cannot take a device back."""

import subprocess
import sys
from pathlib import Path


def test_nothing_in_a_steady_step_makes_the_host_wait() -> None:
    """A process that has registered a device cannot fork others that train, which many tests do."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/fake_device_laws.py"]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
