"""NCCL in a world of one: join, sum, wrap a student, compute gradients.
    python -m benchmarks.gpu.nccl DEVICE BATCH

On a CPU it is gloo. The benchmark starts it in a process of its own: a group that fails to join would end the others.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.bench import free_port
from student.learn.network import make_student
from student.learn.process_group import BACKENDS
from student.recipe.papers import recipe_for


def main(device_type: str, batch: int) -> None:
    """Print the sum of a tensor and the norm of the gradients of one step."""
    device = torch.device(device_type, 0) if device_type == "cuda" else torch.device(device_type)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    dist.init_process_group(BACKENDS[device_type], rank=0, world_size=1)
    total = torch.ones(4, device=device)
    dist.all_reduce(total)
    recipe = recipe_for("deit_tiny_distilled_patch16_224", with_cache=True)
    model = make_student(recipe, 10, seed=0).to(device)
    wrapped = DistributedDataParallel(model, device_ids=[0] if device_type == "cuda" else None)
    answers = wrapped(torch.randn(batch, 3, recipe.image_size, recipe.image_size, device=device))
    answers = answers if isinstance(answers, tuple) else (answers,)
    sum(answer.float().square().mean() for answer in answers).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    print(f"sum {total.sum().item():g}, gradient norm {norm.item():.6g}, {dist.get_backend()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
