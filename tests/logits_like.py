"""Logits that look like those of an ImageNet network: a low-rank tail, a few peaks among related classes, noise."""

import numpy as np
from numpy.typing import NDArray


def make_logits(
    num_rows: int, num_classes: int, *, seed: int = 0, peak: float = 6.0, noise: float = 0.3, rank: int = 40
) -> NDArray[np.float32]:
    """(N, C) float32; rows of different seeds share the structure of the classes and nothing else."""
    shared, own = np.random.default_rng(1234), np.random.default_rng([1, seed])
    rank = min(rank, num_classes // 2)
    mixing = shared.normal(size=(rank, num_classes)) * (1.5 / np.sqrt(1 + np.arange(rank)))[:, None]
    prior = shared.normal(size=num_classes) * 0.3
    logit_NC = own.normal(size=(num_rows, rank)) @ mixing * 0.5 + prior
    logit_NC += noise * own.normal(size=(num_rows, num_classes))
    first = own.integers(0, num_classes, num_rows)
    for step in range(3):
        column = (first + step) % num_classes
        logit_NC[np.arange(num_rows), column] += peak * own.random(num_rows) / (1 + step)
    return logit_NC.astype(np.float32)
