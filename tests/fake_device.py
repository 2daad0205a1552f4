"""A device whose memory the host cannot reach: it computes on the CPU, refuses mixed devices, and counts copies.

Used as a context: inside `fake_gpu()` tensors on `DEVICE` are wrappers around CPU tensors. An operation on tensors of
the host and of the device together raises, as on a GPU. `Traffic` counts what makes the host wait on a GPU: values that
are read from the device, and copies to it that block. Streams, page-locked memory and kernels' times are not seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND = "fakegpu"
_setup_privateuseone_for_python_backend(KIND)
getattr(torch, KIND).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
DEVICE = torch.device(KIND, 0)
_COPIES = ("aten::copy_", "aten::_to_copy")


@dataclass
class Traffic:
    """What went between host and device: reads of values, copies that block, copies that do not, with their shapes."""

    reads: list[str] = field(default_factory=list)
    blocking: list[str] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Forget what was counted so far."""
        for seen in (self.reads, self.blocking, self.queued):
            seen.clear()


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `raw` is the CPU tensor with its values."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor, requires_grad: bool = False) -> "DeviceTensor":
        """A wrapper of the same shape and type."""
        how = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, **how, layout=raw.layout, device=DEVICE, requires_grad=requires_grad
        )

    def __init__(self, raw: torch.Tensor, requires_grad: bool = False) -> None:
        """Keep the values."""
        self.raw = raw

    def __repr__(self) -> str:
        """Shape and type: values are out of reach."""
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """The values, which the host waits for."""
        _traffic.reads.append(f"tolist {tuple(self.shape)}")
        return self.raw.detach().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute outside of `fake_gpu`, as backward passes on other threads do."""
        return _compute(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees every operation, also those that have no tensor yet (`torch.zeros(…, device=…)`)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


_traffic = Traffic()


@contextmanager
def fake_gpu() -> Iterator[Traffic]:
    """Let tensors live on `DEVICE` inside the block; gives what is counted meanwhile."""
    _traffic.clear()
    with mock.patch.object(torch, "tensor", _tensor), _Mode():
        yield _traffic


_torch_tensor = torch.tensor


def _tensor(data: Any, *, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor`, which copies a list to a device at once and waits for it."""
    made = _torch_tensor(data, **kwargs)
    if device is None or torch.device(device).type != KIND:
        return made if device is None else made.to(device)
    _traffic.blocking.append(f"torch.tensor of a list {tuple(made.shape)}")
    return DeviceTensor(made)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, DeviceTensor) else value


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU values, and count what it moves."""
    name = func._schema.name
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    own = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    others = [tuple(tensor.shape) for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim()]
    target = kwargs.get("device")
    onto_device = target is not None and torch.device(target).type == KIND
    if own and others and name not in _COPIES:
        raise RuntimeError(f"{name}: expected all tensors on one device, got some on the host: {others}")
    if own and name == "aten::_local_scalar_dense":
        _traffic.reads.append("item")
    moved = {key: torch.device("cpu") if key == "device" and onto_device else value for key, value in kwargs.items()}
    result = func(*tree_map(_raw, args), **tree_map(_raw, moved))
    if name == "aten::_to_copy" and target is not None and own and not onto_device:
        _traffic.reads.append(f"copy to the host {tuple(own[0].shape)}")
        return result
    if name == "aten::_to_copy" and onto_device and not own:
        _count_copy(args[0], kwargs.get("non_blocking", False))
    if name == "aten::copy_" and _count_copy_into(args, kwargs):
        return args[0]
    return _wrapped(func, own, result) if own or onto_device else result


def _count_copy(source: torch.Tensor, queued: bool) -> None:
    (_traffic.queued if queued else _traffic.blocking).append(f"{tuple(source.shape)} {source.dtype}")


def _count_copy_into(args: Any, kwargs: Any) -> bool:
    """Count a copy between the two; whether it was one."""
    target, source = args[0], args[1]
    into, out_of = isinstance(target, DeviceTensor), isinstance(source, DeviceTensor)
    if into and not out_of and source.dim():
        _count_copy(source, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    if out_of and not into:
        _traffic.reads.append(f"copy to the host {tuple(source.shape)}")
    return into or out_of


def _wrapped(func: Any, own: list[DeviceTensor], result: Any) -> Any:
    """The results as tensors of the device; what was changed in place is the tensor that it was."""
    writes = any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments
    )
    same = {id(tensor.raw): tensor for tensor in own} if writes else {}

    def wrap(value: Any) -> Any:
        return same.get(id(value), DeviceTensor(value)) if isinstance(value, torch.Tensor) else value

    return tree_map(wrap, result)
