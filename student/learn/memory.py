"""Whether N students fit before they start: their states counted, one step's activations measured without computing.

A student keeps weights, gradients, two moments of the optimiser, and the weight average if it has one; these add up
over students. Activations live only while one student takes its step, so they count once. They are measured by running
the forward pass on the meta device, which knows shapes and allocates nothing, and summing what autograd would keep.

B batch, C classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor

from student.learn.network import heads, make_student
from student.recipe.student_recipe import StudentRecipe

_GROUP = Path("/sys/fs/cgroup")
_FLOAT_BYTES = 4
_PROBE = 2
_HEADROOM = 0.9
"""Share of the free memory that a plan may fill: allocators fragment, and the machine has other work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes of a pass of `num_students`: `state` of each, `activation` of the one whose turn it is, `data` waiting."""

    num_students: int
    state: int
    activation: int
    data: int

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.num_students * self.state + self.activation + self.data

    @property
    def lines(self) -> tuple[str, ...]:
        """The sum in words."""
        return (
            f"{self.num_students} × {_gib(self.state)} weights, gradients and optimiser",
            f"{_gib(self.activation)} activations of one step, float32",
            f"{_gib(self.data)} batches ahead",
        )


def memory_need(
    recipe: StudentRecipe, *, num_classes: int, num_students: int, parts: int = 1, batches_ahead: int = 2
) -> MemoryNeed:
    """What a pass needs; an upper bound for bf16 and fp16, whose activations are smaller.

    Args:
        parts: processes × accumulation steps that a batch is cut into.
        batches_ahead: rendered batches that wait, uint8 in the loader and float32 on the device.
    """
    # Weights from a file would be loaded onto tensors that hold nothing; shapes are the same without them.
    bare = replace(recipe, finetune=False, init_weights="")
    model = make_student(bare, num_classes, seed=0, device="meta")
    params = sum(param.numel() for param in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    copies = 4 + (1 if recipe.ema_decay > 0 else 0)  # weights, gradients, two moments, average
    batch = -(-recipe.batch_size // parts)
    pixels = 3 * recipe.image_size**2
    # Of two batches the difference: what does not grow with the batch (parameters) is no activation.
    per_image = _kept_bytes(model, recipe, _PROBE + 1) - _kept_bytes(model, recipe, _PROBE)
    return MemoryNeed(
        num_students=num_students,
        state=_FLOAT_BYTES * params * copies + buffers,
        activation=batch * per_image,
        data=batch * pixels * (batches_ahead + 3 * _FLOAT_BYTES),
    )


def require_memory(need: MemoryNeed, free: int, where: str) -> None:
    """ValueError that says how many students fit, unless the pass fits into the free bytes."""
    usable = int(free * _HEADROOM)
    if need.total <= usable:
        return
    shared = need.activation + need.data
    fit = max(0, (usable - shared) // need.state)
    advice = f"--together {fit} fits" if fit else "not even one student fits: lower the batch size or use --accumulate"
    raise ValueError(
        f"--together {need.num_students}: needs {_gib(need.total)} on {where} ({'; '.join(need.lines)}), "
        f"{_gib(usable)} of {_gib(free)} free may be used; {advice}"
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a device: CUDA's own count, or for the CPU the smaller of the machine's and the control group's.

    RuntimeError where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine_free(), group_free_bytes())


def _machine_free() -> int:
    return int(psutil.virtual_memory().available)


def group_free_bytes(folder: Path = _GROUP) -> int:
    """What a container's limit (cgroup v2) leaves, which psutil does not know; no limit is the largest integer.

    Cached pages of files that nobody has used lately (`inactive_file`) are free: the kernel drops them on demand.
    """
    limit, used, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return 2**63 - 1
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    in_use = int(used.read_text()) - int(counts.get("inactive_file", 0))
    return max(0, int(limit.read_text()) - max(0, in_use))


def _kept_bytes(model: torch.nn.Module, recipe: StudentRecipe, batch: int) -> int:
    """Bytes that autograd keeps between forward and backward of `batch` images, parameters among them."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Views of one tensor share a storage, which is kept alive here so that its address stays its name.
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    x_BCHW = torch.empty(batch, 3, recipe.image_size, recipe.image_size, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answered = heads(model, x_BCHW)
        loss = torch.log_softmax(answered.cls_BC.float(), -1).sum()
        if answered.dist_BC is not None:
            loss = loss + torch.log_softmax(answered.dist_BC.float(), -1).sum()
        assert loss.requires_grad, "a student in training mode"
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
