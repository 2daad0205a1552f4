"""Laws whose tests change torch for good hold, in processes of their own: they could not fork others that train."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", ["fake_device_laws", "fake_cuda_laws", "compile_laws"])
@pytest.mark.slow
def test_laws_that_change_torch_for_good(name: str) -> None:
    """A made-up device, fake tensors of CUDA, and compiled networks."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / f"{name}.py")]
    done = subprocess.run(words, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
