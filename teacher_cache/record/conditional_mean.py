"""Predict the tail from the known logits: the conditional mean of a normal model (kriging).

The model: winsorised logits are mean + basis·c + noise, c normal with variance_r, noise normal with noise_C. Observed
are the k kept classes, at their logits pulled down towards the k-th (`pull` 1: as they are, 0: all at the k-th), since
peaks are outside the model. Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eq. 2.23, in the
weight space: k × k systems per row, no C × C matrix.

Legend: B rows, C classes, K kept classes, r coefficients.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GRAM_CLASSES = 2048
"""Up to so many classes the covariance of all pairs is kept (16 MB) and looked up instead of multiplied out."""


class Predictor:
    """The constants of the prediction on a device."""

    def __init__(self, pull: float, mean_C: Tensor, basis_Cr: Tensor, variance_r: Tensor, noise_C: Tensor) -> None:
        """Keep the model; float32 tensors on one device."""
        self._pull = pull
        self._mean_C = mean_C
        self._noise_C = noise_C
        self._scale_r = variance_r.sqrt()
        self._factor_Cr = basis_Cr * self._scale_r
        self._gram_CC = self._factor_Cr @ self._factor_Cr.T if len(mean_C) <= _GRAM_CLASSES else None

    def __call__(self, class_BK: Tensor, top_BK: Tensor) -> Tensor:
        """Expected coefficients (B, r) given the classes (B, k) int64 and their logits (B, k) float32, descending."""
        num_kept = class_BK.shape[1]
        floor_B1 = top_BK[:, -1:]
        seen_BK = floor_B1 + self._pull * (top_BK - floor_B1) - self._mean_C[class_BK]
        gram_BKK = self._gram(class_BK)
        gram_BKK.diagonal(dim1=1, dim2=2).add_(self._noise_C[class_BK])
        # cholesky_ex: no check that would make the host wait for the device; noise keeps the matrix positive.
        lower_BKK, _ = torch.linalg.cholesky_ex(gram_BKK)
        weight_BK1 = torch.cholesky_solve(seen_BK.reshape(-1, num_kept, 1), lower_BKK)
        code_Br = torch.nn.functional.embedding_bag(
            class_BK, self._factor_Cr, per_sample_weights=weight_BK1[:, :, 0].contiguous(), mode="sum"
        )
        return code_Br.mul_(self._scale_r)

    def _gram(self, class_BK: Tensor) -> Tensor:
        """Model covariance of the kept classes, (B, k, k)."""
        if self._gram_CC is not None:
            return self._gram_CC[class_BK[:, :, None], class_BK[:, None, :]]
        factor_BKr = torch.nn.functional.embedding(class_BK, self._factor_Cr)
        return factor_BKr @ factor_BKr.transpose(1, 2)


def predict(
    class_NK: NDArray[np.int64],
    top_NK: NDArray[np.float32],
    pull: float,
    mean_C: NDArray[Any],
    basis_Cr: NDArray[Any],
    variance_r: NDArray[Any],
    noise_C: NDArray[Any],
) -> NDArray[np.float32]:
    """`Predictor` for arrays, in pieces of bounded memory; (N, r) float32."""
    model = [torch.from_numpy(a).to(torch.float32) for a in (mean_C, basis_Cr, variance_r, noise_C)]
    with torch.autocast("cpu", enabled=False):  # the caller's own would round the model
        predictor = Predictor(pull, *model)
        parts = [
            predictor(torch.from_numpy(class_NK[i : i + 512]), torch.from_numpy(top_NK[i : i + 512]))
            for i in range(0, len(class_NK), 512)
        ]
    return np.asarray(torch.cat(parts).numpy())
