"""A batch as a training loop receives it: images, what they show, what the teacher says, and where they come from.

Legend: B batch, C classes, H, W image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.index.shard_index import ShardIndex
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe
from student.feed.loader import LoadedBatch
from student.feed.teacher_source import TeacherAnswer, TeacherSource


class Labels(NamedTuple):
    """What the images of a batch show: class (B,) int64, the partner's class, and the weight of the own image.

    An image that is not mixed is its own partner, with weight 1.
    """

    label_B: Tensor
    partner_label_B: Tensor
    lam_B: Tensor

    @classmethod
    def of(cls, label_B: Tensor, partner_B: Tensor | None = None, lam_B: Tensor | None = None) -> "Labels":
        """From class, partner's position in the batch and weight; unmixed without the last two."""
        if partner_B is None or lam_B is None:
            return cls(label_B, label_B, torch.ones(label_B.shape, device=label_B.device))
        return cls(label_B, label_B[partner_B.long()], lam_B.float())

    def soft(self, num_classes: int, smoothing: float = 0.0) -> Tensor:
        """The target distribution, float32 (B, C): both classes by weight, each smoothed (off ε/C, on 1 − ε + ε/C)."""
        on = 1.0 - smoothing
        lam_B1 = self.lam_B[:, None] * on
        target_BC = torch.full((len(self.label_B), num_classes), smoothing / num_classes, device=self.label_B.device)
        target_BC.scatter_add_(1, self.label_B[:, None], lam_B1)
        return target_BC.scatter_add_(1, self.partner_label_B[:, None], on - lam_B1)


class Origin(NamedTuple):
    """Where the samples of a batch come from: shard, row and view, int32 (B,); and its place in the order."""

    samples: ShardIndex
    smoothing: float
    shard_B: NDArray[np.int32]
    row_B: NDArray[np.int32]
    view_B: NDArray[np.int32]
    epoch: int
    step: int
    micro: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a `Feed`.

    Attributes:
        images: normalised and mixed, float32 (B, 3, H, W), channels last in memory, on the feed's device.
        labels: the parts that `targets` are made of: class, partner's class and weight of each image.
        answer: what the teacher says; None where there is no teacher. `teacher` is the same, and insists.
        origin: where the samples come from; None for a batch that no feed made.
    """

    images: Tensor
    labels: Labels
    answer: TeacherAnswer | None
    origin: Origin | None = None

    @property
    def targets(self) -> Tensor:
        """Soft targets with mixing and smoothing, float32 (B, C); `torch.nn.functional.cross_entropy` takes them."""
        origin = self._origin()
        return self.labels.soft(origin.samples.num_classes, origin.smoothing)

    @property
    def teacher(self) -> TeacherAnswer:
        """What the teacher says; ValueError when the feed has none."""
        if self.answer is None:
            raise ValueError("batch.teacher: this feed has no teacher; give Feed(…, cache=…) or Feed(…, teacher=…)")
        return self.answer

    @property
    def keys(self) -> list[str]:
        """The keys of the samples."""
        index, pairs = self._origin().samples, zip(self.shard.tolist(), self.row.tolist(), strict=True)
        return [index.key(shard, row) for shard, row in pairs]

    @property
    def shard(self) -> NDArray[np.int32]:
        """The number of each sample's shard, int32 (B,)."""
        return self._origin().shard_B

    @property
    def row(self) -> NDArray[np.int32]:
        """The row of each sample in its shard, int32 (B,)."""
        return self._origin().row_B

    @property
    def view(self) -> NDArray[np.int32]:
        """The number of each sample's view, int32 (B,)."""
        return self._origin().view_B

    @property
    def epoch(self) -> int:
        """The epoch that this batch belongs to."""
        return self._origin().epoch

    @property
    def step(self) -> int:
        """The optimiser step within the epoch, from 0: what `first_step` of a resumed epoch counts."""
        return self._origin().step

    @property
    def micro(self) -> int:
        """Which of the `accumulate` batches of its step this is, from 0."""
        return self._origin().micro

    def __len__(self) -> int:
        """B, the samples on this rank."""
        return len(self.images)

    def _origin(self) -> Origin:
        assert self.origin is not None, "only a feed's batches have an origin"
        return self.origin


def ready(
    loaded: LoadedBatch, recipe: ViewRecipe, source: TeacherSource, device: torch.device, origin: Origin | None = None
) -> Batch:
    """A rendered batch on the device: normalised, mixed, labelled, and answered by the teacher."""
    mixing = [torch.from_numpy(values) for values in (loaded.partner_B, loaded.lam_B, loaded.box_B4)]
    partner_B, lam_B, box_B4 = (values.to(device, non_blocking=True) for values in mixing)
    x_BCHW: Tensor = prepare(
        loaded.view_BHWC.to(device, non_blocking=True),
        partner_B,
        lam_B,
        box_B4,
        mean=recipe.mean,
        std=recipe.std,
    )
    label_B = torch.from_numpy(loaded.label_B).to(device, non_blocking=True)
    return Batch(x_BCHW, Labels.of(label_B, partner_B, lam_B), source.answer(loaded, x_BCHW), origin)
