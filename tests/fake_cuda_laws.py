"""A forward on CUDA is in the types of its precision: fake tensors know types and shapes, and compute nothing."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student.learn.network import heads, make_student
from student.recipe.student_recipe import StudentRecipe
from teacher_cache.network.arithmetic import autocast
from teacher_cache.network.classifier import run_in_float32
from teacher_cache.network.timm_network import timm_network

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution", "aten::_cudnn_attention")
TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Types(TorchDispatchMode):
    """Counts products by the type in which they are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in PRODUCTS:
            self.products[next(leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def autocast_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU torch switches the autocast of CUDA off, though types are decided before any kernel runs."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> Counter[torch.dtype]:
    """The calls of the fused attention, by type: which kernel answers, only a GPU decides."""
    seen: Counter[torch.dtype] = Counter()

    def fused(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen[query.dtype] += 1
        return torch.empty_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused)
    return seen


def on_cuda(model: nn.Module) -> None:
    """Replace the tensors of a model by fake ones of CUDA."""
    for module in model.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(param.shape, device="cuda")))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))


def forward(network: Any, size: int, precision: str) -> tuple[Any, Types]:
    seen = Types()
    with autocast("cuda", precision), seen:
        return network(torch.empty(2, 3, size, size, device="cuda")), seen


@pytest.mark.parametrize("precision", TYPES)
def test_a_student_computes_products_and_fused_attention_in_its_precision(
    precision: str, attention: Counter[torch.dtype]
) -> None:
    recipe = StudentRecipe(model="deit_tiny_distilled_patch16_224", distill="hard")
    model = make_student(recipe, 10, seed=0)
    attention.clear()  # it was tried on the meta device
    with FakeTensorMode():
        on_cuda(model)
        answered, seen = forward(lambda x_BCHW: heads(model, x_BCHW), 224, precision)
    assert answered.cls_BC.dtype == TYPES[precision]
    assert set(seen.products) == {TYPES[precision]} and seen.products.total() >= 12 * 4
    assert attention == {TYPES[precision]: 12}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_teacher_answers_in_float32_from_a_body_in_half_precision(precision: str) -> None:
    built = timm_network("regnety_002", {}, None, num_classes=10, input_size=64, pretrained=False)
    run_in_float32(built.network, built.head)
    with FakeTensorMode():
        on_cuda(built.network)
        answered, seen = forward(built.network.eval(), 64, precision)
    assert answered.dtype == torch.float32
    assert seen.products.pop(torch.float32) == 1, "the classifier alone"
    assert set(seen.products) == {TYPES[precision]}
