"""The tail model: fitted the same way by whoever fits it, honest with few rows, and better than what it replaces."""

import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shards.errors import CacheError
from teacher_cache.record.bits import Windows, pack
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.conditional_mean import predict
from teacher_cache.record.largest_logits import centred, largest_logits
from teacher_cache.record.levels import decode_levels, encode_levels, fit_levels
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, allot, fit_basis
from teacher_cache.record.trellis import MAX_BITS, WINDOW, normal_tables, quantise
from tests.logits_like import make_logits

LLOYD_MAX = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000642)
"""Least squared error of a scalar quantiser of R bits for a unit normal (Max, IRE Trans. Inf. Theory 6, 1960)."""


def kl_of(basis: TailBasis, record_format: RecordFormat, logit_BC: NDArray[np.float32], temperature: float) -> float:
    codec = RecordCodec(record_format, basis)
    record = {name: torch.from_numpy(value) for name, value in codec.encode(logit_BC).items()}
    got = codec.log_prob(record, temperature).double()
    want = torch.log_softmax(torch.from_numpy(logit_BC).double() / temperature, dim=-1)
    return float((want.exp() * (want - got)).sum(dim=1).mean())


FIT = """
import numpy as np
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from tests.logits_like import make_logits
print(fit_basis(make_logits(200, 80, seed=1), RecordFormat.chosen("lowrank", 80)).digest)
"""


