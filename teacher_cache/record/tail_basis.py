"""The low-rank model of a teacher's logits, fitted once per cache, before the first unit.

A record keeps k classes by name. The others are described in the principal components of the centred logits, winsorised
at the (k+1)-th largest: peaks are not low-rank, what is left is (Karhunen–Loève). Before a coefficient is coded it is
predicted from the k known logits, as the conditional mean of a normal model (kriging; Rasmussen & Williams, Gaussian
Processes for Machine Learning, 2006, eq. 2.23), so bits are spent only on what the known logits do not tell.

All variances are measured on rows that the directions were not fitted on (cross-validation in 4 to 12 folds), so that a
calibration of fewer rows than classes does not promise more than it holds. Equal rows give equal bytes with the same
libraries on the same kind of machine; another BLAS may round otherwise, which is why the basis is stored in the cache
and used from there.

Legend: N calibration rows, C classes, r coefficients, K kept classes, W windows of the trellis.
"""

import hashlib
import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import CacheError
from teacher_cache.record.conditional_mean import predict
from teacher_cache.record.largest_logits import LargestLogits, centred, largest_logits, require_finite
from teacher_cache.record.levels import fit_levels
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.trellis import MAX_BITS, normal_tables

_TINY = 1e-12
_MIN_ROWS = 8
_MIN_RANK = 64
_MAX_RANK = 1024
_MAX_LOGIT = 1e12  # the fit squares and sums logits in float32
_PULLS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TailBasis:
    """What the decoder knows of a teacher before it sees a record; arrays are little-endian and never empty.

    Args:
        mean_C: float32, mean of the centred, winsorised logits.
        basis_Cr: float32, orthonormal principal directions; those with most bits first.
        variance_r: float32, variance of each coefficient (the prior of the prediction).
        noise_C: float32, variance of each class outside the basis.
        scale_r: float32, standard deviation of each coefficient once predicted.
        bits_r: uint8, bits of each coefficient in the tail code.
        table_RW: float32 (R, W), the trellis tables.
        level_limit_K, level_count_K: float32 and uint8, the code of the kept logits (`levels.LevelCode`).
        slope_r, offset_r: float32, the line from predicted to expected coefficients.
        pull: float32 (1,), how far the prediction follows a kept logit above the k-th, in [0, 1].
        low: float32 (1,), centred logits below are cut: three times as low as any calibration row went.
    """

    mean_C: NDArray[np.float32]
    basis_Cr: NDArray[np.float32]
    variance_r: NDArray[np.float32]
    noise_C: NDArray[np.float32]
    scale_r: NDArray[np.float32]
    bits_r: NDArray[np.uint8]
    table_RW: NDArray[np.float32]
    level_limit_K: NDArray[np.float32]
    level_count_K: NDArray[np.uint8]
    slope_r: NDArray[np.float32]
    offset_r: NDArray[np.float32]
    pull: NDArray[np.float32]
    low: NDArray[np.float32]

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, as the store keeps them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "TailBasis":
        """The basis that `to_arrays` wrote; KeyError for a missing array."""
        return cls(**{f.name: np.asarray(arrays[f.name]) for f in fields(cls)})

    @property
    def digest(self) -> str:
        """sha256 (hex) over names, dtypes, shapes and bytes."""
        sha = hashlib.sha256()
        for name, array in sorted(self.to_arrays().items()):
            sha.update(repr((name, array.dtype.str, array.shape)).encode())
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def fit_basis(logit_NC: NDArray[Any], record_format: RecordFormat) -> TailBasis:
    """Fit the model of a teacher on calibration logits.

    Args:
        logit_NC: (N, C) teacher logits of views like those of the cache, any float dtype; views of one sample next to
            each other, so that the folds hold different samples.
        record_format: of kind "topk" or "lowrank".

    Raises:
        ValueError: the kind takes no basis, the shape is not (N, C), or there are fewer than 8 rows.
        CacheError: a row holds NaN or infinity, or logits too large to be squared in float32.
    """
    logit_NC = np.asarray(logit_NC)
    if not record_format.needs_basis:
        raise ValueError(f"record kind {record_format.kind!r} takes no tail basis")
    if logit_NC.ndim != 2 or logit_NC.shape[1] != record_format.num_classes or len(logit_NC) < _MIN_ROWS:
        raise ValueError(
            f"calibration logits: expected (N ≥ {_MIN_ROWS}, {record_format.num_classes}), got {logit_NC.shape}"
        )
    require_finite(logit_NC)
    z_NC = centred(logit_NC.astype(np.float32, copy=False))
    if (most := float(np.abs(z_NC).max())) > _MAX_LOGIT:
        raise CacheError(
            f"calibration logits: expected at most {_MAX_LOGIT:.0e} from their mean, got {most:.3g}; check the "
            "teacher's weights, or keep its logits whole with --record dense"
        )
    largest = largest_logits(z_NC, record_format.k)
    tail_NC = np.minimum(z_NC, largest.edge_B1)
    tail_bits = 8 * record_format.tail_bytes
    held = _held_out(tail_NC, largest, min(max(_MIN_RANK, tail_bits), _MAX_RANK))
    table_RW, error_R = normal_tables()
    bits_r = allot(held.residual_r, tail_bits, error_R)
    num_used = max(int((bits_r > 0).sum()), min(_MIN_RANK, len(bits_r)))
    order_r = np.argsort(-bits_r.astype(np.int64), kind="stable")[:num_used]
    mean_C, basis_Cr = _principal(tail_NC, len(bits_r))
    levels = fit_levels(largest.top_BK)
    return TailBasis(
        mean_C=mean_C.astype("<f4"),
        basis_Cr=np.ascontiguousarray(basis_Cr[:, order_r], "<f4"),
        variance_r=held.variance_r[order_r].astype("<f4"),
        noise_C=held.noise_C.astype("<f4"),
        scale_r=np.sqrt(held.residual_r[order_r]).astype("<f4"),
        bits_r=bits_r[order_r],
        table_RW=table_RW.astype("<f4"),
        level_limit_K=levels.limit_K.astype("<f4"),
        level_count_K=levels.count_K,
        slope_r=held.slope_r[order_r].astype("<f4"),
        offset_r=held.offset_r[order_r].astype("<f4"),
        pull=np.array([held.pull], "<f4"),
        low=np.array([3 * min(float(z_NC.min()), -1.0)], "<f4"),
    )


