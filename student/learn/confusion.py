"""Count which class a student names for each image, and keep the answers that are most wrong.

C classes of the student, B samples of a batch; H, W of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shards.text.figures import count
from shards.views.blocks import ViewBatch
from student.learn.network import Heads
from student.learn.process_group import ProcessGroup

_MOST_KEPT = 24
_MOST_NAMED = 20


class WrongAnswer(NamedTuple):
    """An image that was taken for another class, with the probability of that class."""

    shard: int
    row: int
    label: int
    named: int
    probability: float
    view_HWC: NDArray[np.uint8]


def _by_certainty(wrong: WrongAnswer) -> tuple[float, int, int]:
    return -wrong.probability, wrong.shard, wrong.row


def _most_certain(answers: Sequence[WrongAnswer]) -> list[WrongAnswer]:
    return sorted(answers, key=_by_certainty)[:_MOST_KEPT]


@dataclass(slots=True)
class Confusion:
    """What the answers of an evaluation were.

    Attributes:
        names: of the student's classes, in order.
        count_CC: images by label (rows) and named class (columns), int64; answers that are not finite are in no column.
        total_C: images of each label.
        worst: the wrong answers of which the student was most certain, those first; of equals the first in the shards.
    """

    names: Sequence[str]
    count_CC: NDArray[np.int64] = field(init=False)
    total_C: NDArray[np.int64] = field(init=False)
    worst: list[WrongAnswer] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        num_classes = len(self.names)
        self.count_CC, self.total_C = np.zeros((num_classes, num_classes), np.int64), np.zeros(num_classes, np.int64)

    def add(self, batch: ViewBatch, answer: Heads, label_B: NDArray[np.int64]) -> None:
        """Count a batch; labels are numbers of the student's classes. Waits for the device."""
        prob_BC = answer.average().softmax(-1).cpu().numpy()
        finite_B = np.isfinite(prob_BC).all(-1)
        named_B = np.where(finite_B, np.nan_to_num(prob_BC).argmax(-1), -1)
        np.add.at(self.total_C, label_B, 1)
        np.add.at(self.count_CC, (label_B[finite_B], named_B[finite_B]), 1)
        for at in np.flatnonzero(finite_B & (named_B != label_B)):
            probability = float(prob_BC[at, named_B[at]])
            where = int(batch.shard_B[at]), int(batch.row_B[at]), int(label_B[at]), int(named_B[at])
            wrong = WrongAnswer(*where, probability, batch.view_BHWC[at])
            if len(self.worst) < _MOST_KEPT or _by_certainty(wrong) < _by_certainty(self.worst[-1]):
                self.worst = _most_certain([*self.worst, wrong._replace(view_HWC=wrong.view_HWC.copy())])

    def gather(self, group: ProcessGroup) -> None:
        """Count what all ranks have seen: afterwards every one holds what a single process would."""
        self.count_CC, self.total_C = (group.sum(torch.from_numpy(n)).numpy() for n in (self.count_CC, self.total_C))
        self.worst = _most_certain([wrong for part in group.gathered(self.worst) for wrong in part])

    @property
    def present(self) -> NDArray[np.int64]:
        """The classes that have images, by share of right answers, the lowest first."""
        present = np.flatnonzero(self.total_C)
        share = self.count_CC[present, present] / self.total_C[present]
        ordered: NDArray[np.int64] = present[np.argsort(share, kind="stable")]
        return ordered

    def lines(self) -> list[str]:
        """Right answers of up to 20 classes, the worst first, with the class that each is mostly taken for."""
        shown = self.present[:_MOST_NAMED]
        width = max((len(self.names[c]) for c in shown), default=0)
        lines = []
        for c in shown:
            right, total = int(self.count_CC[c, c]), int(self.total_C[c])
            others = self.count_CC[c].copy()
            others[c] = 0
            taken = f"   {others.max()} taken for {self.names[int(others.argmax())]}" if others.max() else ""
            lines.append(f"  {self.names[c]:{width}}  {right:>5} of {total:<5} {100 * right / total:4.0f} %{taken}")
        rest = len(self.present) - len(shown)
        return [*lines, *([f"  … {count(rest, 'class')} that are better"] if rest else [])]
