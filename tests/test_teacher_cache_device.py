"""Which device a rank has, under every way to start it; how a GPU's arithmetic is set; what torch's errors become."""

import subprocess
import sys
from typing import get_args

import pytest
import torch

from shards.errors import device_words
from shards.flags import precision_option
from shards.world import World, world_from_env
from student.recipe.settings import Precision
from teacher_cache.commands.flags import announced_precision
from teacher_cache.inspect.verify import TOLERANCE
from teacher_cache.network.device import chosen_device, rank_device
from teacher_cache.store.spec import PRECISIONS

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """A machine that shows some GPUs."""

    def shown(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return shown


@pytest.mark.parametrize(
    ("environ", "visible", "expected"),
    [
        (STEP, 1, "cuda:0"),  # srun --gpus-per-task=1: each task sees its own GPU as number 0
        (STEP, 4, "cuda:1"),  # srun --gpus-per-node=4: each task sees all of them
        (TORCHRUN, 4, "cuda:1"),
        (TORCHRUN, 1, "cuda:0"),  # CUDA_VISIBLE_DEVICES=3 for all ranks: they share one
        ({}, 8, "cuda:0"),
    ],
)
def test_a_rank_takes_a_gpu_that_it_can_see(gpus, environ: dict[str, str], visible: int, expected: str) -> None:
    """All ranks but the first die where `cuda:LOCALID` is taken and the scheduler shows one GPU each."""
    gpus(visible)
    assert rank_device(None, world_from_env(environ)) == torch.device(expected)
    assert rank_device("cuda", world_from_env(environ)) == torch.device(expected)
    assert rank_device("cpu", world_from_env(environ)) == torch.device("cpu")


def test_every_local_rank_has_a_gpu_of_its_own_where_there_are_enough(gpus) -> None:
    gpus(8)
    taken = [rank_device("cuda", World(rank, 16, rank % 8, 8)) for rank in range(16)]
    assert len(set(taken[:8])) == 8 and taken[:8] == taken[8:]


@pytest.mark.parametrize(
    ("device", "visible", "world", "message"),
    [
        ("cuda", 0, World(), "not available here"),
        ("cuda:2", 2, World(), "shows 2 GPUs"),
        ("cuda:1", 2, World(0, 2, 0, 2), "2 ranks would share one GPU"),
        ("mps", 0, World(), "mps is not supported yet"),
        ("xpu:0", 0, World(), "xpu is not supported yet"),
        ("tpu", 0, World(), "expected cpu, cuda or cuda:N, got 'tpu'"),
        ("cuda:x", 2, World(), "expected cpu, cuda or cuda:N"),
        ("cpu:0", 0, World(), "expected cpu, cuda or cuda:N"),
    ],
)
def test_other_devices_are_refused_by_name(gpus, device: str, visible: int, world: World, message: str) -> None:
    gpus(visible)
    with pytest.raises(ValueError, match=message):
        rank_device(device, world)


def test_a_gpu_may_be_named(gpus) -> None:
    gpus(2)
    assert chosen_device("cuda:1") == "cuda:1" and rank_device("cuda:1", World()) == torch.device("cuda:1")
    gpus(0)
    assert rank_device(None, World()) == torch.device("cpu")


@pytest.mark.parametrize(
    ("gpu", "bf16", "typed", "begun", "precision", "reason"),
    [
        (False, False, None, None, "fp32", "a CPU"),
        (True, True, None, None, "bf16", "this GPU computes in it"),
        (True, False, None, None, "fp16", "this GPU has no bf16"),
        (True, True, None, "fp32", "fp32", "as begun"),
        (False, False, None, "bf16", "bf16", "as begun"),
        (True, True, "tf32", "fp32", "tf32", ""),
    ],
)
def test_the_precision_is_the_typed_one_else_as_begun_else_the_devices(
    gpus, monkeypatch, capsys, gpu: bool, bf16: bool, typed: str, begun: str, precision: str, reason: str
) -> None:
    """What nobody typed is said with its reason; a run or cache goes on in its own precision on every machine."""
    gpus(int(gpu))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    chosen = announced_precision((chosen_device(None)), typed, existing=begun)
    assert chosen == precision
    first = f"precision {precision}: {reason}; --precision chooses another\n" if reason else ""
    assert capsys.readouterr().err == first


def test_every_precision_has_its_flag_its_setting_its_teacher_and_its_tolerance() -> None:
    """One list in four rooms: a flag that the library refuses, or a cache that cannot be verified, is a hole."""
    (option,) = precision_option(lambda: None).__click_params__
    assert tuple(option.type.choices) == get_args(Precision) == PRECISIONS == tuple(TOLERANCE)


ARITHMETIC = """
import torch
{setup}
from teacher_cache.network.arithmetic import gpu_arithmetic
new = hasattr(torch.backends.cudnn, "conv")
conv, matmul = torch.backends.cudnn.conv if new else torch.backends.cudnn, torch.backends.cuda.matmul
name = "fp32_precision" if new else "allow_tf32"
def state():
    return getattr(conv, name), getattr(matmul, name), torch.backends.cudnn.benchmark
before = state()
for tf32 in (False, True):
    with gpu_arithmetic(tf32=tf32):
        assert state() == ((("ieee", "tf32")[tf32],) * 2 if new else (tf32,) * 2) + (True,), state()
    assert state() == before, (before, state())
"""


@pytest.mark.parametrize(
    "setup",
    [
        "",
        "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
        "if hasattr(torch.backends, 'fp32_precision'): torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "if hasattr(torch.backends, 'fp32_precision'): torch.backends.fp32_precision = 'ieee'",
    ],
)
def test_arithmetic_is_set_and_restored_whatever_the_process_has_used(setup: str) -> None:
    """torch raises where both of its interfaces for TF32 are used in one process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ARITHMETIC.format(setup=setup)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]


FULL = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 3 has a total capacity of 39.39 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 38.17 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError(FULL), "cuda:3: 2.25 GiB more do not fit, 1.20 GiB of 39.39 GiB are free; lower"),
        (torch.OutOfMemoryError("CUDA error: out of memory"), "the GPU's memory is full; lower --batch-size"),
        (torch.distributed.DistBackendError("NCCL error in: x\nmore"), r"is gone \(NCCL error in: x\); look at"),
        (torch.distributed.DistNetworkError("The client socket has timed out"), "another rank, or the network"),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "is gone"),
    ],
)
def test_a_full_gpu_and_a_lost_rank_are_no_defects(error: Exception, words: str) -> None:
    with pytest.raises(Exception, match=words):
        raise Exception(device_words(error))


def test_other_errors_stay_defects() -> None:
    assert device_words(RuntimeError("shape mismatch")) is None
    assert device_words(KeyError("NCCL")) is None