@pytest.mark.slow
def test_another_process_fits_the_same_bytes() -> None:
    """Many processes may start stage 1; whoever fits the basis fits this one."""
    here = fit_basis(make_logits(200, 80, seed=1), RecordFormat.chosen("lowrank", 80)).digest
    there = subprocess.run([sys.executable, "-c", FIT], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_dtype_of_the_rows_does_not_matter(dtype: type) -> None:
    record = RecordFormat.chosen("topk", 80)
    rows = make_logits(100, 80, seed=1).astype(np.float16)
    assert fit_basis(rows.astype(dtype), record).digest == fit_basis(rows.astype(np.float32), record).digest


def test_arrays_round_trip_and_the_digest_sees_each() -> None:
    basis = fit_basis(make_logits(100, 80, seed=1), RecordFormat.chosen("lowrank", 80))
    arrays = basis.to_arrays()
    assert TailBasis.from_arrays(arrays).digest == basis.digest
    for name, array in arrays.items():
        assert array.size and array.dtype.str in ("<f4", "|u1")
        changed = array.copy()
        changed.reshape(-1)[-1] += 1
        assert replace(basis, **{name: changed}).digest != basis.digest


def test_directions_are_orthonormal_with_fixed_signs() -> None:
    for rows, classes in ((300, 80), (60, 200)):  # both sides of the Gram matrix
        basis_Cr = fit_basis(make_logits(rows, classes, seed=1), RecordFormat.chosen("lowrank", classes)).basis_Cr
        gram = basis_Cr.T @ basis_Cr
        assert np.allclose(gram, np.eye(len(gram)), atol=1e-4)
        assert (basis_Cr[np.abs(basis_Cr).argmax(axis=0), np.arange(basis_Cr.shape[1])] > 0).all()


def test_the_tail_code_pays_for_its_bytes() -> None:
    """The same kept classes, with the code of the others and without it."""
    rows, logit_BC = make_logits(600, 300, seed=1), make_logits(200, 300, seed=2)
    coded = RecordFormat.chosen("lowrank", 300, k=8)
    plain = RecordFormat.chosen("topk", 300, k=8)
    assert kl_of(fit_basis(rows, coded), coded, logit_BC, 3.0) < 0.5 * kl_of(
        fit_basis(rows, plain), plain, logit_BC, 3.0
    )


@pytest.mark.parametrize("kind", ["topk", "lowrank"])
def test_prediction_from_the_kept_classes_lowers_the_error(kind: str) -> None:
    """Against the same basis without prediction: slope 0 leaves the mean alone."""
    record = RecordFormat.chosen(kind, 300, k=8)
    basis = fit_basis(make_logits(600, 300, seed=1, noise=0.1), record)
    blind = replace(basis, slope_r=np.zeros_like(basis.slope_r), offset_r=np.zeros_like(basis.offset_r))
    logit_BC = make_logits(200, 300, seed=2, noise=0.1)
    assert kl_of(basis, record, logit_BC, 3.0) < 0.97 * kl_of(blind, record, logit_BC, 3.0)


@pytest.mark.slow
def test_few_rows_cost_little() -> None:
    """150 rows of 1,000 classes: variances are measured on rows that the directions have not seen."""
    record = RecordFormat.chosen("lowrank", 1000)
    logit_BC = make_logits(200, 1000, seed=2)
    few, many = (kl_of(fit_basis(make_logits(n, 1000, seed=1), record), record, logit_BC, 3.0) for n in (150, 1500))
    nothing = RecordFormat.chosen("topk", 1000, k=record.k)
    none = kl_of(fit_basis(make_logits(150, 1000, seed=1), nothing), nothing, logit_BC, 3.0)
    assert few < 1.6 * many
    assert few < 0.6 * none


def unforeseen(calibration_NC: NDArray[np.float32], logit_BC: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a fit leaves of the coefficients of other rows, over the standard deviation it announces, (B, r)."""
    record = RecordFormat.chosen("lowrank", logit_BC.shape[1])
    basis = fit_basis(calibration_NC, record)
    z_BC = centred(logit_BC)
    largest = largest_logits(z_BC, record.k)
    model = (basis.mean_C, basis.basis_Cr, basis.variance_r, basis.noise_C)
    guess_Br = predict(largest.class_BK, largest.top_BK, float(basis.pull[0]), *model)
    wanted_Br = (np.minimum(z_BC, largest.edge_B1) - basis.mean_C) @ basis.basis_Cr
    return np.asarray((wanted_Br - basis.slope_r * guess_Br - basis.offset_r) / basis.scale_r, np.float64)


@pytest.mark.parametrize(("rows", "classes"), [(150, 1000), (2000, 200)])
def test_the_model_foretells_rows_it_has_not_seen(rows: int, classes: int) -> None:
    """Variance left after the prediction is what `scale_r` says, and its mean is nought: else bits and G suffer."""
    left_Br = unforeseen(make_logits(rows, classes, seed=1), make_logits(2000, classes, seed=2))
    assert abs(np.log((left_Br**2).mean(axis=0)).mean()) < 0.15
    assert np.sqrt((left_Br.mean(axis=0) ** 2).mean()) < (0.06 if rows == 2000 else 0.2)


def test_knowing_classes_because_they_are_large_brings_no_bias() -> None:
    """Skewed logits, as real ones are: the largest are far above what a normal model expects, on one side only."""
    mixing = np.abs(np.random.default_rng(7).normal(size=(30, 200))) * (1.5 / np.sqrt(1 + np.arange(30)))[:, None]

    def skewed(seed: int) -> NDArray[np.float32]:
        draws = np.random.default_rng([5, seed])
        logit_NC = draws.exponential(size=(2000, 30)) @ mixing + 0.3 * draws.normal(size=(2000, 200))
        return np.asarray(logit_NC, np.float32)

    left_Br = unforeseen(skewed(1), skewed(2))
    assert np.sqrt((left_Br.mean(axis=0) ** 2).mean()) < 0.1


@pytest.mark.parametrize(
    "rows",
    [np.zeros((50, 100), np.float32), np.tile(make_logits(1, 100), (50, 1)), make_logits(8, 100)],
    ids=["all equal", "one row repeated", "eight rows"],
)
def test_degenerate_calibrations_still_decode(rows: NDArray[np.float32]) -> None:
    record = RecordFormat.chosen("lowrank", 100)
    assert np.isfinite(kl_of(fit_basis(rows, record), record, make_logits(20, 100, seed=2), 1.0))


def test_calibration_rows_that_are_not_finite_are_refused() -> None:
    rows = make_logits(20, 100)
    rows[7, 3] = np.nan
    with pytest.raises(CacheError, match="row 7 "):
        fit_basis(rows, RecordFormat.chosen("lowrank", 100))


@pytest.mark.parametrize("rows", [np.zeros((7, 100)), np.zeros((20, 99)), np.zeros(100)])
def test_calibrations_of_another_shape_are_refused(rows: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N ≥ 8, 100\)"):
        fit_basis(rows, RecordFormat.chosen("lowrank", 100))


def test_bits_go_where_they_remove_most() -> None:
    """Greedy allotment against every other allotment of four coefficients."""
    variance, error = np.array([9.0, 2.0, 1.0, 0.3]), normal_tables()[1]
    for total in range(1, 9):
        got = (variance * error[allot(variance, total, error)]).sum()
        best = min(
            (variance * error[list(bits)]).sum()
            for bits in product(range(MAX_BITS + 1), repeat=4)
            if sum(bits) == total
        )
        assert got == pytest.approx(best)


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_the_trellis_beats_scalar_quantisers_and_not_the_bound(bits: int) -> None:
    value_Bn = np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
    table_RS, error_R = normal_tables()
    window_Bn = quantise(value_Bn, np.full(200, bits, np.uint8), table_RS)
    error = float(np.mean((value_Bn - table_RS[bits, window_Bn]) ** 2))
    assert 4.0**-bits < error < LLOYD_MAX[bits] * (0.95 if bits < 6 else 1.05)
    assert error == pytest.approx(error_R[bits], rel=0.05)


def test_the_trellis_finds_the_best_stream() -> None:
    """Against every stream of nine bits, with widths that change."""
    bits_n = np.array([2, 1, 3, 1, 2], np.uint8)
    table_RS, _ = normal_tables()
    value_Bn = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    window_Bn = quantise(value_Bn, bits_n, table_RS)
    got_B = ((value_Bn - table_RS[bits_n, window_Bn]) ** 2).sum(axis=1)
    best_B = np.full(5, np.inf)
    for stream in range(1 << 9):
        left = 9 - np.cumsum(bits_n)
        windows = (stream >> left) & ((1 << WINDOW) - 1)
        best_B = np.minimum(best_B, ((value_Bn - table_RS[bits_n, windows]) ** 2).sum(axis=1))
    assert got_B == pytest.approx(best_B, rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_windows_of_packed_symbols_are_those_of_the_stream(seed: int) -> None:
    """Any widths: unpacking on the device sees the windows that the encoder chose."""
    draws = np.random.default_rng(seed)
    bits_n = draws.integers(1, 7, draws.integers(1, 60)).astype(np.uint8)
    symbol_Bn = draws.integers(0, 1 << bits_n, (9, len(bits_n)))
    num_bytes = -(-int(bits_n.sum()) // 8) + int(draws.integers(0, 3))
    stream_Bb = pack(symbol_Bn, bits_n, num_bytes)
    assert stream_Bb.shape == (9, num_bytes)
    got = Windows(bits_n, WINDOW, torch.device("cpu"))(torch.from_numpy(stream_Bb)).numpy()
    window_B = np.zeros(9, np.int64)
    for j, bits in enumerate(bits_n):
        window_B = ((window_B << bits) | symbol_Bn[:, j]) & ((1 << WINDOW) - 1)
        assert np.array_equal(got[:, j], window_B)


def test_level_codes_do_not_add_up_their_errors() -> None:
    """Each kept logit is within half a step relative to the first, the widest of those so far, never their sum."""
    top_NK = largest_logits(centred(make_logits(400, 300, seed=1)), 12).top_BK
    code = fit_levels(top_NK)
    level_NK, clamped_N = encode_levels(top_NK, code)
    assert not clamped_N.any()
    got = decode_levels(
        torch.from_numpy(level_NK), torch.from_numpy(code.limit_K), torch.from_numpy(code.count_K).float()
    ).numpy()
    assert (np.diff(got, axis=1) <= 0).all() and (got[:, 1] < got[:, 0]).all()
    count_K, ratio_NK = code.count_K.astype(float), level_NK / code.count_K
    half_NK = (ratio_NK + 0.5 / count_K) / count_K * code.limit_K
    wrong_NK = np.abs((got - got[:, :1]) - (top_NK - top_NK[:, :1]))
    assert (wrong_NK[:, 2:] <= np.maximum.accumulate(half_NK[:, 1:], axis=1)[:, 1:] + 1e-4).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_a_teacher_of_few_features_gets_a_finite_basis_and_good_records(scale: float) -> None:
    """A head of 24 features spans 24 directions: nothing is left outside, and the prediction must not divide by it."""
    rng = np.random.default_rng(0)
    logit_NC = (scale * (rng.normal(size=(400, 24)) @ rng.normal(size=(24, 300)))).astype(np.float32)
    record = RecordFormat.chosen("lowrank", 300)
    basis = fit_basis(logit_NC[:300], record)
    assert all(np.isfinite(array).all() for array in basis.to_arrays().values())
    codec = RecordCodec(record, basis)
    kept = {name: torch.from_numpy(value) for name, value in codec.encode(logit_NC[300:]).items()}
    assert torch.isfinite(codec.log_prob(kept, 1.0)).all()


def test_logits_beyond_float32_squares_are_refused_when_the_basis_is_fitted() -> None:
    """Before: NaN in the cache, found when training died."""
    with pytest.raises(CacheError, match="check the teacher's weights"):
        fit_basis(make_logits(200, 80, seed=1) * np.float32(1e25), RecordFormat.chosen("lowrank", 80))
