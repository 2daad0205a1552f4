"""Laws of the store: what is committed is read back, the ledger alone says what is there, growth changes nothing."""

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from shards.errors import CacheError
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId, fidelity_count, fidelity_positions, unit_digest
from teacher_cache.store.ledger import Ledger
from teacher_cache.store.zarr_objects import Objects
from tests.cache_maker import assert_unit, fill, make_basis, make_cache, make_index, make_spec, objects_of, random_unit


def _stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the write with this number end the process, as far as a test can."""
    writes, original = itertools.count(), Objects.write

    def write(self: Objects, key: str, data: bytes) -> None:
        if next(writes) == step:
            raise KeyboardInterrupt
        original(self, key, data)

    patch.setattr(Objects, "write", write)


@pytest.mark.parametrize("kind", ["hard", "topk", "dense8", "dense"])
@pytest.mark.slow
def test_what_is_committed_is_read_back(tmp_path: Path, kind: str) -> None:
    """Whatever the record, the lengths of the shards and the order of the commits."""
    draws = np.random.default_rng(5)
    for trial in range(2):
        rows = tuple(int(n) for n in draws.integers(1, 20, size=draws.integers(1, 4)))
        blocks, per_unit = int(draws.integers(1, 4)), int(draws.integers(1, 4))
        spec = make_spec(kind, num_classes=100, views_per_unit=per_unit)
        basis = make_basis() if kind == "topk" else None
        url = tmp_path / f"{kind}{trial}"
        with TeacherCache.create(url, spec, make_index(*rows), basis, num_views=blocks * per_unit) as cache:
            units = cache.missing()
            assert units == list(itertools.product(range(blocks), range(len(rows))))
            for n in draws.permutation(len(units)):
                assert not cache.is_committed(*units[n])
                assert cache.commit_unit(*units[n], random_unit(cache, *units[n]))
                assert cache.is_committed(*units[n])
        with TeacherCache.open(url, expect=spec) as cache:
            assert cache.missing() == [] and cache.spec == spec
            for unit in units:
                assert_unit(cache, *unit)


def test_plain_zarr_reads_the_same_values(tmp_path: Path) -> None:
    """The format is open: no code of this project is needed to read it."""
    make_cache(tmp_path / "c", rows=(7, 5), num_views=6)
    group = zarr.open_group(str(tmp_path / "c"), mode="r")
    with TeacherCache.open(tmp_path / "c") as cache:
        for block, shard in itertools.product(range(2), range(2)):
            rows = int(cache.rows_S[shard])
            for name in ("class_index", "logit", "logit_range", "pixel_digest"):
                array = np.asarray(group[name][block * 3 : block * 3 + 3, shard, :rows])  # type: ignore[index]
                np.testing.assert_array_equal(array, cache.read_unit(block, shard)[name])
        np.testing.assert_array_equal(np.asarray(group["ledger"][:]), cache.ledger())  # type: ignore[index]
        np.testing.assert_array_equal(np.asarray(group["unit_digest"][:]), cache.ledger())  # type: ignore[index]
    assert group.attrs["shard_rows"] == [7, 5]


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_a_stranger_can_check_a_unit_from_the_format_page(tmp_path: Path) -> None:
    """docs/dev/cache-format.md, followed to the letter with zarr, hashlib and json alone."""
    make_cache(tmp_path / "c", rows=(7, 5), num_views=6)
    group: Any = zarr.open_group(str(tmp_path / "c"), mode="r")
    attributes = dict(group.attrs)
    spec = {**attributes["spec"], "recipe": {k: v for k, v in attributes["spec"]["recipe"].items() if k != "name"}}
    assert hashlib.sha256(_canonical(spec)).hexdigest() == attributes["spec_fingerprint"]
    stated = attributes.pop("attributes_digest")
    assert hashlib.sha256(_canonical(attributes)).hexdigest() == stated
    pair = [attributes["spec_fingerprint"], attributes["tail_basis_digest"]]
    identity = hashlib.sha256(_canonical(pair)).hexdigest()
    names = ["class_index", "fidelity_at", "fidelity_logit", "logit", "logit_range", "pixel_digest"]
    for block, shard in itertools.product(range(2), range(2)):
        rows, arrays = attributes["shard_rows"][shard], {}
        for name in names:
            if name.startswith("fidelity"):
                arrays[name] = group[name][block, shard, : 3 * rows]
            else:
                arrays[name] = group[name][3 * block : 3 * block + 3, shard, :rows]
        head = ["unit", identity, block, shard, attributes["shard_names"][shard]]
        shapes = [[name, arrays[name].dtype.str, list(arrays[name].shape)] for name in names]
        content = _canonical([head, shapes]) + b"".join(arrays[name].tobytes() for name in names)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        assert int.from_bytes(digest, "little") == group["unit_digest"][block, shard]


def test_each_unit_has_objects_of_its_own(tmp_path: Path) -> None:
    """Two writers never share an object, whatever they write."""
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5, 9), num_views=9) as cache:
        seen: set[str] = set()
        for unit in cache.missing():
            before = {name: (tmp_path / "c" / name).stat().st_mtime_ns for name in objects_of(tmp_path / "c")}
            cache.commit_unit(*unit, random_unit(cache, *unit))
            after = {name: (tmp_path / "c" / name).stat().st_mtime_ns for name in objects_of(tmp_path / "c")}
            touched = {name for name in after if before.get(name) != after[name]}
            assert touched and not touched & seen
            seen |= touched


def test_units_of_fill_values_are_written(tmp_path: Path) -> None:
    """An absent chunk would read as fill: it must never be how data is stored."""
    with TeacherCache.create(tmp_path / "c", make_spec("hard"), make_index(4), num_views=3) as cache:
        arrays = {item.name: np.full((3, 4, *item.shape[3:]), item.fill, item.dtype) for item in cache.units.layouts}
        cache.commit_unit(0, 0, arrays)
        assert all(size > 0 for size in cache.unit_bytes(0, 0).values())
        np.testing.assert_array_equal(cache.read_unit(0, 0)["pixel_digest"], arrays["pixel_digest"])


def test_the_first_valid_unit_stays(tmp_path: Path) -> None:
    """A zombie that comes late changes nothing."""
    make_cache(tmp_path / "c")
    with TeacherCache.open(tmp_path / "c", writable=True) as cache:
        assert not cache.commit_unit(1, 1, random_unit(cache, 1, 1, seed=9))
        assert_unit(cache, 1, 1, seed=0)


def test_growth_keeps_old_units_and_the_fingerprint(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", num_views=6)
    old = TeacherCache.open(tmp_path / "c")
    with TeacherCache.open(tmp_path / "c", writable=True) as cache:
        fingerprint = cache.spec.fingerprint
        cache.grow(12)
        assert cache.missing() == [(2, 0), (2, 1), (3, 0), (3, 1)]
        fill(cache)
    with TeacherCache.open(tmp_path / "c") as cache:
        assert cache.num_views == 12 and cache.missing() == [] and cache.spec.fingerprint == fingerprint
        for unit in itertools.product(range(4), range(2)):
            assert_unit(cache, *unit)
    assert_unit(old, 1, 1)  # a reader from before sees what it saw


def test_creating_again_opens_and_grows(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", num_views=6)
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=9) as cache:
        assert cache.num_views == 9 and len(cache.missing()) == 2
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=3) as cache:
        assert cache.num_views == 9


@pytest.mark.slow
def test_interrupted_growth_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every write of a growth: killed there, the cache reads as before, and growing again works."""
    for step in itertools.count():
        url = tmp_path / str(step)
        make_cache(url)
        with monkeypatch.context() as patch, TeacherCache.open(url, writable=True) as cache:
            _stop_at(patch, step)
            try:
                cache.grow(9)
            except KeyboardInterrupt:
                pass
            else:
                break
        with TeacherCache.open(url) as cache:
            assert cache.num_views == 6 and cache.missing() == []
            assert_unit(cache, 1, 0)
        with TeacherCache.open(url, writable=True) as cache:
            cache.grow(9)
            fill(cache)
        with TeacherCache.open(url) as cache:
            assert cache.missing() == []
            assert_unit(cache, 2, 1)
    assert step > 5


