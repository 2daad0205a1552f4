"""What everything is measured on: shards of given or synthetic photos, caches, and a teacher that costs nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.sizes import Sizes
from benchmarks.synthetic_jpeg import synthetic_jpeg
from shards.index.shard_index import ShardIndex
from shards.tars.sample_rule import require_image
from shards.tars.writer import write_samples
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.stage1.opening import cache_spec
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.spec import TeacherSpec


def write_shards(folder: Path, sizes: Sizes, photos: Path | None) -> ShardIndex:
    """The photos, over and over under new keys, with labels in turn."""
    paths = sorted(p for p in photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")) if photos else []
    data = [path.read_bytes() for path in paths[: 16 * sizes.num_photos]]
    data = data or [synthetic_jpeg(number) for number in range(sizes.num_photos)]

    def samples() -> Iterator[tuple[str, int, str, bytes]]:
        for n in range(sizes.rows * sizes.num_shards):
            image = data[n % len(data)]
            yield f"photo{n:06d}", n % sizes.num_classes, require_image(image, f"photo {n}"), image

    return write_samples(samples(), folder, samples_per_shard=sizes.rows, num_classes=sizes.num_classes)


def teacher(sizes: Sizes, name: str, precision: str, device: torch.device, *, deterministic: bool = False) -> Teacher:
    """A teacher with random weights, the same every time."""
    torch.manual_seed(0)
    return load_teacher(
        name,
        num_classes=sizes.num_classes,
        precision=precision,
        device=device,
        input_size=sizes.views.size,
        options=TeacherOptions(
            pretrained=False, deterministic=deterministic, view_mean=sizes.views.mean, view_std=sizes.views.std
        ),
    )


class _Nothing(nn.Module):
    """Answers from the mean colour of an image: as good as no forward at all."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        logit_BC: torch.Tensor = self.head(image_BCHW.mean((2, 3)))
        return logit_BC


def free_teacher(sizes: Sizes, device: torch.device) -> Teacher:
    """A teacher that costs nothing: what stage 1 makes of it is what rendering, encoding and writing allow."""
    torch.manual_seed(0)
    views = sizes.views
    spec = TeacherSpec(
        name="free",
        weights_sha256="0" * 64,
        precision="fp32",
        input_size=views.size,
        num_classes=sizes.num_classes,
        mean=views.mean,
        std=views.std,
    )
    return Teacher(_Nothing(sizes.num_classes), spec, device=device)


def new_cache(url: Path, sizes: Sizes, index: ShardIndex, teacher: Teacher, kind: str, num_views: int) -> TeacherCache:
    """An empty cache; a basis comes from random logits, which cost the codec the same."""
    record = RecordFormat.chosen(kind, sizes.num_classes)
    spec = cache_spec(index, teacher, sizes.views, record)
    noise_NC = np.random.default_rng(0).normal(size=(600, sizes.num_classes)).astype(np.float32)
    basis = fit_basis(noise_NC, record) if record.needs_basis else None
    return TeacherCache.create(url, spec, index, basis, num_views=num_views)
