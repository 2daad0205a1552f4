"""DeiT's views by NVIDIA DALI's pipeline on the CPU: what benchmarks.views compares with, from the extra `peers`.

Random crop while decoding, bicubic antialiased resize, flip, two times RandAugment's operation at magnitude 9 with
probability one half, normalised float tensors. DALI has no random erasing with noise, so its views lack it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shards.views.view_recipe import IMAGENET_MEAN, IMAGENET_STD

_SIZE = 224
_MAGNITUDE = 9
_GREY = 124  # of pixels without a source


class DaliViews:
    """A pipeline of one thread for groups of up to `batch_size` encoded images."""

    def __init__(self, batch_size: int, *, rand_augment: bool) -> None:
        """Build the pipeline; ImportError without DALI."""
        self._pipeline = _built(batch_size, rand_augment)

    def render(self, group: Sequence[bytes]) -> Any:
        """One view of each image, float (3, 224, 224)."""
        self._pipeline.feed_input("data", [np.frombuffer(data, np.uint8) for data in group])
        return self._pipeline.run()


def _built(batch_size: int, with_rand_augment: bool) -> Any:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import rand_augment

    def views() -> Any:
        data = fn.external_source(name="data", dtype=types.UINT8, ndim=1)
        image = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        image = fn.resize(image, size=[_SIZE, _SIZE], interp_type=types.INTERP_CUBIC, antialias=True)
        image = fn.flip(image, horizontal=fn.random.coin_flip())
        if with_rand_augment:
            for _ in range(2):
                if fn.random.coin_flip(dtype=types.BOOL):
                    # Eleven steps, so that 9 is nine tenths, as in timm.
                    image = rand_augment.rand_augment(image, n=1, m=_MAGNITUDE, num_magnitude_bins=11, fill_value=_GREY)
        mean, std = ([255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std)

    settings = {"prefetch_queue_depth": 1, "exec_pipelined": False, "exec_async": False, "device_id": None}
    pipeline = pipeline_def(views, enable_conditionals=True, batch_size=batch_size, num_threads=1, **settings)()
    pipeline.build()
    return pipeline
