"""Estimate the bytes per second that a plan reads in training and stage 1, and writes in stage 1.

Training decodes an image once for its `repeats` views in a batch, stage 1 once for the views of a unit, and each decode
reads the image; records are read once per view. Hours do not follow from it: reading overlaps computing, and a disk
that is too slow is something to change before the start.
"""

from dataclasses import dataclass

from shards.index.disk import rate_in_words
from student.cost.cost_estimate import Cost, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskNeed:
    """Bytes per second of the whole machine while it runs at the rates of an estimate.

    Attributes:
        training_read: images and records, all students that run at once. stage1_read: images. stage1_write: records,
            without the reading back of a commit, which the memory answers.
    """

    training_read: float
    stage1_read: float
    stage1_write: float

    def line(self, *, image_bytes: float, image_source: str) -> str:
        """Return the need in words, with the mean size of an image and where that comes from."""
        training, stage1, written = map(rate_in_words, (self.training_read, self.stage1_read, self.stage1_write))
        return (
            f"disk: training reads {training}, stage 1 reads {stage1} and writes {written} "
            f"(images of {image_bytes / 1e3:,.1f} kB, {image_source}; records included); plan-cache measures the disk"
        )


def disk_need(job: Job, cost: Cost, *, image_bytes: float, repeats: int, unit_views: int) -> DiskNeed:
    """The need of an estimate.

    Args:
        image_bytes: mean size of an encoded image. repeats: views per decode in training; unit_views: in stage 1.
    """
    training = job.num_samples * job.epochs / (3600 * cost.cached_hours)
    stage1 = job.num_samples * job.num_views / (3600 * cost.teacher_hours)
    return DiskNeed(
        training_read=training * (image_bytes / repeats + job.bytes_per_view),
        stage1_read=stage1 * image_bytes / unit_views,
        stage1_write=stage1 * job.bytes_per_view,
    )
