"""Records: what every kind promises for every row of logits, and what is refused."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from examples import stored_logits
from shards.errors import CacheError
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.kinds.table import KINDS
from teacher_cache.record.kinds.topk import index_bits
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import TailBasis, fit_basis
from teacher_cache.store.cache import TeacherCache
from tests.cache_maker import make_index, make_spec, random_unit
from tests.logits_like import make_logits

SOFT = tuple(kind for kind in KINDS if kind != "hard")
TEMPERATURES = (0.5, 1.0, 3.0, 8.0)
EDGES: dict[str, NDArray[np.float32]] = {
    "constant": np.zeros((3, 100), np.float32),
    "two equal maxima": np.eye(100, dtype=np.float32)[[5, 7]].sum(axis=0, keepdims=True) * 9,
    "a runner-up a hair below and before": np.float32([[9.0]]) * np.eye(100, dtype=np.float32)[40:41]
    + np.float32(8.999999) * np.eye(100, dtype=np.float32)[3:4],
    "all but one tied at the top": 4 - 4 * np.eye(100, dtype=np.float32)[:1],
    "a peak as high as float32 goes": 3e38 * np.eye(100, dtype=np.float32)[40:41],
    "a pit as deep as float32 goes": -3e38 * np.eye(100, dtype=np.float32)[40:41],
    "both ends of float32": np.eye(100, dtype=np.float32)[[3, 60]] * 3e38 * np.array([[1], [-1]], np.float32),
    "a large common offset": make_logits(4, 100, seed=3) + np.float32(1e6),
    "tiny differences": make_logits(4, 100, seed=4) * np.float32(1e-20),
    "hundred times the calibrated range": make_logits(4, 100, seed=5) * np.float32(100),
}


@cache
def fitted(kind: str, num_classes: int, num_bytes: int | None = None) -> tuple[RecordFormat, TailBasis | None]:
    record = RecordFormat.chosen(kind, num_classes, num_bytes=num_bytes)
    return record, fit_basis(make_logits(400, num_classes, seed=1), record) if record.needs_basis else None


@cache
def codec_of(kind: str, num_classes: int = 100, num_bytes: int | None = None) -> RecordCodec:
    return RecordCodec(*fitted(kind, num_classes, num_bytes))


def tensors(record: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in record.items()}


def log_softmax(logit_BC: NDArray[np.float32], temperature: float) -> Tensor:
    return torch.log_softmax(torch.from_numpy(logit_BC).double() / temperature, dim=-1)


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_encode_gives_exactly_the_announced_fields(kind: str, num_classes: int) -> None:
    """The store makes its arrays from `fields()` before it sees a record."""
    codec = codec_of(kind, num_classes)
    record = codec.encode(make_logits(5, num_classes, seed=2))
    assert list(record) == [field.name for field in codec.record_format.fields()]
    for field in codec.record_format.fields():
        array = record[field.name]
        assert array.dtype.str == field.dtype
        assert array.shape == ((5,) if field.width is None else (5, field.width))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_dense_is_log_softmax_to_the_bit(temperature: float) -> None:
    """Training from the cache can only be bit-identical to the teacher in the loop if this is."""
    logit_BC = make_logits(64, 100, seed=2)
    codec = codec_of("dense")
    got = codec.log_prob(tensors(codec.encode(logit_BC)), temperature)
    assert torch.equal(got, torch.log_softmax(torch.from_numpy(logit_BC) / temperature, dim=-1))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_dense8_errs_by_less_than_a_step(temperature: float) -> None:
    """255 steps over the range of a row, the widest 1.5 times the mean."""
    logit_BC = make_logits(64, 100, seed=2)
    codec = codec_of("dense8")
    got = codec.log_prob(tensors(codec.encode(logit_BC)), temperature).double()
    step = 1.5 * np.ptp(logit_BC, axis=1).max() / 255 / temperature
    assert (got - log_softmax(logit_BC, temperature)).abs().max() <= step


@pytest.mark.parametrize("rows", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_the_hard_label_is_the_first_of_the_largest(kind: str, rows: NDArray[np.float32]) -> None:
    """Ties, offsets and extremes never move it, and no decoded class passes it."""
    codec = codec_of(kind)
    record = tensors(codec.encode(rows))
    first_B = torch.from_numpy(rows.argmax(axis=1))
    assert torch.equal(codec.hard_label(record), first_B)
    for temperature in TEMPERATURES if kind != "hard" else ():
        log_prob_BC = codec.log_prob(record, temperature)
        assert log_prob_BC.dtype == torch.float32
        if np.abs(rows).max() < 1e30:  # beyond, logit / τ is no float32
            assert not log_prob_BC.isnan().any()
            own_B = log_prob_BC.gather(1, first_B[:, None])[:, 0]
            assert torch.equal(own_B, log_prob_BC.amax(dim=1))
            if kind != "dense" and np.ptp(rows) > 1e-6:  # else log_softmax itself rounds to ties
                assert torch.equal(log_prob_BC.argmax(dim=1), first_B)


@pytest.mark.parametrize("kind", ["topk", "lowrank"])
def test_ranked_records_of_extremes_still_are_distributions(kind: str) -> None:
    """The largest float32 is clamped and counted, not decoded to nan."""
    codec = codec_of(kind)
    before = codec.num_clamped
    record = tensors(codec.encode(EDGES["both ends of float32"]))
    assert codec.num_clamped > before
    for temperature in TEMPERATURES:
        assert torch.allclose(codec.log_prob(record, temperature).exp().sum(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("kind", SOFT)
def test_log_prob_is_normalised_and_leaves_the_record_alone(kind: str) -> None:
    codec = codec_of(kind)
    record = tensors(codec.encode(make_logits(33, 100, seed=2)))
    before = {name: value.clone() for name, value in record.items()}
    first = codec.log_prob(record, 2.0)
    assert torch.allclose(first.exp().sum(dim=1), torch.ones(33), atol=1e-5)
    assert torch.equal(first, codec.log_prob(record, 2.0))
    assert all(torch.equal(record[name], before[name]) for name in record)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("kind", SOFT)
def test_records_are_the_same_inside_autocast(kind: str, num_classes: int, dtype: torch.dtype) -> None:
    """A training loop asks inside its own autocast: fitted, encoded and decoded there, to the bit."""
    logit_BC = make_logits(17, num_classes, seed=2)
    plain = codec_of(kind, num_classes)
    record = plain.encode(logit_BC)
    with torch.autocast("cpu", dtype):
        codec = RecordCodec(*fitted.__wrapped__(kind, num_classes))
        encoded = codec.encode(logit_BC)
        decoded = codec.log_prob(tensors(encoded), 2.0)
    assert all(np.array_equal(encoded[name], record[name]) for name in record)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, plain.log_prob(tensors(record), 2.0))


@pytest.mark.parametrize("kind", SOFT)
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    """One row alone, or among others: the same record up to the rounding of a matrix product."""
    codec = codec_of(kind)
    logit_BC = make_logits(40, 100, seed=2)
    whole = codec.log_prob(tensors(codec.encode(logit_BC)), 1.0)
    parts = [codec.log_prob(tensors(codec.encode(logit_BC[i : i + 1])), 1.0) for i in range(40)]
    far_B = (whole - torch.cat(parts)).abs().amax(dim=1) > 1e-3
    assert far_B.sum() <= 1  # a value half-way between two codes may fall either way


@pytest.mark.parametrize("kind", ["topk", "lowrank"])
def test_kept_classes_and_tail_mass_are_right_at_temperature_one(kind: str) -> None:
    """What hard and τ = 1 distillation live on: the k peaks within a step and the mass of all others."""
    codec = codec_of(kind)
    logit_BC = make_logits(200, 100, seed=2)
    record = codec.encode(logit_BC)
    class_BK = torch.from_numpy(record["class_index"].astype(np.int64))
    got = codec.log_prob(tensors(record), 1.0).double()
    want = log_softmax(logit_BC, 1.0)
    assert (got.gather(1, class_BK) - want.gather(1, class_BK)).abs().max() < 0.15
    mass_B = got.exp().gather(1, class_BK).sum(dim=1)
    assert (mass_B - want.exp().gather(1, class_BK).sum(dim=1)).abs().max() < 0.01


@pytest.mark.parametrize("temperature", (1.0, 3.0))
@pytest.mark.slow
def test_more_bytes_bring_less_error(temperature: float) -> None:
    """The dial turns one way; from few bytes up to all logits in 8 bits."""
    logit_BC = make_logits(300, 1000, seed=2)
    want = log_softmax(logit_BC, temperature)
    errors = []
    for codec in (*(codec_of("lowrank", 1000, n) for n in (32, 64, 128)), codec_of("dense8", 1000)):
        got = codec.log_prob(tensors(codec.encode(logit_BC)), temperature).double()
        errors.append(float((want.exp() * (want - got)).sum(dim=1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_values_beyond_the_calibrated_range_are_counted() -> None:
    codec = RecordCodec(codec_of("lowrank").record_format, fit_basis(make_logits(400, 100, seed=1), _format()))
    codec.encode(make_logits(50, 100, seed=2))
    assert codec.num_clamped == 0
    codec.encode(make_logits(50, 100, seed=2) * np.float32(30))
    assert codec.num_clamped == 50


def _format() -> RecordFormat:
    return RecordFormat.chosen("lowrank", 100)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_not_finite_are_refused_by_number(kind: str, value: float) -> None:
    logit_BC = make_logits(6, 100)
    logit_BC[4, 17] = value
    with pytest.raises(CacheError, match=r"row 4 .*class 17"):
        codec_of(kind).encode(logit_BC)


def test_float64_that_overflows_float32_is_refused() -> None:
    logit_BC = make_logits(3, 100).astype(np.float64)
    logit_BC[1, 2] = 1e300
    with pytest.raises(CacheError, match="row 1 "):
        codec_of("dense").encode(logit_BC)


@pytest.mark.slow
def test_many_classes_take_wide_indices_and_no_square_matrix() -> None:
    """21,841 classes, fewer rows than that: the basis comes from the rows' Gram matrix."""
    record = RecordFormat.chosen("lowrank", 21_841, num_bytes=64)
    codec = RecordCodec(record, fit_basis(make_logits(120, 21_841, seed=1), record))
    logit_BC = make_logits(8, 21_841, seed=2)
    fields = codec.encode(logit_BC)
    assert fields["class_index"].dtype == np.dtype("<u2")
    assert RecordFormat.chosen("lowrank", 70_000).fields()[0].dtype == "<u4"
    got = codec.log_prob(tensors(fields), 2.0).double()
    assert torch.equal(got.argmax(dim=1), torch.from_numpy(logit_BC.argmax(axis=1)))
    want = log_softmax(logit_BC, 2.0)
    assert (want.exp() * (want - got)).sum(dim=1).mean() < 0.2


