"""With --compile there is one graph for training and one for evaluation, whatever the sizes of batches.

Graphs are made by the backend "aot_eager", which traces as the real one does and needs no C++ compiler.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from shards.world import World
from student.feed.batch import Labels
from student.learn.evaluation import answers_of
from student.learn.network import heads
from student.learn.process_group import ProcessGroup, unwrapped
from student.learn.trainer import Trainer
from student.recipe.settings import TrainSettings
from teacher_cache.network.teacher import Teacher
from tests.student_tiny import BATCH, CLASSES, SIZE, linear_teacher, student_recipe, views


@pytest.fixture(autouse=True)
def aot_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def two_ranks(tmp_path: Path) -> Iterator[ProcessGroup]:
    """The first of two ranks, as far as its students know: they are wrapped, and nobody has to be waited for."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield ProcessGroup(World(0, 2), torch.device("cpu"))
    dist.destroy_process_group()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=torch.channels_last)


def trained(group: ProcessGroup, *, compile: bool, accumulate: int = 1) -> Trainer:
    """A student after three steps."""
    settings = TrainSettings(compile=compile, accumulate=accumulate)
    recipe = student_recipe(distill="none", ema_decay=0.9)
    student = Trainer(recipe, settings, num_classes=CLASSES, steps_per_epoch=4, group=group)
    labels = Labels.of(torch.arange(BATCH) % CLASSES)
    for step in range(3):
        for micro in range(accumulate):
            student.feed(images(BATCH), labels, None, step=step, micro=micro)
    return student


def test_a_compiled_student_is_one_graph_with_the_numbers_of_a_plain_one() -> None:
    group = ProcessGroup(World(), torch.device("cpu"))
    plain, compiled = trained(group, compile=False), trained(group, compile=True)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)
    for a, b in zip(plain.core.parameters(), compiled.core.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_among_ranks_the_network_is_compiled_and_then_wrapped(two_ranks: ProcessGroup, accumulate: int) -> None:
    """Traced once; that torch cuts the graph at the buckets of gradients afterwards, these counters do not see."""
    student = trained(two_ranks, compile=True, accumulate=accumulate)
    assert isinstance(student.model, DistributedDataParallel) and hasattr(student.model.module, "_orig_mod")
    assert unwrapped(student.model) is student.core
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)


def test_an_evaluation_is_one_graph_for_weights_and_average_and_for_the_last_batch() -> None:
    student = trained(ProcessGroup(World(), torch.device("cpu")), compile=True)
    counters.clear()
    assert student.ema is not None
    answers = answers_of(compiled=True, batch_size=8)
    for network in (student.core, student.ema.model):
        network.eval()
        for count in (8, 8, 3, 5, 1):
            with torch.no_grad():
                expected, answered = heads(network, images(count)), answers(network, images(count))
            assert answered.dist_BC is not None and len(answered.dist_BC) == count
            torch.testing.assert_close(answered.average(), expected.average(), rtol=1e-4, atol=1e-5)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)


def test_a_teacher_that_was_calibrated_at_another_batch_keeps_a_static_graph() -> None:
    plain = linear_teacher(views())
    teacher = Teacher(plain._network, plain.spec, device=torch.device("cpu"), compiled=True)  # type: ignore[arg-type]
    for count in (4, 16, 16):
        assert torch.allclose(teacher.logits(images(count)), plain.logits(images(count)), atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2, "one for each size, none that fits all and is slower"
