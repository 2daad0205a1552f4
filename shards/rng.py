"""Keyed random streams: every random choice of the project is a pure function of (seed, purpose, key …).

A stream is `Philox4x64` keyed with the BLAKE2b hash of its name. Only Philox's raw 64-bit words are used: NumPy keeps
them stable across versions, which it does not promise for the distribution methods of `Generator`; uniforms, normals,
betas and permutations are derived from the words here. There is no global generator and no default seed.
"""

import hashlib
import math
import threading
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NORMAL = NormalDist()


def stream(seed: int, purpose: str, *key: str | int) -> "Stream":
    """The stream named by (seed, purpose, key …); equal names give equal streams, different names independent ones.

    Args:
        seed: any integer.
        purpose: what the stream decides ("view", "blocks", "order" …), so that purposes never share randomness.
        key: strings and integers; ("1", 1) and (1, "1") are different keys.
    """
    # repr of a tuple of str and int is injective: strings are quoted and escaped, integers are not.
    name = repr((int(seed), purpose, *(k if isinstance(k, str) else int(k) for k in key)))
    return Stream(hashlib.blake2b(name.encode(), digest_size=16).digest())


_AHEAD = 32
"""Words that a stream computes at once: a call of the generator costs as much as these words."""


class Stream:
    """A sequence of random values; asking for more continues it, so the order of the calls is part of its meaning."""

    __slots__ = ("_ahead", "_key", "_num_blocks")

    def __init__(self, key: bytes) -> None:
        self._key = np.frombuffer(key, "<u8")
        self._ahead: list[int] = []  # computed words that are not used yet, the next one last
        self._num_blocks = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` raw words, uint64."""
        if not self._ahead:
            word_N = self._computed(count)
            self._ahead = word_N[count:][::-1].tolist()
            return word_N[:count]
        missing = count - len(self._ahead)
        if missing > 0:
            self._ahead = self._computed(missing)[::-1].tolist() + self._ahead
        return np.array([self._ahead.pop() for _ in range(count)], np.uint64)

    def _word(self) -> int:
        """The next raw word."""
        if not self._ahead:
            self._ahead = self._computed(_AHEAD)[::-1].tolist()
        return self._ahead.pop()

    def _computed(self, count: int) -> NDArray[np.uint64]:
        """At least `count` words behind those that are computed already, in whole blocks of four."""
        num_blocks = -(-count // 4)
        word_N = _GENERATOR.words(self._key, self._num_blocks, 4 * num_blocks)
        self._num_blocks += num_blocks
        return word_N

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """The next float in [low, high), 53 random bits."""
        word = self._ahead.pop() if self._ahead else self._word()
        return low + (high - low) * ((word >> 11) * 2.0**-53)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """The next `count` floats in [0, 1), float64."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, bound: int) -> int:
        """An integer in [0, bound), unbiased (rejection on the word)."""
        if bound < 1:
            raise ValueError(f"below: bound must be at least 1, got {bound}")
        limit = (1 << 64) - (1 << 64) % bound
        while True:
            word = self._word()
            if word < limit:
                return word % bound

    def normal(self, mean: float = 0.0, std: float = 1.0) -> float:
        """A normal value by inversion: one word, monotone in it."""
        return mean + std * _NORMAL.inv_cdf(self.uniform() + 2.0**-54)

    def beta(self, a: float, b: float) -> float:
        """A Beta(a, b) value as a ratio of two gammas."""
        x = self._gamma(a)
        y = self._gamma(b)
        return x / (x + y) if x + y > 0.0 else 0.5

    def _gamma(self, shape: float) -> float:
        """Gamma(shape, 1): Marsaglia & Tsang, ACM TOMS 26 (2000), boosted by U^(1/shape) below 1."""
        if shape <= 0.0:
            raise ValueError(f"gamma: shape must be positive, got {shape}")
        boost = 1.0
        if shape < 1.0:
            boost = (self.uniform() + 2.0**-54) ** (1.0 / shape)
            shape += 1.0
        d = shape - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        while True:
            x = self.normal()
            v = (1.0 + c * x) ** 3
            if v > 0.0 and math.log(self.uniform() + 2.0**-54) < 0.5 * x * x + d - d * v + d * math.log(v):
                return boost * d * v

    def permutation(self, count: int) -> NDArray[np.int64]:
        """A permutation of range(count), int64: the order of `count` words, ties by position."""
        return np.argsort(self.words(count), kind="stable")


class _Generator(threading.local):
    """One Philox a thread, which is put where a stream is: to make one for each stream costs ten times as much."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(0)
        self._state: Any = self._philox.state
        self._counter = np.zeros(4, np.uint64)

    def words(self, key: NDArray[np.uint64], first_block: int, count: int) -> NDArray[np.uint64]:
        """Some words of the stream of a key, from a block of four words on."""
        self._counter[0] = first_block
        self._state["state"] = {"counter": self._counter, "key": key}
        self._philox.state = self._state  # its buffer is empty: the next word begins a block
        return self._philox.random_raw(count)


_GENERATOR = _Generator()
