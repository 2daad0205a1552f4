"""Trellis-coded quantisation: R bits per coefficient, about .9 dB better than the best scalar quantiser.

The decoder reads the last W bits of the stream up to and including the R bits of a coefficient and looks the value up
in a table of 2^W entries for that R: no state, so all coefficients decode at once. The encoder finds the best stream
with the Viterbi algorithm. Trellis-coded quantisation: Marcellin & Fischer, IEEE Trans. Commun. 38 (1990); the sliding
window over the bit stream is the bit-shift trellis of QTIP (Tseng et al., NeurIPS 2024). Tables are trained on normal
variates, not on any teacher.

Legend: B rows, n coefficients, S = 2^W windows.
"""

import numpy as np
from numpy.typing import NDArray

from teacher_cache.record.trellis_tables import ERRORS, THOUSANDTHS

WINDOW = 6
"""W: bits of the stream that a value depends on."""

MAX_BITS = 6
"""Largest R."""

_STATES = 1 << WINDOW


def quantise(
    value_Bn: NDArray[np.float32], bits_n: NDArray[np.uint8], table_RS: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The windows (B, n) uint8 whose table values are nearest to the values in squared error, over all streams.

    Args:
        value_Bn: coefficients divided by their standard deviations.
        bits_n: R of each coefficient, 1 to MAX_BITS; the symbol of a coefficient is the low R bits of its window.
        table_RS: (MAX_BITS + 1, 2^W) values; row R belongs to R bits.
    """
    value_nB = np.ascontiguousarray(value_Bn.T, np.float32)
    num_rows = value_nB.shape[1]
    # (x − t)² without x², which is the same for all paths: t² − 2 t x as a product of (−2t, t²) and (x, 1).
    line_RS2 = np.stack([-2 * table_RS, table_RS**2], axis=-1).astype(np.float32)
    point_2B = np.ones((2, num_rows), np.float32)
    cost_SB = np.full((_STATES, num_rows), 1e9, np.float32)
    cost_SB[0] = 0.0  # bits before the stream are zeros
    branches: list[NDArray[np.uint8]] = []
    for value_B, bits in zip(value_nB, bits_n.tolist(), strict=True):
        best_sB, branch_sB = _best_branch(cost_SB.reshape(1 << bits, _STATES >> bits, num_rows))
        branches.append(branch_sB)
        point_2B[0] = value_B
        cost_SB = line_RS2[bits] @ point_2B
        cost_SB.reshape(_STATES >> bits, 1 << bits, num_rows)[...] += best_sB[:, None]
    return _trace(cost_SB.argmin(axis=0), branches, bits_n)


def _best_branch(cost_QsB: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Minimum over the first axis and where it is: a knock-out, as `argmin` over a leading axis is slow.

    Each round plays the upper half against the lower and settles one binary place of the winner's index; byte masks
    take the places settled before along with the winner.
    """
    branch_QsB: NDArray[np.uint8] | None = None
    while (half := len(cost_QsB) // 2) > 0:
        low_QsB, high_QsB = cost_QsB[:half], cost_QsB[half:]
        upper_QsB = (high_QsB < low_QsB).view(np.uint8)
        cost_QsB = np.minimum(low_QsB, high_QsB)
        place_QsB = upper_QsB * np.uint8(half)
        if branch_QsB is not None:
            mask_QsB = np.negative(upper_QsB)
            mask_QsB &= branch_QsB[:half] ^ branch_QsB[half:]
            place_QsB |= branch_QsB[:half] ^ mask_QsB
        branch_QsB = place_QsB
    assert branch_QsB is not None
    return cost_QsB[0], branch_QsB[0]


def _trace(last_B: NDArray[np.intp], branches: list[NDArray[np.uint8]], bits_n: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Follow the chosen branches back from the last windows."""
    num_rows = len(last_B)
    window_nB = np.empty((len(branches), num_rows), np.uint8)
    row_B = np.arange(num_rows)
    window_B = last_B.astype(np.int64)
    for j in range(len(branches) - 1, -1, -1):
        window_nB[j] = window_B
        bits = int(bits_n[j])
        state_B = window_B >> bits
        branch_B = branches[j].reshape(-1).take(state_B * num_rows + row_B)
        window_B = state_B | (branch_B.astype(np.int64) << (WINDOW - bits))
    return window_nB.T


def normal_tables() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Tables for unit normal values: (MAX_BITS + 1, 2^W) float32, and the squared error of each R (1 for R = 0)."""
    return (np.array(THOUSANDTHS, np.float64) / 1000).astype(np.float32), np.array(ERRORS)
