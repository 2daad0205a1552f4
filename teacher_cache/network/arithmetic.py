"""The arithmetic of a forward pass: which precision, and how a GPU computes what stays float32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

_BACKENDS = torch.backends
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_half(precision: str) -> bool:
    """Whether a forward pass in this precision computes in 16 bits."""
    return precision in _AUTOCAST


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Return a context for forward passes in this precision, whatever the caller's own autocast is."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device_type, dtype, enabled=dtype is not None)


def arithmetic(device_type: str, precision: str, *, benchmark: bool = False) -> AbstractContextManager[None]:
    """Return a context in which a GPU computes float32 as this precision says; on other devices it does nothing.

    Args:
        precision: "fp32" computes without TF32. With the others what remains in float32 may use it.
        benchmark: cuDNN picks its kernels by timing, so that a repeated run may round otherwise.
    """
    if device_type != "cuda":
        return nullcontext()
    return gpu_arithmetic(tf32=precision != "fp32", benchmark=benchmark)


def default_precision(device_type: str) -> tuple[str, str]:
    """Return the precision of a device when nobody chose one, and why.

    bf16 where the GPU computes in it (Ampere and later), fp16 on older ones, fp32 on a CPU.
    """
    if device_type != "cuda":
        return "fp32", "a CPU"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU computes in it"
    return "fp16", "this GPU has no bf16"


@contextmanager
def gpu_arithmetic(*, tf32: bool, benchmark: bool = True) -> Iterator[None]:
    """Inside the block convolutions and products of float32 use TF32 or not.

    torch has two interfaces for TF32 (`allow_tf32`, and from 2.9 `fp32_precision`), and raises where a process has
    used the second and then asks the first. So the second is used where it exists.
    """
    matmul, conv = _BACKENDS.cuda.matmul, getattr(_BACKENDS.cudnn, "conv", None)
    with ExitStack() as stack:
        if benchmark:
            _set(stack, _BACKENDS.cudnn, "benchmark", True)
        if hasattr(conv, "fp32_precision") and hasattr(matmul, "fp32_precision"):
            _set(stack, conv, "fp32_precision", "tf32" if tf32 else "ieee")
            _set(stack, matmul, "fp32_precision", "tf32" if tf32 else "ieee")
        else:
            _set(stack, _BACKENDS.cudnn, "allow_tf32", tf32)
            _set(stack, matmul, "allow_tf32", tf32)
        yield


def _set(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack is closed."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
