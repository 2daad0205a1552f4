"""The measures of a record's truth, against their definitions written out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from teacher_cache.record.fidelity import Fidelity, LogProb, fidelity, log_softmax
from tests.logits_like import make_logits


def decoder(logit_BC: NDArray[np.float32]) -> LogProb:
    return lambda rows, temperature: log_softmax(logit_BC[rows], temperature)


def softmax(logit_BC: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    power = np.exp(logit_BC.astype(np.float64) / temperature)
    return power / power.sum(axis=1, keepdims=True)


def test_exact_records_have_no_error() -> None:
    logit_BC = make_logits(300, 50)
    for at in fidelity(logit_BC, decoder(logit_BC)):
        assert (at.kl, at.kl_p99, at.gradient_error, at.bias) == (0, 0, 0, 0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_measures_follow_their_formulas(temperature: float) -> None:
    """Two batches of 256 and a rest, a student, and features."""
    teacher, record, student = (make_logits(600, 50, seed=n) for n in (1, 2, 3))
    feature = np.random.default_rng(0).normal(size=(600, 7))
    (at,) = fidelity(teacher, decoder(record), temperatures=[temperature], student_BC=student, feature_BD=feature)
    q, r, s = (softmax(z, temperature) for z in (teacher, record, student))
    kl_B = (q * np.log(q / r)).sum(axis=1)
    assert at.kl == pytest.approx(kl_B.mean())
    assert at.kl_p99 == pytest.approx(np.sort(kl_B)[594])
    parts = [slice(0, 256), slice(256, 512), slice(512, 600)]
    ratios = [
        np.linalg.norm((r[p] - q[p]).T @ feature[p]) / np.linalg.norm((s[p] - q[p]).T @ feature[p]) for p in parts
    ]
    assert at.gradient_error == pytest.approx(np.mean(ratios))
    true = (q * np.log(q / s)).sum(axis=1).mean()
    assert at.bias == pytest.approx(((r * np.log(r / s)).sum(axis=1).mean() - true) / true)


def test_without_a_student_the_student_is_uniform() -> None:
    teacher, record = make_logits(100, 50, seed=1), make_logits(100, 50, seed=2)
    (at,) = fidelity(teacher, decoder(record), temperatures=[2.0])
    (same,) = fidelity(
        teacher, decoder(record), temperatures=[2.0], student_BC=np.zeros((100, 50)), feature_BD=np.eye(100)
    )
    assert at.gradient_error == pytest.approx(same.gradient_error)
    assert at.bias == pytest.approx(same.bias)


def test_a_shared_error_weighs_more_than_independent_ones() -> None:
    """A bias survives the sum over a batch: with features alike, G must see it."""
    teacher = make_logits(256, 50, seed=1)
    draws = np.random.default_rng(0)
    bias = draws.normal(size=(1, 50)).astype(np.float32) * 0.1
    noise = draws.normal(size=(256, 50)).astype(np.float32) * 0.1
    alike = np.ones((256, 1))
    shared, spread = (
        fidelity(teacher, decoder(teacher + error), temperatures=[3.0], feature_BD=alike)[0].gradient_error
        for error in (bias, noise)
    )
    assert shared > 4 * spread


def test_a_missing_class_is_infinite_and_not_nan() -> None:
    """Top-k without a tail: the peers' records in the benchmark."""
    teacher = make_logits(300, 50)

    def nothing_but_the_first(rows: slice, temperature: float) -> NDArray[np.float64]:
        log_prob_BC = np.full(teacher[rows].shape, -np.inf)
        np.put_along_axis(log_prob_BC, teacher[rows].argmax(axis=1)[:, None], 0.0, axis=1)
        return log_prob_BC

    (at,) = fidelity(teacher, nothing_but_the_first, temperatures=[1.0])
    assert at.kl == at.kl_p99 == float("inf")
    assert np.isfinite(at.bias) and np.isfinite(at.gradient_error)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"student_BC": np.zeros((10, 49))}, "student"),
        ({"feature_BD": np.zeros((9, 4))}, "features"),
        ({"feature_BD": np.zeros(10)}, "features"),
    ],
    ids=["student of other classes", "features of other rows", "features without an axis"],
)
def test_arrays_that_disagree_are_refused(arguments: dict[str, NDArray[np.float64]], named: str) -> None:
    teacher = make_logits(10, 50)
    with pytest.raises(ValueError, match=named):
        fidelity(teacher, decoder(teacher), **arguments)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        fidelity(np.zeros((0, 50)), decoder(np.zeros((0, 50), np.float32)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_a_divergence_is_never_negative(temperature: float) -> None:
    """Log p of float32 does not sum to 1 exactly; what is left must not pass for a negative distance."""
    logit_BC = make_logits(40, 1000, seed=1)
    for scale in (1e-3, 1.0, 30.0):
        teacher = logit_BC * np.float32(scale)

        def rounded(rows: slice, tau: float, teacher: NDArray[np.float32] = teacher) -> NDArray[np.float32]:
            return log_softmax(teacher[rows], tau).astype(np.float32) + np.float32(1e-7)

        for part in (slice(0, 1), slice(0, 40)):
            (at,) = fidelity(teacher[part], rounded, temperatures=[temperature])
            assert 0 <= at.kl < 1e-9 and 0 <= at.kl_p99 < 1e-9


@pytest.mark.parametrize(
    ("num_views", "words"),
    [
        (6, ("0.04", "0.001", "–")),
        (99, ("0.04", "0.001", "–")),
        (100, ("0.043", "0.0012", "0.0099")),
        (10_000, ("0.0432", "0.00123", "0.00988")),
    ],
)
def test_errors_are_said_with_the_digits_that_their_views_carry(num_views: int, words: tuple[str, ...]) -> None:
    """A mean over n views is known to about 1/√n of itself; a percentile of fewer than 100 is their largest."""
    row = Fidelity(temperature=1.0, kl=0.0012345, kl_p99=0.00988, gradient_error=0.04321, bias=0.0, num_views=num_views)
    assert row.words == words


def test_the_number_of_views_is_known() -> None:
    logit_BC = make_logits(300, 50)
    assert {at.num_views for at in fidelity(logit_BC, decoder(logit_BC))} == {300}
