"""What compact photos cost a teacher: its top-1, and how far its answers move from those to the originals."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.imagenet_info import ImageNetInfo

from shards.views.mixing import prepare
from shards.views.view import render_views
from shards.views.view_recipe import recipe_named
from teacher_cache.network.teacher import Teacher, TeacherOptions, load_teacher
from teacher_cache.record.fidelity import fidelity, log_softmax

BATCH = 25
TEMPERATURES = (1.0, 3.0)

# N photos, C classes.


def teacher_losses(
    name: str, photos: Sequence[bytes], compact: Sequence[bytes], wnids: Sequence[str]
) -> dict[str, float]:
    """Top-1 on both, the share of first classes that move, mean KL (nats) and G per τ.

    Args:
        name: a teacher of ImageNet's 1,000 classes, such as efficientnet_lite0.
        wnids: of each photo; top-1 is left out where they are not ImageNet's.
    """
    recipe = recipe_named("eval")
    options = TeacherOptions(view_mean=recipe.mean, view_std=recipe.std)
    teacher = load_teacher(name, input_size=recipe.size, options=options)
    before_NC, after_NC = (_answers(teacher, data) for data in (photos, compact))
    first_N, moved_N = before_NC.argmax(axis=1), after_NC.argmax(axis=1)
    figures = {"compact_first_class_moves": float((first_N != moved_N).mean())}
    known: list[str] = sorted(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]
    if set(wnids) <= set(known):
        label_N = np.array([known.index(wnid) for wnid in wnids])
        figures |= {"top1": float((first_N == label_N).mean()), "top1_compact": float((moved_N == label_N).mean())}
    rows = fidelity(before_NC, lambda rows, tau: log_softmax(after_NC[rows], tau), temperatures=TEMPERATURES)
    for row in rows:
        figures |= {
            f"compact_kl_tau{row.temperature:g}": row.kl,
            f"compact_g_tau{row.temperature:g}": row.gradient_error,
        }
    return figures


def _answers(teacher: Teacher, photos: Sequence[bytes]) -> NDArray[np.float64]:
    """Logits of the plain view of each photo, (N, C) float64."""
    recipe = recipe_named("eval")
    parts = []
    for first in range(0, len(photos), BATCH):
        group = photos[first : first + BATCH]
        view_BHWC = np.concatenate([render_views(data, recipe, "photo", [0], "benchmark") for data in group])
        own_B, whole_B = torch.arange(len(group)), torch.ones(len(group))
        none_B4 = torch.zeros(len(group), 4, dtype=torch.int32)
        image_BCHW = prepare(torch.from_numpy(view_BHWC), own_B, whole_B, none_B4, mean=recipe.mean, std=recipe.std)
        parts.append(teacher.logits(image_BCHW).numpy().astype(np.float64))
    return np.concatenate(parts)
