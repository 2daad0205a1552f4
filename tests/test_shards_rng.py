"""Streams: what they are keyed by, and that they are what they say."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from shards.rng import Stream, stream


def test_golden_words_never_change() -> None:
    """A change here changes every view of every cache in the world."""
    assert stream(0, "view", "n01440764_18", 3).words(3).tolist() == GOLDEN_WORDS
    assert stream(7, "blocks", "train-000000.tar", 0).permutation(8).tolist() == GOLDEN_PERMUTATION


def test_words_are_those_of_philox_whoever_asks_in_what_portions_and_between_whom() -> None:
    """Streams are read in turns, a word or many at a time, in several threads."""

    def walk(seed: int) -> None:
        dice = np.random.Generator(np.random.PCG64(seed))
        keys = [dice.bytes(16) for _ in range(4)]
        streams = [Stream(key) for key in keys]
        philox = [np.random.Philox(key=np.frombuffer(key, "<u8")) for key in keys]
        for _ in range(400):
            which, count = int(dice.integers(4)), int(dice.choice([0, 1, 2, 3, 4, 5, 31, 32, 33, 200]))
            if dice.integers(2):
                assert streams[which].words(count).tolist() == philox[which].random_raw(count).tolist()
            else:
                assert streams[which].uniform() == (int(philox[which].random_raw()) >> 11) * 2.0**-53

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(walk, range(8)))


def test_equal_names_give_equal_streams_and_all_else_differs() -> None:
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"), (0, "a", 1, 2), (0, "a", "1, 2"), (0, "a", 12)]
    first = [tuple(stream(*name).words(2).tolist()) for name in names]
    assert len(set(first)) == len(names)
    assert first == [tuple(stream(*name).words(2).tolist()) for name in names]


def test_numpy_integers_name_the_same_stream() -> None:
    assert stream(0, "a", np.int32(5)).uniform() == stream(np.int64(0), "a", 5).uniform()


def test_global_generators_are_untouched() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    stream(0, "x").permutation(100)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index] # noqa: NPY002


@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (lambda s: s.uniform(), stats.uniform()),
        (lambda s: s.normal(), stats.norm()),
        (lambda s: s.beta(0.8, 0.8), stats.beta(0.8, 0.8)),
        (lambda s: s.beta(1.0, 1.0), stats.uniform()),
        (lambda s: s.beta(2.0, 5.0), stats.beta(2, 5)),
    ],
    ids=["uniform", "normal", "beta.8", "beta1", "beta2,5"],
)
def test_values_follow_their_law_and_a_wrong_one_is_rejected(draw, law) -> None:  # type: ignore[no-untyped-def]
    source = stream(3, "law")
    values = np.array([draw(source) for _ in range(20_000)])
    assert stats.kstest(values, law.cdf).pvalue > 1e-3
    assert stats.kstest(values, lambda x: law.cdf(x * 1.1)).pvalue < 1e-6


def test_below_is_unbiased_and_permutations_are_permutations() -> None:
    source = stream(3, "below")
    counts = np.bincount([source.below(7) for _ in range(21_000)], minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3
    firsts = [stream(0, "p", i).permutation(5) for i in range(5_000)]
    assert all(sorted(p.tolist()) == [0, 1, 2, 3, 4] for p in firsts)
    assert stats.chisquare(np.bincount([p[0] for p in firsts])).pvalue > 1e-3
    with pytest.raises(ValueError, match="at least 1"):
        source.below(0)


GOLDEN_WORDS = [12335944821229461619, 17405214286462897652, 17138040718734481070]
GOLDEN_PERMUTATION = [4, 7, 5, 1, 2, 0, 3, 6]
