"""How a GPU computes float32: with or without TF32, and with the fastest convolution kernels."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_BACKENDS = torch.backends


@contextmanager
def gpu_arithmetic(*, tf32: bool) -> Iterator[None]:
    """Inside the block convolutions and products of float32 use TF32 or not, and cuDNN picks kernels by timing.

    torch has two interfaces for TF32 (`allow_tf32`, and from 2.9 `fp32_precision`), and raises where a process has
    used the second and then asks the first. So the second is used where it exists.
    """
    matmul, conv = _BACKENDS.cuda.matmul, getattr(_BACKENDS.cudnn, "conv", None)
    with ExitStack() as stack:
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