def test_interrupted_creation_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(6):
        url = tmp_path / str(step)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            _stop_at(patch, step)
            TeacherCache.create(url, make_spec(), make_index(7, 5), num_views=6)
        with pytest.raises(CacheError, match="no cache here"):
            TeacherCache.open(url)
        make_cache(url)
        with TeacherCache.open(url) as cache:
            assert_unit(cache, 0, 0)


def test_a_reader_needs_one_request_for_the_coverage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening 50,000 units must not ask for 50,000 entries."""
    make_cache(tmp_path / "c", rows=(3,) * 8, num_views=12)
    asked: list[str] = []
    original = Objects.read
    monkeypatch.setattr(Objects, "read", lambda self, keys: asked.extend(keys) or original(self, keys))
    with TeacherCache.open(tmp_path / "c") as cache:
        assert cache.missing() == []
    assert [name for name in asked if not name.endswith("zarr.json")] == ["ledger/c/0/0"]


def test_a_stale_snapshot_hides_nothing(tmp_path: Path) -> None:
    """A killed process leaves its snapshot behind the entries."""
    cache = TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=6)
    cache.commit_unit(1, 0, random_unit(cache, 1, 0))  # and never leaves the block that would save the snapshot
    with TeacherCache.open(tmp_path / "c") as reader:
        assert reader.units.ledger.snapshot().sum() == 0
        assert reader.missing() == [(0, 0), (0, 1), (1, 1)]
        assert_unit(reader, 1, 0)


def test_a_snapshot_that_says_too_much_proves_nothing(tmp_path: Path) -> None:
    """The entry of the unit is the proof."""
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=6) as cache:
        lie = Ledger(Objects.at(cache.objects.place, writable=True), (2, 2), trust_snapshot=False)
        lie._known_BS[:] = 7
        lie.save()
    with TeacherCache.open(tmp_path / "c") as cache, pytest.raises(CacheError, match="not in the ledger"):
        cache.read_unit(0, 0)
    with TeacherCache.open(tmp_path / "c", writable=True) as cache:
        assert len(cache.missing()) == 4


def test_another_spec_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    other = make_spec(behaviour="c" * 64)
    for writable in (False, True):
        with pytest.raises(CacheError, match="behaviour: this machine"):
            TeacherCache.open(tmp_path / "c", writable=writable, expect=other)
    with pytest.raises(CacheError, match="behaviour: this machine"):
        TeacherCache.create(tmp_path / "c", other, make_index(7, 5), num_views=6)


def test_the_basis_is_kept_and_is_part_of_every_digest(tmp_path: Path) -> None:
    spec = make_spec("topk", num_classes=100)
    with TeacherCache.create(tmp_path / "c", spec, make_index(4), make_basis(), num_views=3) as cache:
        fill(cache)
    with TeacherCache.open(tmp_path / "c") as cache:
        assert cache.basis is not None
        for name, array in make_basis().to_arrays().items():
            np.testing.assert_array_equal(cache.basis.to_arrays()[name], array)
    with TeacherCache.create(tmp_path / "d", spec, make_index(4), make_basis(1), num_views=3) as cache:
        assert cache.header.identity != TeacherCache.open(tmp_path / "c").header.identity


BAD_UNITS: dict[str, tuple[str, Any, str]] = {
    "missing": ("pixel_digest", None, "expected the arrays"),
    "unknown": ("zoom", np.zeros(3), "expected the arrays"),
    "shape": ("pixel_digest", np.zeros((3, 6), "<u4"), r"pixel_digest: expected shape \(3, 7\), got \(3, 6\)"),
    "dtype": ("pixel_digest", np.zeros((3, 7), "<i4"), "pixel_digest: expected dtype <u4, got <i4"),
}


@pytest.mark.parametrize("name", BAD_UNITS)
def test_arrays_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    field, value, message = BAD_UNITS[name]
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=6) as cache:
        arrays = random_unit(cache, 0, 0)
        arrays.pop(field, None)
        if value is not None:
            arrays[field] = value
        before = objects_of(tmp_path / "c")
        with pytest.raises(ValueError, match=message):
            cache.commit_unit(0, 0, arrays)
        assert objects_of(tmp_path / "c") == before


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_full_logits_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with TeacherCache.create(tmp_path / "c", make_spec(), make_index(7, 5), num_views=6) as cache:
        arrays = random_unit(cache, 0, 0)
        arrays["fidelity_logit"][0, 0] = value
        with pytest.raises(CacheError, match=r"view block 0.*fidelity_logit: expected finite"):
            cache.commit_unit(0, 0, arrays)


@pytest.mark.parametrize("num_views", [0, -3, 4, 5])
def test_parts_of_a_unit_are_no_views(tmp_path: Path, num_views: int) -> None:
    with pytest.raises(ValueError, match=r"multiple of recipe.block_views = 3"):
        TeacherCache.create(tmp_path / "c", make_spec(), make_index(7), num_views=num_views)


def test_a_cache_cannot_shrink(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", num_views=6)
    with TeacherCache.open(tmp_path / "c", writable=True) as cache, pytest.raises(ValueError, match="cannot shrink"):
        cache.grow(3)


@pytest.mark.parametrize("unit", [(-1, 0), (2, 0), (0, -1), (0, 2)])
def test_units_outside_are_refused(tmp_path: Path, unit: tuple[int, int]) -> None:
    make_cache(tmp_path / "c")
    with TeacherCache.open(tmp_path / "c") as cache, pytest.raises(ValueError, match=r"expected a (view block|shard)"):
        cache.read_unit(*unit)


def test_another_index_is_refused(tmp_path: Path) -> None:
    index = make_index(7)._replace(fingerprint="2" * 64)
    with pytest.raises(ValueError, match="index_fingerprint"):
        TeacherCache.create(tmp_path / "c", make_spec(), index, num_views=3)


# Digests and the fidelity sample


def test_the_digest_covers_everything_of_a_unit() -> None:
    arrays = {"a": np.arange(6, dtype="<u2").reshape(2, 3), "b": np.zeros(4, "<f4")}
    base = unit_digest("cache", UnitId(1, 2), "shard", arrays)
    changed = arrays["a"].copy()
    changed[1, 2] ^= 1
    others = [
        unit_digest("other", UnitId(1, 2), "shard", arrays),
        unit_digest("cache", UnitId(2, 1), "shard", arrays),
        unit_digest("cache", UnitId(1, 2), "other", arrays),
        unit_digest("cache", UnitId(1, 2), "shard", {**arrays, "a": changed}),
        unit_digest("cache", UnitId(1, 2), "shard", {**arrays, "a": arrays["a"].reshape(3, 2)}),
        unit_digest("cache", UnitId(1, 2), "shard", {**arrays, "a": arrays["a"].view("<i2")}),
        unit_digest("cache", UnitId(1, 2), "shard", {"a": arrays["a"], "c": arrays["b"]}),
        unit_digest("cache", UnitId(1, 2), "shard", {"a": arrays["a"]}),
    ]
    assert len({base, *others}) == len(others) + 1 and 0 not in others
    again = {"b": arrays["b"].astype(">f4"), "a": np.asfortranarray(arrays["a"])}
    assert unit_digest("cache", UnitId(1, 2), "shard", again) == base  # memory order and byte order are no content


def test_the_fidelity_sample_is_one_view_in_a_thousand_of_imagenet() -> None:
    rows = np.full(1024, 1252)
    spec = make_spec("lowrank", num_classes=1000, views_per_unit=6)
    assert 900 < 6 * 1252 / fidelity_count(spec, rows) <= 1000
    assert fidelity_count(make_spec("lowrank", 21841, 6), rows) * 2 * 21841 / (6 * 1252) < 6.0  # bytes per view


def test_small_caches_keep_enough_to_be_measured() -> None:
    for rows in ([40], [40, 40], [10] * 30):
        count = fidelity_count(make_spec("dense8", 10, 6), np.array(rows))
        assert count * len(rows) >= 64 or count == 6 * rows[0] // 4  # the rest is for fitting the tail basis


@pytest.mark.parametrize("kind", ["hard", "dense"])
def test_exact_records_keep_no_sample(kind: str) -> None:
    assert fidelity_count(make_spec(kind), np.array([1000])) == 0


def test_fidelity_positions_are_a_keyed_sample_without_replacement() -> None:
    spec = make_spec()
    draws = np.random.default_rng(1)
    seen = set()
    for _ in range(30):
        unit, rows, count = UnitId(int(draws.integers(9)), 0), int(draws.integers(1, 50)), int(draws.integers(1, 40))
        at_F2 = fidelity_positions(spec, unit, "name", rows, count)
        assert at_F2.shape == (min(count, 3 * rows), 2)
        assert len({tuple(p) for p in at_F2.tolist()}) == len(at_F2)
        assert at_F2[:, 0].max() < 3 and at_F2[:, 1].max() < rows
        np.testing.assert_array_equal(at_F2, fidelity_positions(spec, unit, "name", rows, count))
        seen.add(fidelity_positions(spec, unit, "name", 50, 8).tobytes())
    assert len(seen) > 5
    other = replace(spec, recipe=replace(spec.recipe, seed=1))
    assert (
        fidelity_positions(other, UnitId(0, 0), "name", 50, 8).tolist()
        != fidelity_positions(spec, UnitId(0, 0), "name", 50, 8).tolist()
    )
