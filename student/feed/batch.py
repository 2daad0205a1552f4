"""Define a batch as a training loop receives it: images, labels, the teacher's answer, and where the samples are.

Legend: B batch, C classes, H, W image.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.index.shard_index import ShardIndex
from shards.pool.device_copy import on_device
from shards.views.blocks import ViewBatch
from shards.views.mixing import prepare
from shards.views.view_recipe import ViewRecipe
from student.feed.answers import TeacherAnswer, TeacherSource


class Labels(NamedTuple):
    """What the images of a batch show: class (B,) int64, the partner's class, and the weight of the own image.

    An image that is not mixed is its own partner, with weight 1. The class of an image without a label is -1; batches
    of a set that has some have `PartlyLabelled`.
    """

    label_B: Tensor
    partner_label_B: Tensor
    lam_B: Tensor

    @classmethod
    def of(
        cls, label_B: Tensor, partner_B: Tensor | None = None, lam_B: Tensor | None = None, *, labelled: float = 1.0
    ) -> "Labels":
        """From class, partner's position in the batch and weight; unmixed without the last two.

        Args:
            labelled: `labelled_share`; below 1 some classes may be -1.
        """
        if partner_B is None or lam_B is None:
            labels = cls(label_B, label_B, torch.ones(label_B.shape, dtype=torch.float32, device=label_B.device))
        else:
            labels = cls(label_B, label_B[partner_B.long()], lam_B.float())
        return PartlyLabelled(*labels).of_set(labelled) if labelled < 1.0 else labels

    @property
    def labelled_share(self) -> float:
        """The share of the training images that have a label, of the set and not of the batch; 1: all have one."""
        return 1.0

    @property
    def partly(self) -> bool:
        """Whether some images of the set have no label."""
        return self.labelled_share < 1.0

    def halves(self) -> tuple[Tensor, Tensor]:
        """Weights (B,) of the own and the partner's image in each target: 0 for one without a label."""
        own_B, partner_B = self.lam_B, 1.0 - self.lam_B
        if not self.partly:
            return own_B, partner_B
        nothing = torch.zeros_like(own_B)
        own_B = torch.where(self.label_B >= 0, own_B, nothing)
        return own_B, torch.where(self.partner_label_B >= 0, partner_B, nothing)

    @property
    def weight_B(self) -> Tensor:  # noqa: N802 - the shape is part of the name
        """How much of each image is labelled, float32 (B,): 1, or less where it or its partner has no label."""
        whole = torch.ones_like(self.lam_B)
        if not self.partly:
            return whole
        both_B = (self.label_B >= 0) & (self.partner_label_B >= 0)
        return torch.where(both_B, whole, sum(self.halves(), torch.zeros_like(whole)))

    @property
    def classes(self) -> tuple[Tensor, Tensor]:
        """The own and the partner's class (B,); 0 in place of one that is absent, whose weight is 0."""
        if not self.partly:
            return self.label_B, self.partner_label_B
        return self.label_B.clamp_min(0), self.partner_label_B.clamp_min(0)

    def soft(self, num_classes: int, smoothing: float = 0.0) -> Tensor:
        """The target distribution, float32 (B, C): both classes by weight, each smoothed (off ε/C, on 1 − ε + ε/C).

        A row sums to `weight_B`: an image without a label asks for nothing.
        """
        on = 1.0 - smoothing
        if self.partly:
            own_B, partner_B = self.halves()
            label_B, partner_label_B = self.classes
            target_BC = (self.weight_B * (smoothing / num_classes))[:, None].repeat(1, num_classes)
            target_BC.scatter_add_(1, label_B[:, None], own_B[:, None] * on)
            return target_BC.scatter_add_(1, partner_label_B[:, None], partner_B[:, None] * on)
        lam_B1 = self.lam_B[:, None] * on
        target_BC = torch.full_like(lam_B1, smoothing / num_classes).repeat(1, num_classes)
        target_BC.scatter_add_(1, self.label_B[:, None], lam_B1)
        return target_BC.scatter_add_(1, self.partner_label_B[:, None], on - lam_B1)


