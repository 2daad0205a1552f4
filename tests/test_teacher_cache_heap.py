"""Memory that a forward freed stays in the process."""

import resource
import subprocess
import sys
from itertools import count

import pytest
import torch

from teacher_cache.network.heap import keep_freed_memory

_BUFFERS, _BYTES, _TURNS = 6, 20 * 2**20, 5


def faults_per_turn() -> float:
    """Pages mapped anew in each turn of taking several buffers, filling them and letting them go."""
    before = 0
    for turn in count():
        if turn == 2:  # by then the heap has grown as far as it will
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        if turn == 2 + _TURNS:
            break
        buffers = [torch.full((_BYTES,), 1, dtype=torch.uint8) for _ in range(_BUFFERS)]
        del buffers
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / _TURNS


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_not_mapped_anew() -> None:
    """In a process of its own, for the setting is the process's."""
    run = subprocess.run([sys.executable, "-m", "tests.test_teacher_cache_heap"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, after = map(float, run.stdout.split())
    pages = _BUFFERS * _BYTES / resource.getpagesize()
    assert after < pages / 100, (before, after)


if __name__ == "__main__":
    first = faults_per_turn()
    keep_freed_memory()
    print(first, faults_per_turn())