def test_hard_records_have_no_soft_target() -> None:
    codec = codec_of("hard")
    with pytest.raises(ValueError, match="first class only"):
        codec.log_prob(tensors(codec.encode(make_logits(2, 100))), 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_must_be_positive(temperature: float) -> None:
    codec = codec_of("dense")
    with pytest.raises(ValueError, match="temperature"):
        codec.log_prob(tensors(codec.encode(make_logits(2, 100))), temperature)


@pytest.mark.parametrize("shape", [(100,), (3, 99), (2, 3, 100)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 100\)"):
        codec_of("dense").encode(np.zeros(shape, np.float32))


BAD_FORMATS = {
    "kind": ({"kind": "top-k", "num_classes": 10}, "record kind"),
    "one class": ({"kind": "dense", "num_classes": 1}, "num_classes"),
    "k as large as C": ({"kind": "topk", "num_classes": 10, "k": 10}, "record k"),
    "too few bytes": ({"kind": "lowrank", "num_classes": 1000, "num_bytes": 12, "k": 8}, "num_bytes"),
    "k of a dense record": ({"kind": "dense", "num_classes": 10, "k": 3}, "record k"),
    "bytes of a dense record": ({"kind": "dense", "num_classes": 10, "num_bytes": 9}, "record num_bytes"),
}


@pytest.mark.parametrize(("fields", "named"), BAD_FORMATS.values(), ids=BAD_FORMATS.keys())
def test_formats_that_cannot_be_are_refused_by_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RecordFormat.chosen(**fields)  # type: ignore[arg-type]
    filled = {"k": 1, "num_bytes": 64} | fields
    with pytest.raises(ValueError, match="record "):
        RecordFormat(**filled)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_bytes", range(32, 257, 16))
@pytest.mark.parametrize("num_classes", [100, 1000, 21_841])
@pytest.mark.parametrize("kind", ["topk", "lowrank"])
def test_the_budget_is_spent_and_not_exceeded(kind: str, num_classes: int, num_bytes: int) -> None:
    """Information bits of the fields, digest and overheads: within the budget, and less than a class below it."""
    record = RecordFormat.chosen(kind, num_classes, num_bytes=num_bytes)
    bits = record.k * index_bits(num_classes) + 6 * (record.k + 1) + 8 * record.tail_bytes
    used = bits / 8 + 4 + 2
    assert used <= num_bytes
    if kind == "lowrank" or num_classes > 500:
        assert used > num_bytes - 4
    assert RecordFormat.from_json(record.to_json()) == record


@pytest.mark.parametrize(("num_classes", "kind"), [(2, "dense8"), (64, "dense8"), (65, "lowrank"), (1000, "lowrank")])
def test_few_classes_are_all_kept(num_classes: int, kind: str) -> None:
    assert RecordFormat.automatic(num_classes).kind == kind


def test_a_basis_is_asked_for_and_must_fit() -> None:
    record = RecordFormat.chosen("lowrank", 100)
    basis = fit_basis(make_logits(100, 100), record)
    with pytest.raises(ValueError, match="needs a tail basis"):
        RecordCodec(record)
    with pytest.raises(ValueError, match="takes no tail basis"):
        RecordCodec(RecordFormat.chosen("dense", 100), basis)
    with pytest.raises(ValueError, match="expected"):
        RecordCodec(RecordFormat.chosen("lowrank", 101), basis)
    with pytest.raises(ValueError, match="expected"):
        RecordCodec(RecordFormat.chosen("lowrank", 100, num_bytes=40), basis)


def _stored(folder: Path, kind: str, rows: int) -> tuple[RecordCodec, dict[str, NDArray[np.generic]], dict[str, int]]:
    """A cache with one committed unit of 2 views; its codec, records and bytes by array."""
    codec = codec_of(kind, 1000)
    spec = make_spec(num_classes=1000, views_per_unit=2, record=codec.record_format)
    fields = codec.encode(make_logits(2 * rows, 1000, seed=2))
    arrays = {name: value.reshape(2, rows, *value.shape[1:]) for name, value in fields.items()}
    basis = fit_basis(make_logits(400, 1000, seed=1), codec.record_format)
    with TeacherCache.create(folder / "cache.zarr", spec, make_index(rows), basis, num_views=2) as store:
        unit = random_unit(store, 0, 0)
        words = np.random.default_rng(0).integers(0, 2**32, (2, rows))
        store.commit_unit(0, 0, {**unit, **arrays, "pixel_digest": words.astype(np.uint32)})
        return codec, fields, store.unit_bytes(0, 0)


@pytest.mark.parametrize("rows", [250, 251])
@pytest.mark.slow
def test_bytes_on_disk_are_within_the_budget(tmp_path: Path, rows: int) -> None:
    """In the real store, whatever the number of rows: the compressor skips bits it cannot shuffle."""
    codec, _, size = _stored(tmp_path, "lowrank", rows)
    used = sum(n for name, n in size.items() if not name.startswith("fidelity")) / (2 * rows)
    assert used + 1.8 <= codec.record_format.num_bytes


@pytest.mark.parametrize("kind", ["topk", "lowrank"])
@pytest.mark.slow
def test_the_documented_reader_reads_records(tmp_path: Path, kind: str) -> None:
    """Plain zarr and NumPy are enough."""
    codec, fields, _ = _stored(tmp_path, kind, 20)
    for temperature in (0.5, 1.0, 3.0):
        want = codec.log_prob(tensors(fields), temperature)
        for view, row in ((0, 3), (1, 19)):
            got = stored_logits.log_prob(str(tmp_path / "cache.zarr"), view, 0, row, temperature)
            assert np.abs(got - want[20 * view + row].numpy()).max() < 2e-3


def test_the_documented_reader_of_dense8_reads_records(tmp_path: Path) -> None:
    """What few classes get by default."""
    logit_NC = make_logits(14, 10)
    logit_NC[3] = 1.0  # all tie: the hard label stays the first
    record = RecordFormat.automatic(10)
    codec = RecordCodec(record)
    fields = codec.encode(logit_NC)
    spec = make_spec(num_classes=10, views_per_unit=2, record=record)
    arrays = {name: value.reshape(2, 7, *value.shape[1:]) for name, value in fields.items()}
    with TeacherCache.create(tmp_path / "cache.zarr", spec, make_index(7), num_views=2) as store:
        store.commit_unit(0, 0, {**random_unit(store, 0, 0), **arrays})
    for temperature in (0.5, 1.0, 3.0):
        want = codec.log_prob(tensors(fields), temperature)
        for view, row in ((0, 3), (1, 6), (0, 0)):
            got = stored_logits.log_prob_dense8(str(tmp_path / "cache.zarr"), view, 0, row, temperature)
            assert np.abs(got - want[7 * view + row].numpy()).max() < 1e-5


@pytest.mark.slow
def test_plain_zarr_opens_a_finished_cache_without_a_word(tmp_path: Path) -> None:
    """Warnings are errors here, and zarr warns of files that are none of its own, such as a lock."""
    _stored(tmp_path, "lowrank", 20)
    group = zarr.open_group(tmp_path / "cache.zarr", mode="r")
    assert {name for name, _ in group.members()} >= {"class_index", "ledger", "tail_basis"}
    assert not [path for path in (tmp_path / "cache.zarr").rglob("*") if "lock" in path.name]
