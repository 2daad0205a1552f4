"""Views per second on one core: ours against timm's `create_transform` with Pillow decode, the same recipe.

    python -m benchmarks.views --photos DIR [--json] [--max-side 500 --quality 90] [--teacher efficientnet_lite0]
        [--dali]

Both start from the encoded bytes in memory. timm's side is what a DeiT data loader does per view: Pillow decode to RGB,
then the transform up to the normalised float tensor; it decodes again for every view. Ours is `render_views`: one
decode, the uint8 views. Because ours leaves the normalisation to the device, the ratios are also printed against timm
stopping at uint8 (`create_transform(use_prefetcher=True)`, which then erases nothing): the strictest reading.

`ratio_single_compact` is ours, one view per decode, from the photos as compact shards hold them (make-shards
--max-side, --quality), against timm from the originals; beside it timm from the compact ones, so that what our code
gains and what smaller photos gain can be told apart, and the bytes saved. And what that costs a teacher: top-1 (folders
named by wnid) and KL of its answers to compact photos from those to the originals, in the plain view of an evaluation;
--teacher "" leaves it out.

`--dali` adds NVIDIA DALI's pipeline of the same recipe on the CPU, one view per decode, without random erasing; with
and without RandAugment. `ratio_single_to_dali` is ours, one view per decode, against it.

Times are CPU seconds of this process with one thread, photos interleaved in groups, so that load on the machine falls
on both sides alike. The ratio of a pass is total by total; printed are medians over the passes.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import simplejpeg
import timm
import timm.data.auto_augment
import torch
import torchvision
from PIL import Image
from timm.data.transforms_factory import create_transform

from benchmarks.compact_photos import teacher_losses
from shards.index.pixel_rule import CompactRule
from shards.tars.compacting import compacted
from shards.views import view as views_module
from shards.views.decode import decode_rgb
from shards.views.erasing import erase
from shards.views.operations.apply import apply_operations
from shards.views.resample import flip_columns, resize_window
from shards.views.view import ViewParams, render_views, view_params
from shards.views.view_recipe import recipe_named
from teacher_cache.network.teacher_name import LITE0

_GROUP = 25
_WHERE = "benchmark"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG files, searched recursively")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--max-side", type=int, default=500)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--teacher", default=LITE0, help='whom compact photos may cost accuracy; "" for nobody')
    parser.add_argument(
        "--dali", action="store_true", help="NVIDIA DALI's pipeline on the CPU beside them; extra `peers`"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    paths = [p for p in sorted(args.photos.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    photos = [path.read_bytes() for path in paths]
    if not photos:
        parser.error(f"no JPEG files under {args.photos}")
    work_around_posterize()
    rule = CompactRule(max_side=args.max_side, quality=args.quality)
    compact = [compacted(data, rule, _WHERE) for data in photos]
    ratios = measure_ratios(photos, compact, args.passes, dali=args.dali)
    ratios |= {"compact_bytes_share": sum(map(len, compact)) / sum(map(len, photos))}
    if args.teacher:
        ratios |= teacher_losses(args.teacher, photos, compact, [path.parent.name for path in paths])
    stages = {"ours": measure_ours(photos), "timm": measure_timm(photos)}
    versions = {m.__name__: m.__version__ for m in (PIL, cv2, simplejpeg, timm, torch, torchvision, np)}
    print(f"{len(photos)} photos, {args.passes} passes, one thread, {versions}")
    for name, value in ratios.items():
        print(f"{name:28s} {value:8.3f}")
    for side, times in stages.items():
        print(f"{side}: " + ", ".join(f"{name} {ms:.3f} ms" for name, ms in times.items()))
    if args.json:
        facts = {"compact": rule.to_json(), "stages_ms": stages, "photos": len(photos), "versions": versions}
        print(json.dumps({**ratios, **facts}))


def work_around_posterize() -> None:
    """Give timm's posterize with 0 bits the black image that Pillow before 13 gave; Pillow 13 raises, timm crashes."""
    module = timm.data.auto_augment
    original = module.posterize

    def posterize(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
        if bits_to_keep < 1:
            return Image.new(image.mode, image.size)
        done: Image.Image = original(image, bits_to_keep, **kwargs)  # type: ignore[no-untyped-call]
        return done

    module.NAME_TO_OP.update({name: posterize for name in module.NAME_TO_OP if name.startswith("Posterize")})


def timm_transform(**kwargs: Any) -> Callable[[Image.Image], Any]:
    """The transform of the published DeiT code, with its defaults."""
    transform: Callable[[Image.Image], Any] = create_transform(
        input_size=224,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        **kwargs,
    )
    return transform


def decode_pillow(data: bytes) -> Image.Image:
    """What timm's datasets do."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def measure_ratios(
    photos: Sequence[bytes], compact: Sequence[bytes], passes: int, *, dali: bool = False
) -> dict[str, float]:
    """Views per second of all sides; ratios for 1, 3 and 8 views per decode, and for one of a compact photo."""
    contestants = _contestants() | (_dali_contestants() if dali else {})
    num_views = {"repeated3": 3, "views8": 8}
    totals: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-1, passes):  # the first pass warms caches and tables
        seconds = dict.fromkeys(contestants, 0.0)
        for first in range(0, len(photos), _GROUP):
            for name, render in contestants.items():
                group = (compact if name.endswith("_compact") else photos)[first : first + _GROUP]
                start = time.process_time()
                render(group, first + len(photos) * (turn + 1))
                seconds[name] += time.process_time() - start
        if turn >= 0:
            for name, total in seconds.items():
                totals[name].append(total / len(photos) / num_views.get(name, 1))
    names = [name for name in contestants if name not in ("timm", "timm_uint8")]
    result = {f"ratio_{name}": _ratio(totals["timm"], totals[name]) for name in names}
    for name in ("single", "repeated3", "views8"):
        result[f"ratio_{name}_uint8"] = _ratio(totals["timm_uint8"], totals[name])
    if dali:
        result["ratio_single_to_dali"] = _ratio(totals["dali"], totals["single"])
    return result | {f"{name}_views_per_s": 1 / statistics.median(times) for name, times in totals.items()}


Contestant = Callable[[Sequence[bytes], int], Any]
"""Renders a group of encoded images; the number is that of the first one."""


def _contestants() -> dict[str, Contestant]:
    recipe = recipe_named("deit")
    kept_VHWC = np.empty((8, recipe.size, recipe.size, 3), np.uint8)  # workers render into memory that is there

    def ours(count: int) -> Contestant:
        def render(group: Sequence[bytes], first: int) -> None:
            for n, data in enumerate(group, first):
                render_views(data, recipe, str(n), range(n, n + count), _WHERE, kept_VHWC[:count])

        return render

    def theirs(transform: Callable[[Image.Image], Any]) -> Contestant:
        def render(group: Sequence[bytes], _: int) -> None:
            for data in group:
                transform(decode_pillow(data))

        return render

    full = theirs(timm_transform())
    return {
        "timm": full,
        "timm_uint8": theirs(timm_transform(use_prefetcher=True)),
        "single": ours(1),
        "repeated3": ours(3),
        "views8": ours(8),
        "timm_compact": full,
        "single_compact": ours(1),
    }


def _dali_contestants() -> dict[str, Contestant]:
    from benchmarks.dali_views import DaliViews

    whole, plain = (DaliViews(_GROUP, rand_augment=augment) for augment in (True, False))
    return {
        "dali": lambda group, _: whole.render(group),
        "dali_no_rand_augment": lambda group, _: plain.render(group),
    }


def _ratio(theirs: Iterable[float], ours: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def measure_ours(photos: Sequence[bytes]) -> dict[str, float]:
    """Mean milliseconds per view of each stage of ours, single views."""
    recipe = recipe_named("deit")
    drawn: list[ViewParams] = []
    sizes = [views_module.decoded_size(data, recipe, _WHERE) for data in photos]
    times = {"draw": _clock(lambda n: drawn.append(view_params(recipe, str(n), n, sizes[n])), len(photos))}
    rows = [params.box.y + params.box.height for params in drawn]
    times["decode (whole)"] = _clock(lambda n: decode_rgb(photos[n], _WHERE), len(photos))
    # The pixels are dropped, as in use: keeping them would charge for fresh memory.
    times["decode (to the crop's last row)"] = _clock(
        lambda n: decode_rgb(photos[n], _WHERE, rows=rows[n]), len(photos)
    )
    decoded = [decode_rgb(data, _WHERE) for data in photos]
    images: list[Any] = []

    def resize(n: int) -> None:
        box, params = drawn[n].box, drawn[n]
        crop = decoded[n][box.y : box.y + box.height, box.x : box.x + box.width]
        images.append(resize_window(crop, params.resized, params.window, params.size))

    times["crop and resize"] = _clock(resize, len(photos))
    times["flip"] = _clock(lambda n: drawn[n].flip and flip_columns(images[n]), len(photos))
    times["operations"] = _clock(lambda n: apply_operations(images[n], drawn[n].operations, drawn[n].fill), len(photos))

    def hole(n: int) -> None:
        erased = drawn[n].erased
        if erased is not None:
            erase(images[n], erased.box[:4], erased.box.noise_key, erased.mean, erased.std)

    times["erase"] = _clock(hole, len(photos))
    return times


def measure_timm(photos: Sequence[bytes]) -> dict[str, float]:
    """Mean milliseconds per view of each step of timm's transform."""
    images: list[Any] = []
    times = {"decode": _clock(lambda n: images.append(decode_pillow(photos[n])), len(photos))}
    for step in timm_transform().transforms:  # type: ignore[attr-defined]
        done: list[Any] = []
        times[type(step).__name__] = _clock(lambda n, s=step, d=done, i=images: d.append(s(i[n])), len(photos))  # type: ignore[misc]
        images = done
    return times


def _clock(call: Callable[[int], Any], count: int) -> float:
    """Mean CPU milliseconds of one call."""
    start = time.process_time()
    for n in range(count):
        call(n)
    return (time.process_time() - start) / count * 1e3


if __name__ == "__main__":
    main()
