"""Choose what a small set of images is trained with: views, their number and size, student and epochs, with reasons.

The papers' recipes are for 1,281,167 images. On some hundred of them DeiT's augmentation leaves a teacher right on two
views of three, and a network of five million weights learns next to nothing. From `SMALL_SET` images with labels on
nothing is chosen here. Everything follows from numbers, so that stage 1 and stage 2 choose alike; every flag overrides
it, and a cache, run or sweep that exists keeps its settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.text.figures import count

SMALL_SET = 50_000
"""Images with labels from which on nothing is chosen by this module; where none has a label, images."""

PAPERS_SET = 1_000_000
"""Images from which on, with labels or without, a set is trained as in the papers."""

SMALL_VIEW = "small"
"""The name of the view recipe for small sets."""

SMALL_STUDENT = "small_cnn"
"""The student of small sets, in the table of students."""

_FORWARDS = 60_000  # teacher answers that a cache of a small set is worth: 120 views of 500 images
_MOST_VIEWS, _FEWEST_VIEWS, _UNIT = 120, 12, 6
_IMAGES_SEEN = 100_000  # images that a student is trained on: about ten minutes of two cores
_IMAGES_SEEN_TUNED = 20_000  # the same where it begins with published weights
_IMAGES_TAUGHT = 15_000  # the same for a teacher: a few hundred images need more than ten passes
_MOST_EPOCHS, _FEWEST_EPOCHS = 300, 10
_MOST_TEACHER_EPOCHS = 30
_LEFT_OUT = 0.1  # of the images of an epoch: more would be wasted on a batch that does not fit
_EPOCH_S = 0.4  # of an epoch besides its steps: a checkpoint, the start of a validation; 0.25 to 0.6 on two busy cores
_SIZES = (64, 96)  # pixels: a side that a convolutional teacher still reads, and one that two cores can train on


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """What is known of a set of images.

    Attributes:
        num_images: of the training set. num_unlabelled: how many of them have no label.
        short_side: the median of the shorter sides of a sample, pixels; 0: not known.
        coloured: whether any image of the sample has colours.
    """

    num_images: int
    short_side: int = 0
    coloured: bool = True
    num_unlabelled: int = 0

    @property
    def is_small(self) -> bool:
        """Whether settings are chosen for it.

        Where only some images have labels, these count: the teacher was trained on them, with the settings of a small
        set, and photos without labels that are added later do not change the views it knows.
        """
        num_labelled = self.num_images - self.num_unlabelled
        return 0 < (num_labelled or self.num_images) < SMALL_SET and self.num_images < PAPERS_SET


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDefaults:
    """The settings for a small set.

    Attributes:
        view: name of the view recipe. view_fields: what differs in it. num_views: of a cache.
        size: side of the views, pixels. model: name of the student. epochs: passes over the images.
        reasons: one sentence each, by the name of the attribute.
    """

    view: str
    view_fields: Mapping[str, float]
    num_views: int
    size: int
    model: str
    epochs: int
    reasons: Mapping[str, str]


def data_defaults(images: ImageSet, *, pretrained: bool = False, teacher: bool = False) -> DataDefaults | None:
    """Return the settings for a set; None for a large one, which is trained as in the papers.

    Args:
        pretrained: whether the student begins with published weights, which takes fewer epochs.
        teacher: whether they are for the training of a teacher.
    """
    if not images.is_small:
        return None
    of_images = count(images.num_images, "image")
    if 0 < images.num_unlabelled < images.num_images:
        of_images += f" ({images.num_images - images.num_unlabelled:,} with labels)"
    size = _size(images)
    num_views = _in_units(_FORWARDS / images.num_images)
    seen = _IMAGES_TAUGHT if teacher else _IMAGES_SEEN_TUNED if pretrained else _IMAGES_SEEN
    most = _MOST_TEACHER_EPOCHS if teacher else _MOST_EPOCHS
    epochs = round(min(max(seen / images.num_images, _FEWEST_EPOCHS), most))
    mirrored = "" if images.coloured else "; none is mirrored, as the images have no colours and may be letters"
    view_fields = {} if images.coloured else {"flip": 0.0}
    # Nobody stores a teacher's training views: with new mixing groups in each epoch few epochs leave no image out.
    view_fields |= {"block_views": 1} if teacher else {}
    side = f" (the shorter side of the images is about {images.short_side})" if images.short_side else ""
    return DataDefaults(
        view=SMALL_VIEW,
        view_fields=view_fields,
        num_views=num_views,
        size=size,
        model=SMALL_STUDENT,
        epochs=epochs,
        reasons={
            "view": f"view recipe {SMALL_VIEW}: random crops, mixed in pairs, without distortion{mirrored}",
            "size": f"views of {size} pixels{side}: small ones are fast to train on",
            "num_views": f"{count(num_views, 'view')} of each image: "
            f"{count(num_views * images.num_images, 'teacher answer')}",
            "model": f"student {SMALL_STUDENT}: a small CNN learns more from {of_images} than a transformer",
            "epochs": f"{count(epochs, 'epoch')} of {of_images}",
        },
    )


def batch_of_few(batch: int, unit: int, num_images: int) -> int:
    """Return the largest batch of whole units, up to `batch`, that leaves few images out of an epoch: a tenth at most.

    Where each leaves more out, the one that leaves the fewest: an epoch is made of whole batches.
    """
    batches = range(batch - batch % unit, 0, -unit)
    few = (size for size in batches if num_images % size <= _LEFT_OUT * num_images)
    return next(few, min(batches, key=lambda size: num_images % size))


def epoch_seconds(num_images: float, images_per_s: float) -> float:
    """Return how long an epoch takes at a measured rate: its steps, and what each epoch costs besides them."""
    return num_images / images_per_s + _EPOCH_S


def epochs_within(minutes: float, images_per_s: float, num_images: int) -> int:
    """Return how many epochs a time budget allows at a measured rate; at least one."""
    return max(1, int(60 * minutes / epoch_seconds(num_images, images_per_s)))


def _size(images: ImageSet) -> int:
    smallest, usual = _SIZES
    return smallest if 0 < images.short_side <= smallest // 2 else usual


def _in_units(num_views: float) -> int:
    """The number of views in whole units, within the limits."""
    return min(max(round(num_views / _UNIT) * _UNIT, _FEWEST_VIEWS), _MOST_VIEWS)
