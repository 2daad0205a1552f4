"""Trains the tables of the trellis quantiser on normal variates and prints `teacher_cache/record/trellis_tables.py`.

    python -m benchmarks.trellis_tables [--starts 6] > teacher_cache/record/trellis_tables.py

Alternates Viterbi encoding and centroids (generalised Lloyd) from keyed starts and keeps, for each number of bits, the
table with the least squared error on a second sample. Takes a few minutes; the file is part of the project, as its
values are part of what a basis holds.
"""

import argparse
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shards.rng import stream
from teacher_cache.record.trellis import MAX_BITS, WINDOW, quantise

_STATES = 1 << WINDOW
_SHAPE = (512, 200)
_ROUNDS = 40


def normals(purpose: str) -> NDArray[np.float32]:
    """A keyed sample of unit normal values."""
    normal = NormalDist()
    draw = stream(0, "trellis", purpose).uniforms(_SHAPE[0] * _SHAPE[1])
    return np.array([normal.inv_cdf(u + 2.0**-54) for u in draw], np.float32).reshape(_SHAPE)


def train(value_Bn: NDArray[np.float32], bits: int, start: int) -> NDArray[np.float32]:
    """A table of 2^W values for so many bits."""
    quantile_S = np.array([NormalDist().inv_cdf((i + 0.5) / _STATES) for i in range(_STATES)], np.float32)
    table_RS = np.zeros((MAX_BITS + 1, _STATES), np.float32)
    # Good levels lie as the density to the power 1/3 at many bits (a normal √3 as wide), as the density at few.
    level_S = quantile_S * (1 + (3**0.5 - 1) * min(1.0, (bits - 1) / 3))
    table_RS[bits, stream(start, "trellis start", bits).permutation(_STATES)] = level_S
    bits_n = np.full(_SHAPE[1], bits, np.uint8)
    for _ in range(_ROUNDS):
        # The first windows see the zeros before the stream, so they are left out.
        window = quantise(value_Bn, bits_n, table_RS)[:, WINDOW:].ravel()
        count_S = np.bincount(window, minlength=_STATES)
        sum_S = np.bincount(window, value_Bn[:, WINDOW:].ravel(), minlength=_STATES)
        np.divide(sum_S, count_S, out=table_RS[bits], where=count_S > 0, casting="same_kind")
    return np.asarray(table_RS[bits].round(3))


def squared_error(value_Bn: NDArray[np.float32], bits: int, table_S: NDArray[np.float32]) -> float:
    """Mean squared error of a table."""
    table_RS = np.broadcast_to(table_S, (MAX_BITS + 1, _STATES))
    window_Bn = quantise(value_Bn, np.full(_SHAPE[1], bits, np.uint8), table_RS)
    return float(np.mean((value_Bn - table_S[window_Bn]) ** 2, dtype=np.float64))


def main() -> None:
    """Train and print the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=6)
    starts = parser.parse_args().starts
    sample, other = normals("sample"), normals("other sample")
    tables, errors = [np.zeros(_STATES, np.float32)], [1.0]
    for bits in range(1, MAX_BITS + 1):
        trained = [train(sample, bits, start) for start in range(starts)]
        scores = [squared_error(other, bits, table) for table in trained]
        tables.append(trained[int(np.argmin(scores))])
        errors.append(min(scores))
    print('"""Trellis tables for unit normal values and their squared errors, by benchmarks/trellis_tables.py.')
    print('\nRow R holds the values of the 2^6 windows for R bits per value, in thousandths.\n"""\n')
    print("# fmt: off")
    print("ERRORS = (" + ", ".join(f"{error:.6f}" for error in errors) + ")\n")
    print("THOUSANDTHS = (")
    for table_S in tables:
        print("    (")
        whole = [f"{round(1000 * float(value))}," for value in table_S]
        for i in range(0, _STATES, 16):
            print("        " + " ".join(whole[i : i + 16]))
        print("    ),")
    print(")")


if __name__ == "__main__":
    main()