def allot(variance_r: NDArray[np.float64], total_bits: int, error_R: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Bits of each coefficient by greedy water-filling: the next bit goes where it removes most squared error."""
    bits_r = np.zeros(len(variance_r), np.uint8)
    gain_R = error_R[:-1] - error_R[1:]
    heap = [(-float(v * gain_R[0]), j) for j, v in enumerate(variance_r)]
    heapq.heapify(heap)
    for _ in range(min(total_bits, MAX_BITS * len(variance_r))):
        _, j = heapq.heappop(heap)
        bits_r[j] += 1
        if bits_r[j] < MAX_BITS:
            heapq.heappush(heap, (-float(variance_r[j] * gain_R[bits_r[j]]), j))
    return bits_r


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldOut:
    variance_r: NDArray[np.float64]
    slope_r: NDArray[np.float64]
    offset_r: NDArray[np.float64]
    residual_r: NDArray[np.float64]
    noise_C: NDArray[np.float64]
    pull: float


def _held_out(tail_NC: NDArray[np.float32], largest: LargestLogits, max_rank: int) -> _HeldOut:
    """Variances before and after prediction on rows that the directions were not fitted on, averaged over folds."""
    num_rows, num_classes = tail_NC.shape
    # Directions are as many as a fit without one fold has: with few rows, small folds.
    num_folds = 4 if num_rows > 1000 else min(12, num_rows // 2)
    edge = np.linspace(0, num_rows, num_folds + 1).astype(int)
    num_directions = min(max_rank, num_classes - 1, num_rows - int(np.diff(edge).max()) - 1)
    variance_r, noise_C = np.zeros(num_directions), np.zeros(num_classes)
    moment_P5r = np.zeros((len(_PULLS), 5, num_directions))
    for low, high in itertools.pairwise(edge.tolist()):
        mean_C, basis_Cr = _principal(np.delete(tail_NC, slice(low, high), axis=0), num_directions)
        left_BC = tail_NC[low:high] - mean_C
        code_Br = left_BC @ basis_Cr
        fold_variance_r = _mean_square(code_Br)
        fold_noise_C = _noise(left_BC - code_Br @ basis_Cr.T)
        fold_noise_C = np.maximum(fold_noise_C, _least_noise(basis_Cr, fold_variance_r, largest.class_BK.shape[1]))
        variance_r += fold_variance_r / num_folds
        noise_C += fold_noise_C / num_folds
        for p, pull in enumerate(_PULLS):
            model = (mean_C, basis_Cr, fold_variance_r, fold_noise_C)
            guess_Br = predict(largest.class_BK[low:high], largest.top_BK[low:high], pull, *model)
            moment_P5r[p] += _moments(code_Br, guess_Br) / num_folds
    fits = [_line(*moment_5r) for moment_5r in moment_P5r]
    best = int(np.argmin([np.log(residual_r).sum() for _, _, residual_r in fits]))
    slope_r, offset_r, residual_r = fits[best]
    return _HeldOut(
        variance_r=variance_r + _TINY,
        slope_r=slope_r,
        offset_r=offset_r,
        residual_r=residual_r,
        noise_C=noise_C,
        pull=_PULLS[best],
    )


def _moments(code_Br: NDArray[Any], guess_Br: NDArray[Any]) -> NDArray[np.float64]:
    """First and second moments of code and guess per coefficient, (5, r) float64."""
    pairs = (code_Br, guess_Br, code_Br * code_Br, code_Br * guess_Br, guess_Br * guess_Br)
    return np.stack([value.mean(axis=0, dtype=np.float64) for value in pairs])


def _line(
    code_r: NDArray[np.float64],
    guess_r: NDArray[np.float64],
    code2_r: NDArray[np.float64],
    cross_r: NDArray[np.float64],
    guess2_r: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Least-squares line code ≈ slope·guess + offset per coefficient, and what it leaves of the variance.

    The kept classes are known because they are large, which the normal model does not know: its mean is biased.
    """
    slope_r = np.clip((cross_r - code_r * guess_r) / (guess2_r - guess_r**2 + _TINY), 0.0, 1.5)
    offset_r = code_r - slope_r * guess_r
    spread_r = code2_r - code_r**2 - 2 * slope_r * (cross_r - code_r * guess_r)
    return slope_r, offset_r, np.maximum(spread_r + slope_r**2 * (guess2_r - guess_r**2), 0.0) + _TINY


def _mean_square(value: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.mean(np.square(value), axis=0, dtype=np.float64))


def _noise(left_BC: NDArray[Any]) -> NDArray[np.float64]:
    """Variance per class, never near zero: the prediction divides by it."""
    noise_C = _mean_square(left_BC)
    return np.asarray(np.maximum(noise_C, 0.1 * noise_C.mean() + 1e-6))


def _least_noise(basis_Cr: NDArray[Any], variance_r: NDArray[np.float64], num_kept: int) -> float:
    """Noise below which the float32 Cholesky factor of k kept classes may fail: 4·k²·ε of the largest class variance.

    Higham, Accuracy and Stability of Numerical Algorithms (2002), theorem 10.7. A teacher whose logits span fewer
    dimensions than its classes, or whose logits are huge, has less than that; real ones have hundreds of times as much.
    """
    largest = float((np.square(basis_Cr, dtype=np.float64) @ variance_r).max(initial=0.0))
    return 4 * num_kept**2 * float(np.finfo(np.float32).eps) * largest


def _principal(tail_NC: NDArray[np.float32], rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and first `rank` principal directions (C, rank), through the smaller of the two Gram matrices.

    With more classes than rows this never makes a C × C matrix. Each direction's entry of largest size is positive.
    """
    mean_C = tail_NC.mean(axis=0, dtype=np.float64).astype(np.float32)
    left_NC = tail_NC - mean_C
    if len(left_NC) > left_NC.shape[1]:
        _, vector = np.linalg.eigh((left_NC.T @ left_NC).astype(np.float64))
        basis_Cr = np.ascontiguousarray(vector[:, ::-1][:, :rank])
    else:
        value, vector = np.linalg.eigh((left_NC @ left_NC.T).astype(np.float64))
        top_Nr = np.ascontiguousarray(vector[:, ::-1][:, :rank], np.float32)
        basis_Cr = (left_NC.T @ top_Nr).astype(np.float64)
        basis_Cr = np.linalg.qr(basis_Cr)[0] if value[-1] > 0 else np.eye(left_NC.shape[1], rank)
    largest_r = np.abs(basis_Cr).argmax(axis=0)
    basis_Cr = basis_Cr * np.where(basis_Cr[largest_r, np.arange(basis_Cr.shape[1])] < 0, -1.0, 1.0)
    return mean_C, basis_Cr.astype(np.float32)
