"""Decode the stored logits of one view with zarr and NumPy alone; docs/dev/record.md explains the arrays."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray


def log_prob(url: str, view: int, shard: int, row: int, tau: float) -> NDArray[Any]:
    """Return log p of every class at temperature τ, from a cache of kind `topk` or `lowrank`."""
    group = zarr.open_group(url, mode="r")
    basis = {name: array[...].astype(float) for name, array in group["tail_basis"].arrays()}
    named = group["class_index"][view, shard, row].astype(int)
    code = group["logit"][view, shard, row].astype(float)
    ratio = code[:-1] / basis["level_count_K"]
    top = np.cumsum(basis["level_limit_K"] * np.append(ratio[0], -(ratio[1:] ** 2)))
    spread = np.sqrt(basis["variance_r"])
    factor = basis["basis_Cr"][named] * spread
    seen = top[-1] + basis["pull"] * (top - top[-1]) - basis["mean_C"][named]
    weight = np.linalg.solve(factor @ factor.T + np.diag(basis["noise_C"][named]), seen)
    coefficient = basis["slope_r"] * (weight @ factor * spread) + basis["offset_r"]
    if "tail" in group:
        stream, end = np.append(np.zeros(6, int), np.unpackbits(group["tail"][view, shard, row])), 0
        for j in np.flatnonzero(basis["bits_r"]):
            end += (bits := int(basis["bits_r"][j]))
            window = stream[end : end + 6] @ (32, 16, 8, 4, 2, 1)
            coefficient[j] += basis["table_RW"][bits, window] * basis["scale_r"][j]
    tail = np.minimum(basis["mean_C"] + basis["basis_Cr"] @ coefficient, top[-1])
    total = tail.sum() - tail[named].sum() + top.sum()
    tail = np.minimum(tail - total / (len(tail) - len(top)), top[-1])
    z = np.minimum(tail + (code[-1] - 128) / 32 * min(1, 1 / tau), top[1])
    z[named] = top
    return z / tau - np.log(np.exp((z - top[0]) / tau).sum()) - top[0] / tau


def log_prob_dense8(url: str, view: int, shard: int, row: int, tau: float) -> NDArray[Any]:
    """Return the same from a cache of kind `dense8`."""
    group = zarr.open_group(url, mode="r")
    code = group["logit"][view, shard, row].astype(float)
    z = -float(group["logit_range"][view, shard, row]) * (code / 255) ** 1.5 / tau
    return z - np.log(np.exp(z).sum())
