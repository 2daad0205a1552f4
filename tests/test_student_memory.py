"""What a pass needs of memory, on the device and on the host, and what a machine that has less is told."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch

from shards.views.rendering import HELD
from shards.views.view_recipe import recipe_named
from student.learn.network import heads, make_student
from student.recipe.settings import Precision
from student.recipe.student_recipe import StudentRecipe
from student.sweep.memory import FreeMemory, MemoryNeed, free_memory, group_free_bytes, memory_need, require_memory
from tests.student_tiny import CLASSES, student_recipe

GIB = 2**30
TINY, SMALL, BASE = (f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base"))


def test_the_state_of_a_student_is_counted_to_the_byte() -> None:
    """Weights, gradients, two moments and the average, against the tensors of a real one."""
    recipe = student_recipe()
    model = make_student(recipe, CLASSES, seed=0)
    params = sum(param.numel() * param.element_size() for param in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    need = memory_need(recipe, num_classes=CLASSES, num_students=3)
    assert need.state == 5 * params + buffers
    without = memory_need(replace(recipe, ema_decay=0.0), num_classes=CLASSES, num_students=3)
    assert without.state == 4 * params + buffers


def test_activations_are_what_autograd_keeps_of_a_real_step() -> None:
    """Measured without computing on the meta device; here against real tensors, beyond what a batch shares."""
    recipe = student_recipe(batch_size=48, drop_path=0.0)
    model = make_student(recipe, CLASSES, seed=0)
    own = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = heads(model, torch.randn(48, 3, 16, 16))
        assert answer.dist_BC is not None
        total = torch.log_softmax(answer.cls_BC, -1).sum() + torch.log_softmax(answer.dist_BC, -1).sum()
    assert total.requires_grad
    real = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    need = memory_need(recipe, num_classes=CLASSES, num_students=1)
    assert need.activation == pytest.approx(real, rel=0.1)


def test_activations_count_once_and_states_add_up() -> None:
    one, four = (memory_need(student_recipe(), num_classes=CLASSES, num_students=n) for n in (1, 4))
    assert four.total - one.total == 3 * one.state
    halves = memory_need(student_recipe(), num_classes=CLASSES, num_students=1, parts=2)
    assert halves.activation * 2 == one.activation and halves.state == one.state
    assert halves.gradient * 2 == one.gradient and 0 < one.gradient < one.total - one.state - one.activation


def test_half_precision_keeps_half_of_the_large_tensors_and_attention_keeps_no_matrix() -> None:
    """DeiT-Ti at 224 px: with whole attention matrices in float32 an image takes 34 MiB."""
    recipe, mib = StudentRecipe(model=TINY, batch_size=1), {}
    for precision in get_args(Precision):
        need = memory_need(recipe, num_classes=1000, num_students=1, precision=precision)
        mib[precision] = need.activation / 2**20
        largest = 197 * 4 * 192 * (4 if precision in ("fp32", "tf32") else 2)  # of the hidden layer of an MLP
        assert 4 * largest <= need.gradient <= 4.1 * largest
    assert mib["fp32"] == mib["tf32"] < 30
    assert mib["bf16"] == mib["fp16"] < 0.6 * mib["fp32"]


def test_batches_ahead_are_counted_on_the_host_alone() -> None:
    few, many = (memory_need(student_recipe(), num_classes=CLASSES, num_students=1, workers=n) for n in (1, 127))
    pixels = 3 * student_recipe().image_size ** 2
    in_ring = [need.ahead / (student_recipe().batch_size * pixels) for need in (few, many)]
    assert in_ring == [2 * 1 + HELD, 2 * 127 + HELD] and many.total == few.total


def need_of(**parts: int) -> MemoryNeed:
    """A need in MiB."""
    return MemoryNeed(**{name: n if name in ("num_students", "workers") else n * 2**20 for name, n in parts.items()})


@pytest.mark.parametrize(
    ("need", "free", "message"),
    [
        (
            need_of(num_students=9, state=100, activation=400, data=0),
            FreeMemory("cpu", None, 2**30),
            "--together 5 fits",
        ),
        (
            need_of(num_students=9, state=100, activation=400, data=0),
            FreeMemory("cuda:0", 2**30, 0),
            "--together 5 fits",
        ),
        (
            need_of(num_students=2, state=100, activation=3000, data=0),
            FreeMemory("cuda:0", 2**30, 0),
            "--accumulate 8 does",
        ),
        (
            need_of(num_students=99, state=100, activation=3000, data=0),
            FreeMemory("cuda:0", 2**30, 0),
            "--together 1 --accumulate 4 does",
        ),
        (
            need_of(num_students=1, state=5000, activation=3000, data=0),
            FreeMemory("cuda:0", 2**30, 0),
            "not even one student fits, whatever the batch",
        ),
        (
            need_of(num_students=1, state=1, activation=1, data=1, ahead=4000, workers=40),
            FreeMemory("cuda:0", 2**34, 2**30),
            r"--workers 40: needs 3\.91 GiB batches ahead on this machine.*--workers 8 fits",
        ),
    ],
)
def test_a_pass_that_does_not_fit_is_told_what_does(need: MemoryNeed, free: FreeMemory, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        require_memory(need, free)
    assert "--skip-memory-check" in str(caught.value) and len(str(caught.value)) <= 600
    (warning,) = require_memory(need, free, anyway=True)
    assert warning.endswith("it is tried")


def test_up_to_a_third_too_much_is_a_warning() -> None:
    need = need_of(num_students=1, state=100, activation=900, data=0)
    free = [FreeMemory("cuda:0", round(need.total / 0.9 / ratio), GIB) for ratio in (0.99, 1.25)]
    assert [len(require_memory(need, memory)) for memory in free] == [0, 1]


# --- machines: README's lines at the precision that they take there ---

MACHINES = {"H100-80": 79.2, "A100-40": 39.4, "RTX 4090": 23.5}
"""GiB that a GPU with nothing on it says are free."""
HOSTS = {12: 64, 128: 512, 192: 768}
"""GiB of machines with so many CPUs."""


@cache
def readme_line(model: str, cpus: int) -> MemoryNeed:
    recipe = StudentRecipe(model=model, batch_size=1024)
    return memory_need(recipe, num_classes=1000, num_students=4, precision="bf16", workers=cpus - 1)


@pytest.mark.parametrize("cpus", HOSTS)
@pytest.mark.parametrize(
    ("gpu", "model", "told"),
    [
        ("H100-80", TINY, ""),
        ("H100-80", SMALL, ""),
        ("H100-80", BASE, "may"),
        ("A100-40", TINY, ""),
        ("A100-40", SMALL, "may"),
        ("A100-40", BASE, "--accumulate 4"),
        ("RTX 4090", TINY, ""),
        ("RTX 4090", SMALL, "--accumulate 2"),
        ("RTX 4090", BASE, "--accumulate 8"),
    ],
)
def test_four_students_at_1024_images_start_where_they_fit(gpu: str, model: str, told: str, cpus: int) -> None:
    """DeiT-Ti starts everywhere; what cannot fit is told the accumulation that does; CPUs never count as GPU memory."""
    free = FreeMemory("cuda:0", int(MACHINES[gpu] * GIB), HOSTS[cpus] * GIB)
    need = readme_line(model, cpus)
    if told in ("", "may"):
        assert len(require_memory(need, free)) == (told == "may")
        return
    with pytest.raises(ValueError, match=f"{told} does"):
        require_memory(need, free)


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free"),
    [
        ("max", 5, {}, 2**63 - 1),
        ("100", 40, {}, 60),
        ("100", 99, {"anon": 9, "file": 90, "active_file": 0, "inactive_file": 90}, 91),
        ("100", 99, {"anon": 9, "file": 90, "active_file": 60, "inactive_file": 30}, 31),
        ("100", 120, {"inactive_file": 5}, 0),
        ("100", 20, {"inactive_file": 30}, 100),
    ],
)
def test_the_page_cache_of_a_container_is_free_memory(
    tmp_path: Path, limit: str, used: int, stat: dict[str, int], free: int
) -> None:
    """A run that has read its shards once fills the page cache; what the kernel gives back at once is not used."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    if stat:
        (tmp_path / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))
    assert group_free_bytes(tmp_path) == free


def test_free_memory_is_a_plausible_number_and_shared_among_ranks() -> None:
    alone, shared = (free_memory(torch.device("cpu"), sharing=n) for n in (1, 8))
    assert alone.device is None and 2**20 < alone.host < 2**50
    assert shared.host < alone.host / 4


def test_a_huge_student_is_sized_without_allocating_it() -> None:
    recipe = replace(student_recipe(), model="deit3_huge_patch14_224", image_size=224, batch_size=2048)
    recipe = replace(recipe, view=recipe_named("deit3").name)
    need = memory_need(recipe, num_classes=1000, num_students=1)
    assert 12e9 < need.state < 13e9 and need.activation > 1e12


def test_gradient_checkpointing_keeps_the_input_of_each_block_alone() -> None:
    recipe = StudentRecipe(model=TINY, image_size=64)
    plain, less = (memory_need(recipe, num_classes=10, num_students=1, grad_checkpointing=on) for on in (False, True))
    assert less.state == plain.state and less.activation < plain.activation / 5
