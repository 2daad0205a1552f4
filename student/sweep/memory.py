"""Say before the start whether N students fit: their states are counted, one step's activations are measured unrun.

On the device: each student keeps weights, gradients, two moments of the optimiser, and the weight average if it has
one; these add up over students. Activations live only while one student takes its step, so they count once. They are
measured by running the forward pass on fake tensors, which know shapes and compute nothing, in the run's precision and
with fused attention, and summing what autograd would keep; beside them the backward pass has a few gradients as large
as the largest. On the host: the batches that workers have rendered ahead.

B batch, C classes.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

from shards.names import short
from shards.platforms import HAS_WORKERS
from shards.pool.workers import in_workers
from shards.views.rendering import HELD
from student.learn.network import heads, make_student, set_grad_checkpointing
from student.learn.timm_model import own_errors, require_answer
from student.recipe.settings import Precision
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.arithmetic import autocast
from teacher_cache.network.trial import require_logits

_GROUP = Path("/sys/fs/cgroup")
_FLOAT_BYTES = 4
_PROBE = 2
_HEADROOM = 0.9
"""Share of the free memory that a plan may fill: allocators fragment, and the machine has other work."""
_DOUBT = 1.3
"""Up to this multiple of what may be filled a plan gets a warning: so far the count may be above the truth."""
_GRADIENTS = 4
"""Gradients of activations that live at once. On an H200 DeiT-Ti (batch 256) took 1.05 of the sum without them."""
_NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


class UncountableError(ValueError):
    """A network that looks at numbers in its forward pass, so that fake tensors, which have none, do not pass it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes of a pass of `num_students`.

    Attributes:
        state: of each student; activation: of the one whose turn it is; data: the batch; gradient: of activations in
            its backward pass. All four on the device.
        ahead: rendered batches on the host: the ring of all `workers`.
        precision: of the activations. parts: into how many a batch is cut already.
    """

    num_students: int
    state: int
    activation: int
    data: int
    gradient: int = 0
    ahead: int = 0
    workers: int = 0
    precision: str = "fp32"
    parts: int = 1

    @property
    def total(self) -> int:
        """Bytes on the device at the peak."""
        return self.num_students * self.state + self._of_one_step + self.data

    @property
    def _of_one_step(self) -> int:
        return self.activation + self.gradient

    @property
    def lines(self) -> tuple[str, ...]:
        """The sum on the device in words."""
        return (
            f"{self.num_students} × {_gib(self.state)} weights, gradients and optimiser",
            f"{_gib(self._of_one_step)} activations of one step, {self.precision}",
            f"{_gib(self.data)} of the batch",
        )


class FreeMemory(NamedTuple):
    """Free bytes of a device, named as in messages, and of the machine; `device` None: the device is the machine."""

    where: str
    device: int | None
    host: int


class _Shortage(NamedTuple):
    """A sum that is more than may be filled: what is needed of what is free, and what would fit."""

    words: str
    excess: float


def memory_need(
    recipe: StudentRecipe,
    *,
    num_classes: int,
    num_students: int,
    precision: Precision = "fp32",
    parts: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    grad_checkpointing: bool = False,
) -> MemoryNeed:
    """Count what a pass needs.

    Args:
        precision: of the forward pass.
        parts: processes × accumulation steps that a batch is cut into.
        workers: rendering processes; prefetch: uint8 batches that each of them may be ahead.
        grad_checkpointing: blocks keep their input alone.

    Raises:
        ValueError: a network that does not answer such images. UncountableError: one whose activations are not known.
    """
    # Weights from a file would be loaded onto tensors that hold nothing; shapes are the same without them.
    bare = replace(recipe, finetune=False, init_weights="")
    model = make_student(bare, num_classes, seed=0, device="meta")
    if grad_checkpointing:
        set_grad_checkpointing(model)
    params = sum(param.numel() for param in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    copies = 4 + (1 if recipe.ema_decay > 0 else 0)  # weights, gradients, two moments, average
    batch = -(-recipe.batch_size // parts)
    pixels = 3 * recipe.image_size**2
    # Without a GPU torch's fake tensors register one that is not there, and a process that has it cannot fork others
    # that train: so they live in a process of their own.
    workers_here = 1 if HAS_WORKERS and not torch.cuda.is_available() else 0
    counted = in_workers(lambda _: _kept_by_image(model, recipe, precision, num_classes), [None], workers=workers_here)
    ((kept_by_image, largest_by_image),) = counted
    return MemoryNeed(
        num_students=num_students,
        state=_FLOAT_BYTES * params * copies + buffers,
        activation=batch * kept_by_image,
        gradient=batch * largest_by_image * _GRADIENTS,
        data=batch * pixels * (2 + 3 * _FLOAT_BYTES),  # two uint8 batches, three in float32 while one is prepared
        ahead=batch * pixels * (prefetch * workers + HELD if workers else 1),
        workers=workers,
        precision=precision,
        parts=parts,
    )


def _kept_by_image(model: nn.Module, recipe: StudentRecipe, precision: Precision, num_classes: int) -> tuple[int, int]:
    """Bytes that autograd keeps for each image, and those of the largest tensor; parameters, which are shared, not."""
    try:
        with FakeTensorMode():
            _as_fake(model)
            answered = {"image_size": recipe.image_size, "num_classes": num_classes}
            require_answer(model, recipe.model, **answered, device=torch.device("cpu"))
            smaller, larger = (
                _kept_bytes(model, recipe, precision, num_classes, size) for size in (_PROBE, _PROBE + 1)
            )
    except Exception as error:
        cause = error.__cause__ or error
        if not isinstance(cause, _NEEDS_NUMBERS):
            raise
        raise UncountableError(
            f"model {recipe.model}: the memory of its students cannot be counted, because its forward pass looks at "
            f"numbers ({short(str(cause), 100)}); --skip-memory-check starts them uncounted"
        ) from None
    return sum(larger) - sum(smaller), max(map(operator.sub, larger, smaller))


def require_memory(need: MemoryNeed, free: FreeMemory, *, anyway: bool = False) -> tuple[str, ...]:
    """Return warnings of a pass that may not fit.

    Args:
        anyway: warn where it would raise.

    Raises:
        ValueError: it needs more than 1.3 times what may be filled; says what would fit.
    """
    shortages = list(_shortages(need, free))
    for shortage in shortages:
        if shortage.excess > _DOUBT and not anyway:
            raise ValueError(f"{shortage.words}; or try it with --skip-memory-check")
    return tuple(f"{shortage.words}; it is tried" for shortage in shortages)


def _shortages(need: MemoryNeed, free: FreeMemory) -> Iterator[_Shortage]:
    """The device's, then the host's; on a CPU they are one."""
    ahead = f"{_gib(need.ahead)} batches ahead"
    if free.device is None:
        usable = int(free.host * _HEADROOM)
        if need.total + need.ahead > usable:
            words = _sum(need, need.total + need.ahead, free.where, (*need.lines, ahead), usable, free.host)
            yield _Shortage(f"{words}; {_fitting(need, usable - need.ahead)}", _ratio(need.total + need.ahead, usable))
        return
    usable = int(free.device * _HEADROOM)
    if need.total > usable:
        words = _sum(need, need.total, free.where, need.lines, usable, free.device)
        yield _Shortage(f"{words}; {_fitting(need, usable)}", _ratio(need.total, usable))
    usable = int(free.host * _HEADROOM)
    if need.ahead > usable:
        words = f"--workers {need.workers}: needs {ahead} on this machine, {_gib(usable)} of {_gib(free.host)} free"
        fitting = need.workers * usable // need.ahead - 1  # the ring has some slots whatever the workers
        advice = f"--workers {fitting} fits" if fitting > 0 else "give --workers 1 and --accumulate"
        yield _Shortage(f"{words} may be used; {advice}", _ratio(need.ahead, usable))


def _sum(need: MemoryNeed, total: int, where: str, lines: tuple[str, ...], usable: int, free: int) -> str:
    return (
        f"--together {need.num_students}: needs {_gib(total)} on {where} ({'; '.join(lines)}), "
        f"{_gib(usable)} of {_gib(free)} free may be used"
    )


def _fitting(need: MemoryNeed, usable: int) -> str:
    """Return what to type: fewer students, else smaller micro-batches of them all, else of one."""
    shared = need.total - need.num_students * need.state
    if (students := (usable - shared) // need.state) >= 1:
        return f"--together {students} fits"
    for students in (need.num_students, 1):
        if (room := usable - students * need.state) <= 0:
            continue
        parts = 2
        while shared > parts * room:
            parts *= 2
        fewer = f"--together {students} " if students < need.num_students else ""
        return f"not even one student fits: {fewer}--accumulate {need.parts * parts} does, or lower --batch-size"
    return "not even one student fits, whatever the batch"


def _ratio(need: int, usable: int) -> float:
    return need / usable if usable > 0 else float("inf")


def free_memory(device: torch.device, *, sharing: int) -> FreeMemory:
    """Look up the free memory of a device and of the machine.

    Args:
        sharing: processes that share the machine: each has its part. A GPU is one process's own.
    """
    host = min(int(psutil.virtual_memory().available), group_free_bytes()) // sharing
    return FreeMemory(str(device), int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None, host)


def group_free_bytes(folder: Path = _GROUP) -> int:
    """Return what a container's limit (cgroup v2) leaves, which psutil does not know; no limit is the largest integer.

    Cached pages of files that nobody has used lately (`inactive_file`) are free: the kernel drops them on demand.
    """
    limit, used, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return 2**63 - 1
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    in_use = int(used.read_text()) - int(counts.get("inactive_file", 0))
    return max(0, int(limit.read_text()) - max(0, in_use))


def _as_fake(model: nn.Module) -> None:
    """Replace the tensors of a model by fake ones of the CPU: unlike "meta" it has fused attention and autocast."""
    for module in model.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            fake = torch.empty(param.shape, dtype=param.dtype)
            setattr(module, name, nn.Parameter(fake, requires_grad=param.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _kept_bytes(
    model: nn.Module, recipe: StudentRecipe, precision: Precision, num_classes: int, batch: int
) -> list[int]:
    """Bytes of each tensor that autograd keeps between forward and backward of `batch` images, parameters too."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Views of one tensor share a storage, which is kept alive here so that its address stays its name.
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    x_BCHW = torch.empty(batch, 3, recipe.image_size, recipe.image_size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast("cpu", precision), own_errors(recipe.model, batch):
            answered = heads(model, x_BCHW)
            require_logits(answered.all(), num_classes, batch)
        loss = torch.log_softmax(answered.cls_BC.float(), -1).sum()
        if answered.dist_BC is not None:
            loss = loss + torch.log_softmax(answered.dist_BC.float(), -1).sum()
        assert loss.requires_grad, "a student in training mode"
    return [tensor.untyped_storage().nbytes() for tensor in saved.values()]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
