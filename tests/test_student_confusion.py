"""What an evaluation says of each class: counts that add up, the worst answers first, a page that holds them."""

from typing import Any

import numpy as np
import pytest
import torch

from shards.views.blocks import ViewBatch
from student.learn.confusion import Confusion
from student.learn.network import Heads
from student.report.evaluation_page import Evaluated, evaluation_page

NAMES = ("cat", "dog", "<b>église</b>")


def batch(num: int) -> ViewBatch:
    """Pictures without meaning, at known places."""
    zeros = np.zeros(num, np.int32)
    return ViewBatch(
        shard_B=zeros,
        row_B=np.arange(num, dtype=np.int32),
        view_B=zeros,
        label_B=np.zeros(num, np.int64),
        view_BHWC=np.zeros((num, 8, 8, 3), np.uint8),
        pixel_digest_B=zeros.astype(np.uint32),
        partner_B=zeros,
        lam_B=np.ones(num, np.float32),
        box_B4=np.zeros((num, 4), np.int16),
    )


def counted() -> Confusion:
    """Six images: one cat taken for a dog with 99 %, one dog for a cat with less, one answer that is not finite."""
    confusion = Confusion(NAMES)
    logit_BC = torch.tensor([[9.0, 0, 0], [0, 5, 0], [0, 9, 0], [2, 0, 0], [0, 0, 4], [torch.nan, 0, 0]])
    confusion.add(batch(6), Heads(logit_BC, None), np.array([0, 0, 1, 1, 2, 2]))
    return confusion


def test_every_image_is_counted_once() -> None:
    """Rows add up to the images of a class, but for answers that are not finite, which are never right."""
    confusion = counted()
    assert confusion.count_CC.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert confusion.total_C.tolist() == [2, 2, 2]


def test_the_worst_answers_are_wrong_and_the_most_certain_first() -> None:
    """A right answer is no worst one, however certain."""
    assert [(w.row, w.label, w.named) for w in counted().worst] == [(1, 0, 1), (3, 1, 0)]


def test_the_worst_classes_come_first_with_what_they_are_taken_for() -> None:
    """89 % of all can hide a class with none right."""
    confusion = Confusion(NAMES)
    confusion.add(batch(3), Heads(torch.tensor([[9.0, 0, 0], [9, 0, 0], [9, 0, 0]]), None), np.array([0, 0, 1]))
    first, second = confusion.lines()
    assert first.split() == ["dog", "0", "of", "1", "0", "%", "1", "taken", "for", "cat"] and second.startswith("  cat")


class Group:
    """Ranks that have all counted: what their collectives give."""

    def __init__(self, parts: list[Confusion]) -> None:
        self.parts = [(part.count_CC.copy(), part.total_C.copy(), part.worst) for part in parts]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(sum(part[0] if values.ndim == 2 else part[1] for part in self.parts))

    def gathered(self, value: list[Any]) -> list[list[Any]]:
        return [part[2] for part in self.parts]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_what_ranks_have_counted_together_is_what_one_would(ranks: int) -> None:
    """Also of equal certainties, of which only some are kept: those that come first in the shards."""
    rng = np.random.default_rng(0)
    batches = []
    for shard in range(20):
        logit_BC = torch.from_numpy(rng.integers(0, 3, (6, 3)).astype(np.float32))
        batches.append((batch(6)._replace(shard_B=np.full(6, shard)), Heads(logit_BC, None), rng.integers(0, 3, 6)))
    alone, parts = Confusion(NAMES), [Confusion(NAMES) for _ in range(ranks)]
    for number, seen in enumerate(batches):
        alone.add(*seen)
        parts[number % ranks].add(*seen)
    group = Group(parts)
    for part in parts:
        part.gather(group)  # type: ignore[arg-type]
        assert np.array_equal(part.count_CC, alone.count_CC) and np.array_equal(part.total_C, alone.total_C)
        assert [wrong[:5] for wrong in part.worst] == [wrong[:5] for wrong in alone.worst]


def test_the_page_escapes_names_and_holds_the_pictures() -> None:
    """Names come from folders."""
    found = Evaluated(weights="w", shards="s", num_samples=6, top1=50.0, majority=33.3, confusion=counted())
    html = evaluation_page(found, lambda shard, row: f"key{row}")
    assert "<b>église" not in html and "&lt;b&gt;église" in html
    assert html.count("data:image/jpeg;base64,") == 2 and "key1: is cat, named dog (99 %)" in html