class PartlyLabelled(Labels):
    """Labels of a batch from a set in which some images have none."""

    _share: float

    def of_set(self, share: float) -> "PartlyLabelled":
        """The same, of a set of which this share has a label."""
        self._share = share
        return self

    def _replace(self, **changes: Any) -> "PartlyLabelled":
        """The same with other tensors, such as those on another device."""
        return super()._replace(**changes).of_set(self._share)

    @property
    def labelled_share(self) -> float:
        """The share of the training images that have a label; what is absent has to be masked."""
        return self._share


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch of a `Feed`; another process is sent `as_dict`, as the batch itself holds the index of all samples.

    Attributes:
        images: normalised and mixed, float32 (B, 3, H, W), channels last in memory, on the feed's device.
        labels: the parts that `targets` are made of: class, partner's class and weight of each image.
        answer: what the teacher says; None where there is no teacher. `teacher` is the same, and insists.
        shard, row, view: the number of each sample's shard, its row in the shard and its view, int32 (B,).
        epoch, step, micro: the epoch; the optimiser step within it, from 0 (what `first_step` of a resumed epoch
            counts); which of the `accumulate` batches of the step this is, from 0.
        index: of the shards. smoothing: ε of label smoothing in `targets`.
    """

    images: Tensor
    labels: Labels
    answer: TeacherAnswer | None
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    view: NDArray[np.int32]
    epoch: int
    step: int
    micro: int
    index: ShardIndex
    smoothing: float

    @property
    def targets(self) -> Tensor:
        """Soft targets with mixing and smoothing, float32 (B, C); `torch.nn.functional.cross_entropy` takes them.

        A row sums to the labelled part of its image (`labelled`): 1, or less where it or its partner has no label.
        """
        if not self.index.num_classes:
            raise ValueError(
                "batch.targets: no sample has a label and no teacher has named the classes; give a teacher"
            )
        return self.labels.soft(self.index.num_classes, self.smoothing)

    @property
    def labelled(self) -> Tensor:
        """How much of each image's target is there, float32 (B,): 1 with a label, 0 without, between where mixed."""
        return self.labels.weight_B

    @property
    def teacher(self) -> TeacherAnswer:
        """What the teacher says; ValueError when the feed has none."""
        if self.answer is None:
            raise ValueError("batch.teacher: this feed has no teacher; give Feed(…, cache=…) or Feed(…, teacher=…)")
        return self.answer

    @property
    def keys(self) -> list[str]:
        """The keys of the samples."""
        return [self.index.key(*pair) for pair in zip(self.shard.tolist(), self.row.tolist(), strict=True)]

    def as_dict(self, temperature: float | None = None) -> dict[str, Tensor]:
        """The batch as a plain dict of tensors on the feed's device, for trainers that move or check what they get.

        Args:
            temperature: τ of "teacher_log_prob"; None leaves it out.

        Returns:
            "images" (B, 3, H, W) and "targets" (B, C) float32, "labels" (B,) int64; with a teacher "teacher_hard" (B,)
            int64 and, with a τ, "teacher_log_prob" (B, C) float32; "shard", "row", "view" (B,) int32. Where shards have
            samples without a label, also "labelled" (B,) float32; their "labels" are -1.

        Errors:
            ValueError for a τ where the feed has no teacher.
        """
        values = {"images": self.images, "targets": self.targets, "labels": self.labels.label_B}
        if self.labels.partly:
            values["labelled"] = self.labelled
        if self.answer is not None:
            values["teacher_hard"] = self.answer.hard
        if temperature is not None:
            values["teacher_log_prob"] = self.teacher.log_prob(temperature)
        places = {"shard": self.shard, "row": self.row, "view": self.view}
        return values | {
            name: torch.from_numpy(place).to(self.images.device, non_blocking=True) for name, place in places.items()
        }

    def __len__(self) -> int:
        """B, the samples on this rank."""
        return len(self.images)


def ready(
    rendered: ViewBatch, recipe: ViewRecipe, source: TeacherSource, device: torch.device, labelled: float = 1.0
) -> tuple[Tensor, Labels, TeacherAnswer | None]:
    """Return images, labels and the teacher's answer of a rendered batch: on the device, normalised and mixed.

    `labelled` is the share of all samples that have a label.
    """
    mixing = [torch.from_numpy(values) for values in (rendered.partner_B, rendered.lam_B, rendered.box_B4)]
    partner_B, lam_B, box_B4 = (values.to(device, non_blocking=True) for values in mixing)
    image_BCHW = prepare(
        on_device(rendered.view_BHWC, device),
        partner_B,
        lam_B,
        box_B4,
        mean=recipe.mean,
        std=recipe.std,
    )
    label_B = torch.from_numpy(rendered.label_B).to(device, non_blocking=True)
    labels = Labels.of(label_B, partner_B, lam_B, labelled=labelled)
    return image_BCHW, labels, source.answer(rendered, image_BCHW)
