"""Top-1 of a teacher through the whole of stage 1: photos → shards → plain views → cache of hard labels → accuracy.

    python -m benchmarks.teacher_top1 PHOTOS [--teacher efficientnet_lite0] [--size 224] [--crop-pct 0.875] [--json]

PHOTOS is an ImageFolder whose classes are named by ImageNet's wnids; a class's label is the rank of its wnid among the
1,000, so a part of ImageNet will do. One view per photo: short side resized to size / crop-pct, centre crop.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timm.data.imagenet_info import ImageNetInfo

from shards.index.reader import ShardReader
from shards.tars.sample_rule import require_image
from shards.tars.writer import write_samples
from shards.views.view_recipe import recipe_named
from shards.world import World
from teacher_cache.network.teacher import TeacherOptions, load_teacher
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.stage1.build import build_cache
from teacher_cache.stage1.opening import open_or_create
from teacher_cache.stage1.stage1_events import CacheOpened


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--teacher", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=224, help="side of the views, pixels")
    parser.add_argument("--crop-pct", type=float, default=0.875)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top1, count = measure(
            Path(folder), options.photos, options.teacher, options.crop_pct, options.workers, options.size
        )
    print(f"{options.teacher}: top-1 {100 * top1:.1f} % of {count} photos at {options.size} pixels")
    if options.json:
        print(json.dumps({"teacher": options.teacher, "top1": top1, "photos": count}))


def measure(folder: Path, photos: Path, name: str, crop_pct: float, workers: int, size: int = 224) -> tuple[float, int]:
    """Share of the photos whose first class is the label, and their number."""
    index = write_samples(samples_of(photos), folder / "shards", num_classes=1000)
    recipe = recipe_named("eval", size=size, crop_pct=crop_pct, block_views=1)
    options = TeacherOptions(view_mean=recipe.mean, view_std=recipe.std)
    teacher = load_teacher(name, input_size=recipe.size, options=options)
    record = RecordFormat.chosen("hard", 1000)
    with ShardReader(index) as reader:
        *_, opened = open_or_create(
            folder / "cache.zarr", index, teacher, recipe, record, num_views=1, reader=reader, world=World()
        )
        assert isinstance(opened, CacheOpened)
        cache = opened.cache
        for _ in build_cache(cache, index, teacher, reader=reader, world=World(), workers=workers, batch_size=32):
            pass
    first_N = np.concatenate([cache.read_unit(0, shard)["class_index"][0, :, 0] for shard in range(index.num_shards)])
    return float((first_N == index.label_N).mean()), index.num_samples


def samples_of(photos: Path) -> Iterator[tuple[str, int, str, bytes]]:
    """The photos with their ImageNet labels."""
    wnids: list[str] = sorted(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    for path in sorted(path for path in photos.glob("*/*") if path.is_file()):
        data = path.read_bytes()
        yield f"{path.parent.name}/{path.stem}", label_of[path.parent.name], require_image(data, str(path)), data


if __name__ == "__main__":
    main()
