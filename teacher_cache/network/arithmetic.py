"""The arithmetic of a forward pass: which precision, and how a GPU computes what stays float32."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from shards.errors import is_full_gpu
from shards.world import ALONE, World

_BACKENDS = torch.backends
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_AMPERE = (8, 0)
"""Compute capability of the first GPUs that compute in bf16."""
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""Under these, says NVIDIA, cuBLAS rounds alike at every call; it reads the variable at the first product."""
_TIMED, _TIMES, _CLEARLY = 64, 6, 0.97
"""Images of a batch that times a layout; number of batches, of which the fastest counts; and the ratio of times from
which a difference is too small to count.
"""


def is_half(precision: str) -> bool:
    """Whether a forward pass in this precision computes in 16 bits."""
    return precision in _AUTOCAST


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Return a context for forward passes in this precision, whatever the caller's own autocast is."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device_type, dtype, enabled=dtype is not None)


def arithmetic(
    device_type: str, precision: str, *, benchmark: bool = False, deterministic: bool = False
) -> AbstractContextManager[None]:
    """Return a context in which a GPU computes float32 as this precision says; on other devices it does nothing.

    Args:
        precision: "fp32" computes without TF32. With the others what remains in float32 may use it.
        benchmark: cuDNN picks its kernels by timing, so that a repeated run may round otherwise. It takes
            seconds.
        deterministic: only kernels that round alike at every run, and none by timing; torch raises RuntimeError where
            it has none. The process must have called `require_deterministic` before its first product.
    """
    if device_type != "cuda":
        return nullcontext()
    return gpu_arithmetic(tf32=precision != "fp32", benchmark=benchmark, deterministic=deterministic)


def faster_channels_last(network: nn.Module, image_size: int, precision: str, device: torch.device) -> bool:
    """Whether a network on a GPU answers faster if images lie channels last in memory, by timing both layouts.

    Neither is best for all networks (docs/gpu.md). True where the difference is small, or where the memory does not
    hold the batch that is timed. It takes seconds, as cuDNN times its kernels.

    Args:
        image_size: side of the square images, pixels. device: where the network is, in eval mode; it is left in either
            layout.
    """
    seconds, size_BCHW = {}, (_TIMED, 3, image_size, image_size)
    here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    for layout in (torch.channels_last, torch.contiguous_format):
        network.to(memory_format=layout)
        kernels = arithmetic(device.type, precision, benchmark=True)
        try:
            # A generator of its own: that of the caller's loop stays where it is.
            image_BCHW = torch.rand(size_BCHW, generator=torch.Generator(device), device=device)
            image_BCHW = image_BCHW.contiguous(memory_format=layout)
            with here, torch.inference_mode(), kernels, autocast(device.type, precision):
                seconds[layout] = min(_seconds(network, image_BCHW) for _ in range(_TIMES))
        except RuntimeError as error:
            if not is_full_gpu(error):
                raise
            return True
    return seconds[torch.contiguous_format] > _CLEARLY * seconds[torch.channels_last]


def _seconds(network: nn.Module, image_BCHW: torch.Tensor) -> float:
    """Time one forward pass; the first of all picks its kernels."""
    _wait(image_BCHW.device)
    began = time.perf_counter()
    network(image_BCHW)
    _wait(image_BCHW.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def require_deterministic() -> None:
    """Let cuBLAS round alike at every call of this process; ValueError where its variable says otherwise."""
    value = os.environ.setdefault(_WORKSPACE, _WORKSPACES[0])
    if value not in _WORKSPACES:
        raise ValueError(f"--deterministic: expected {_WORKSPACE} unset or {' or '.join(_WORKSPACES)}, got {value!r}")


def default_precision(device: str, world: World = ALONE) -> tuple[str, str]:
    """Return the precision of a device ("cpu", "cuda" or "cuda:N") when nobody chose one, and why.

    bf16 where the GPU computes in it (Ampere and later), fp16 on older ones, fp32 on a CPU. Ranks on one machine have
    one precision: fp16 where the GPU of any of them is an older one.
    """
    if device == "cpu":
        return "fp32", "a CPU"
    with torch.cuda.device(device):  # torch asks the current one
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return "fp16", "this GPU has no bf16"
    # By their numbers: to make another rank's GPU the current one takes memory there.
    num_gpus = min(world.local_size, torch.cuda.device_count())
    if any(torch.cuda.get_device_capability(number) < _AMPERE for number in range(num_gpus) if num_gpus > 1):
        return "fp16", "a GPU of another rank has no bf16"
    return "bf16", "this GPU computes in it"


@contextmanager
def gpu_arithmetic(*, tf32: bool, benchmark: bool = True, deterministic: bool = False) -> Iterator[None]:
    """Inside the block convolutions and products of float32 use TF32 or not; arguments as of `arithmetic`.

    torch has two interfaces for TF32 (`allow_tf32`, and from 2.9 `fp32_precision`), and raises where the older one is
    asked and they differ, as torch.compile does. So both are set, and what the process had is restored in both.
    """
    with ExitStack() as stack:
        if deterministic:
            _choose_deterministic(stack)
        elif benchmark:
            _set(stack, _BACKENDS.cudnn, "benchmark", True)
        _keep_tf32(stack)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        _BACKENDS.cudnn.allow_tf32 = tf32
        for owner in _newer_interface():
            owner.fp32_precision = "tf32" if tf32 else "ieee"
        yield


def _newer_interface() -> list[Any]:
    """What has an `fp32_precision` of its own; nothing before torch 2.9."""
    cudnn = (getattr(_BACKENDS.cudnn, name, None) for name in ("conv", "rnn"))
    owners = (_BACKENDS.cuda.matmul, getattr(_BACKENDS.mkldnn, "matmul", None), *cudnn)
    return [owner for owner in owners if hasattr(owner, "fp32_precision")]


def _keep_tf32(stack: ExitStack) -> None:
    """Restore both interfaces when the stack is closed: the older one first, as it changes the newer one too."""
    newer = _newer_interface()
    for owner in newer:
        stack.callback(setattr, owner, "fp32_precision", owner.fp32_precision)
    # What raises was set by the newer one alone: then the older one has its default, or the opposite.
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = "highest"
    try:
        convolutions = _BACKENDS.cudnn.allow_tf32
    except RuntimeError:
        convolutions = any(owner.fp32_precision != "tf32" for owner in newer[-2:])
    stack.callback(setattr, _BACKENDS.cudnn, "allow_tf32", convolutions)
    stack.callback(torch.set_float32_matmul_precision, products)


def _choose_deterministic(stack: ExitStack) -> None:
    """Until the stack is closed torch takes kernels that round alike at every run, and raises where it has none."""
    _set(stack, _BACKENDS.cudnn, "benchmark", False)
    _set(stack, _BACKENDS.cudnn, "deterministic", True)
    # Filling what nobody reads costs a launch for every tensor.
    _set(stack, torch.utils.deterministic, "fill_uninitialized_memory", False)
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=warn)
    torch.use_deterministic_algorithms(True)


def _set(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack is closed."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
