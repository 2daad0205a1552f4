"""How many CPUs a rank may use: affinity, a container's quota, and the ranks that share them."""

from pathlib import Path

import pytest

from shards.pool import cpus
from shards.pool.cpus import default_workers, network_threads, rank_cpus
from shards.world import World

EIGHT = World(3, 8, 3, 8)
UNLIMITED = {"cpu.max": "max 100000\n"}
TWELVE = {"cpu.max": "1200000 100000\n"}
OLD_TWELVE = {"cpu/cpu.cfs_quota_us": "1200000\n", "cpu/cpu.cfs_period_us": "100000\n"}
OLD_UNLIMITED = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
HALF = {"cpu.max": "50000 100000\n"}


@pytest.mark.parametrize(
    ("affinity", "files", "world", "environ", "expected"),
    [
        (128, {}, World(), {}, 128),
        (128, UNLIMITED, World(), {}, 128),
        (128, TWELVE, World(), {}, 12),
        (128, OLD_TWELVE, World(), {}, 12),
        (128, OLD_UNLIMITED, World(), {}, 128),
        (128, HALF, World(), {}, 1),
        (128, {}, EIGHT, {}, 16),
        (128, TWELVE, EIGHT, {}, 1),
        (4, {}, EIGHT, {}, 1),
        (16, {}, EIGHT, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "16"}, 16),
        (128, {}, EIGHT, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "16"}, 16),
        (8, {}, EIGHT, {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "16"}, 8),
        (128, {}, World(), {"SLURM_CPUS_PER_TASK": "16"}, 128),
    ],
)
def test_a_rank_has_its_share_of_what_may_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    affinity: int,
    files: dict[str, str],
    world: World,
    environ: dict[str, str],
    expected: int,
) -> None:
    """torchrun × 8 on 128 CPUs must not start 1,016 workers, nor a container of 12 CPUs 127."""
    for name in ("SLURM_STEP_ID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpus, "_affinity", lambda: affinity)
    assert rank_cpus(world, groups=tmp_path) == expected
    workers = default_workers(world, groups=tmp_path)
    assert workers == max(1, expected - 1) and network_threads("cuda", workers, world, groups=tmp_path) == 1
    beside = default_workers(world, beside_network=True, groups=tmp_path)
    assert beside == max(1, expected // 8)
    for chosen in (0, beside, workers):
        threads = network_threads("cpu", chosen, world, groups=tmp_path)
        assert threads >= 1 and (threads + chosen <= expected or (threads == 1 and chosen >= expected - 1))


def test_the_cpus_of_this_process_are_counted() -> None:
    assert rank_cpus(World()) >= 1
    assert rank_cpus(World(0, 2, 0, 10**6)) == 1
