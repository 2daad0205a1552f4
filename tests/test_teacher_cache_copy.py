"""Copies of a cache: the same bytes or stated errors, whole units or none, in one go or in parts or after a kill."""

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli import cli
from shards.errors import CacheError
from teacher_cache.inspect.status import cache_fidelity
from teacher_cache.publish.card import write_card
from teacher_cache.publish.copying import CopyEvent, copy_units
from teacher_cache.publish.destination import open_destination
from teacher_cache.publish.selection import select
from teacher_cache.record.codec import RecordCodec
from teacher_cache.record.record_format import RecordFormat
from teacher_cache.record.tail_basis import fit_basis
from teacher_cache.store.cache import TeacherCache
from teacher_cache.store.digest import UnitId
from teacher_cache.store.unit_store import UnitStore
from tests.cache_maker import fill, make_basis, make_cache, make_index, make_spec, objects_of, random_unit
from tests.golden import SETS

GOLDEN = SETS[-1]


def copied(source: Path | str, destination: Path | str, *, record: RecordFormat | None = None, workers: int = 2,
           **ranges: str) -> CopyEvent:  # fmt: skip
    """Copy; the last event."""
    with TeacherCache.open(source) as opened:
        selection = select(opened, **ranges)
        with open_destination(opened, str(destination), selection, record) as copy:
            *_, last = copy_units(opened, copy, selection, workers=workers)
    assert last.finished
    return last


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in objects_of(folder)}


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.mark.parametrize("kind", ["hard", "topk", "dense8", "dense"])
@pytest.mark.slow
def test_a_copy_has_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """Chunks, ledger, basis, root: nothing of a copy tells it from the original."""
    make_cache(tmp_path / "a", kind=kind)
    assert copied(tmp_path / "a", tmp_path / "b").num_copied == 4
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    again = copied(tmp_path / "a", tmp_path / "b")
    assert (again.num_copied, again.num_kept) == (0, 4)


def test_parts_make_the_whole_in_any_order_and_overlapping(tmp_path: Path) -> None:
    """Views keep their numbers and shards their index, so that parts fill one place."""
    make_cache(tmp_path / "a", rows=(7, 5, 6), num_views=9)
    parts = [("6-8", "2"), ("0-2", "0,2"), ("0-8", "1"), ("3-8", "0-2"), ("0-2", "0-1")]
    for views, shards in parts:
        copied(tmp_path / "a", tmp_path / "b", views=views, shards=shards)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_part_is_a_cache_that_lacks_the_rest(tmp_path: Path) -> None:
    """Fewer views are room for fewer; fewer shards are missing units of the same index."""
    make_cache(tmp_path / "a", rows=(7, 5, 6), num_views=9)
    copied(tmp_path / "a", tmp_path / "b", views="0-5", shards="1-2")
    with TeacherCache.open(tmp_path / "a") as whole, TeacherCache.open(tmp_path / "b") as part:
        assert part.spec == whole.spec and part.num_views == 6
        assert part.missing() == [(0, 0), (1, 0)]
        for unit in itertools.product((0, 1), (1, 2)):
            assert part.units.read_entry(UnitId(*unit)) == whole.units.read_entry(UnitId(*unit))
        with pytest.raises(CacheError, match="not in the ledger"):
            part.read_unit(0, 0)


def test_an_unfinished_source_gives_what_it_has(tmp_path: Path) -> None:
    make_cache(tmp_path / "a")
    with TeacherCache.open(tmp_path / "a", writable=True) as cache:
        cache.invalidate(1, 1)
    event = copied(tmp_path / "a", tmp_path / "b")
    assert (event.num_copied, event.num_absent) == (3, 1)
    with TeacherCache.open(tmp_path / "b") as part:
        assert part.missing() == [(1, 1)]


def _killed_after(source: Path, destination: Path, units: int) -> None:
    with TeacherCache.open(source) as opened:
        selection = select(opened)
        with open_destination(opened, str(destination), selection) as copy:
            for event in copy_units(opened, copy, selection, workers=1):
                if event.num_copied == units:
                    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("units", [0, 1, 3])
@pytest.mark.slow
def test_killed_and_repeated_equals_uninterrupted(tmp_path: Path, units: int) -> None:
    """kill -9 loses at most the units in flight."""
    make_cache(tmp_path / "a", rows=(7, 5, 6))
    child = multiprocessing.get_context("fork").Process(
        target=_killed_after, args=(tmp_path / "a", tmp_path / "b", units)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    event = copied(tmp_path / "a", tmp_path / "b")
    assert event.num_kept >= units and event.num_kept + event.num_copied == 6
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_told_to_stop_it_ends_with_the_units_in_flight(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", rows=(7, 5, 6))
    with TeacherCache.open(tmp_path / "a") as opened:
        selection = select(opened)
        with open_destination(opened, str(tmp_path / "b"), selection) as copy:
            told = iter([False, False, True, True, True, True])
            *_, last = copy_units(opened, copy, selection, workers=1, should_stop=lambda: next(told))
    assert last.stopped and 0 < last.num_copied < 6
    assert copied(tmp_path / "a", tmp_path / "b").num_kept == last.num_copied


def test_a_damaged_unit_is_named_and_stays_out_of_the_copy(tmp_path: Path) -> None:
    """And the command ends with 1, everything else copied."""
    make_cache(tmp_path / "a")
    (tmp_path / "a/logit/c/1/0/0/0").write_bytes(b"\0" * 40)
    result = run("copy-cache", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert "view block 1" in result.output and "1 chunk damaged" in result.output and "3 chunks" in result.output
    with TeacherCache.open(tmp_path / "b") as copy:
        assert copy.missing() == [(1, 0)]


def test_a_chunk_that_arrives_damaged_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back decides."""
    make_cache(tmp_path / "a")
    honest = UnitStore.write_arrays

    def lossy(self: UnitStore, unit: Any, arrays: Any) -> None:
        honest(self, unit, {name: np.roll(values, 1) for name, values in arrays.items()})

    monkeypatch.setattr(UnitStore, "write_arrays", lossy)
    monkeypatch.setattr("teacher_cache.store.unit_store._ATTEMPTS", 2)
    with pytest.raises(CacheError, match="what is read back is not what was written"):
        copied(tmp_path / "a", tmp_path / "b")
    with TeacherCache.open(tmp_path / "b") as copy:
        assert len(copy.missing()) == 4


# Smaller records


def test_from_all_logits_the_copy_holds_what_stage_1_would_have_written(tmp_path: Path) -> None:
    """The same bytes as encoding those logits against the same basis; the same pixels, the same hard labels."""
    record = RecordFormat.chosen("lowrank", 100, num_bytes=48)
    assert copied(GOLDEN / "dense.zarr", tmp_path / "b", record=record).num_damaged == 0
    with TeacherCache.open(GOLDEN / "dense.zarr") as dense, TeacherCache.open(tmp_path / "b") as copy:
        assert copy.missing() == [] and copy.spec.record == record
        assert "lowrank" not in copy.header.made_with["records"] and "dense" in copy.header.made_with["records"]
        assert {name: copy.header.made_with[name] for name in dense.header.made_with} == dense.header.made_with
        codec = RecordCodec(record, copy.basis)
        for unit in itertools.product(range(copy.num_view_blocks), range(copy.num_shards)):
            exact, got = dense.read_unit(*unit), copy.read_unit(*unit)
            expected = codec.encode(exact["logit"].reshape(-1, 100))
            for name, values in expected.items():
                np.testing.assert_array_equal(got[name].reshape(values.shape), values)
            np.testing.assert_array_equal(got["pixel_digest"], exact["pixel_digest"])
            at = tuple(got["fidelity_at"].T.astype(int))
            np.testing.assert_array_equal(got["fidelity_logit"], exact["logit"][at].astype("<f2"))


def test_the_basis_of_a_copy_is_of_views_that_its_error_is_not_measured_on(tmp_path: Path) -> None:
    """As in stage 1: a basis measured on what it was fitted to would flatter itself."""
    from teacher_cache.publish import recoding

    record = RecordFormat.chosen("topk", 100, num_bytes=32)
    seen: list[np.ndarray] = []

    def noted(logit_NC: np.ndarray, wanted: RecordFormat) -> Any:
        seen.append(logit_NC)
        return fit_basis(logit_NC, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recoding, "fit_basis", noted)
        copied(GOLDEN / "dense.zarr", tmp_path / "b", record=record)
    kept = set()
    with TeacherCache.open(tmp_path / "b") as copy, TeacherCache.open(GOLDEN / "dense.zarr") as dense:
        for shard in range(copy.num_shards):
            at = tuple(copy.fidelity_positions(0, shard).T.astype(int))
            kept |= {row.tobytes() for row in dense.read_unit(0, shard)["logit"][at]}
    assert len(seen[0]) >= 16 and not kept & {row.tobytes() for row in seen[0]}


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("topk", RecordFormat.chosen("topk", 100, num_bytes=32)),
        ("topk", RecordFormat.chosen("hard", 100)),
        ("dense8", RecordFormat.chosen("topk", 100, num_bytes=48)),
        ("lowrank", RecordFormat.chosen("topk", 100, num_bytes=32)),
    ],
    ids=["topk to less topk", "topk to hard", "dense8 to topk", "lowrank to topk"],
)
@pytest.mark.slow
def test_hard_labels_and_kept_logits_survive_any_encoding(tmp_path: Path, source: str, wanted: RecordFormat) -> None:
    """Records of records: the first class stays exact, the error is stated against the teacher itself."""
    spec = make_spec(source, num_classes=100)
    logit_NC = np.random.default_rng(0).normal(size=(400, 100)).astype("f4") * 3
    basis = fit_basis(logit_NC, spec.record) if spec.record.needs_basis else None
    codec = RecordCodec(spec.record, basis)
    with TeacherCache.create(tmp_path / "a", spec, make_index(40, 30), basis, num_views=3) as cache:
        for shard, rows in enumerate((40, 30)):
            part_VRC = np.random.default_rng(shard).normal(size=(3, rows, 100)).astype("f4") * 3
            arrays = {
                name: values.reshape(3, rows, *values.shape[1:])
                for name, values in codec.encode(part_VRC.reshape(-1, 100)).items()
            }
            at = tuple(cache.fidelity_positions(0, shard).T.astype(int))
            arrays["pixel_digest"] = random_unit(cache, 0, shard)["pixel_digest"]
            cache.commit_unit(0, shard, {**arrays, "fidelity_logit": part_VRC[at]})
    copied(tmp_path / "a", tmp_path / "b", record=wanted)
    with TeacherCache.open(tmp_path / "a") as old, TeacherCache.open(tmp_path / "b") as new:
        for shard in (0, 1):
            before, after = old.read_unit(0, shard), new.read_unit(0, shard)
            np.testing.assert_array_equal(before["class_index"][..., 0], after["class_index"][..., 0])
            if wanted.entry.measurable:
                np.testing.assert_array_equal(before["fidelity_logit"], after["fidelity_logit"])
        if wanted.entry.measurable:
            worse, better = cache_fidelity(new, max_units=9), cache_fidelity(old, max_units=9)
            assert all(a.kl >= b.kl > 0 for a, b in zip(worse, better, strict=True))


def test_the_command_states_the_error_and_writes_a_card(tmp_path: Path) -> None:
    """One dense cache gives a small one that verifies, to be published with its card."""
    out = tmp_path / "small.zarr"
    result = run("copy-cache", GOLDEN / "dense.zarr", out, "--record", "lowrank", "--bytes", "48", "--card")
    assert result.exit_code == 0, result.output
    assert result.output.count("τ = ") == 6 and "gradient error" in result.output
    verified = run("verify-cache", out, "--deep", "--shards", GOLDEN / "train", "--blocks", "4")
    assert verified.exit_code == 0 and verified.output.count("no problems") == 2
    card = (tmp_path / "README.md").read_text()
    with TeacherCache.open(out) as cache:
        for text in (cache.spec.teacher.name, cache.spec.teacher.weights_sha256, cache.spec.index_fingerprint,
                     cache.spec.fingerprint, "license: other", "To be chosen", "| 3 | "):  # fmt: skip
            assert text in card, text
    assert "part of a cache" not in card
    command = ["copy-cache", GOLDEN / "dense.zarr", out, "--record", "lowrank", "--bytes", "48", "--card"]
    assert run(*command).exit_code == 0
    (tmp_path / "README.md").write_text("mine")
    refused = run(*command)
    assert refused.exit_code == 1 and "is not the card of small.zarr" in refused.output
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_part_says_so_in_its_card(tmp_path: Path) -> None:
    make_cache(tmp_path / "a")
    copied(tmp_path / "a", tmp_path / "b", shards="1")
    with TeacherCache.open(tmp_path / "b", writable=True) as part:
        text = Path(write_card(part)).read_text()
    assert "2 of 4: **a part of a cache**" in text


def test_copies_go_through_memory_and_back(tmp_path: Path) -> None:
    """A place that is neither a folder nor a server."""
    make_cache(tmp_path / "a")
    url = f"memory://{tmp_path.name}/c.zarr"
    copied(tmp_path / "a", url)
    copied(url, tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    with TeacherCache.open(url, writable=True) as cache:
        assert write_card(cache) == f"memory://{tmp_path.name}/README.md"


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}", "{a}"], "this is the cache to be copied"),
        (["{a}", "{new}", "--views", "0-3"], "expected whole chunks, such as 0-5"),
        (["{a}", "{new}", "--views", "0-6"], "expected ranges inside 0-5"),
        (["{a}", "{new}", "--views", "3-1"], "expected ranges inside 0-5"),
        (["{a}", "{new}", "--shards", "x"], "expected numbers and ranges"),
        (["{a}", "{new}", "--shards", "2"], "expected ranges inside 0-1"),
        (["{a}", "{new}", "--record", "dense"], "expected fewer bytes per view than"),
        (["{a}", "{new}", "--record", "nothing"], "is not one of auto, hard"),
        (["{hard}", "{new}", "--record", "dense8"], "have no probabilities to encode again"),
        (["{a}", "https://127.0.0.1:1/c"], "read-only"),
        (["{a}", "hf://datasets/me/it/c"], "upload that folder in one commit"),
        (["{a}", "gopher://there/c"], "expected a path or one of s3://"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_copied_is_a_wrong_argument(tmp_path: Path, words: list[str], said: str) -> None:
    """Exit code 2, and nothing is written."""
    make_cache(tmp_path / "a")
    make_cache(tmp_path / "hard", kind="hard")
    places = {"a": tmp_path / "a", "hard": tmp_path / "hard", "new": tmp_path / "new"}
    result = run("copy-cache", *(word.format(**places) for word in words))
    assert result.exit_code == 2, result.output
    assert said in result.output and not (tmp_path / "new" / "zarr.json").exists()


def test_another_cache_is_not_written_over(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", kind="topk")
    make_cache(tmp_path / "other", kind="hard")
    with TeacherCache.create(
        tmp_path / "twin", make_spec("topk", num_classes=100), make_index(7, 5), make_basis(seed=1), num_views=6
    ) as twin:
        fill(twin)
    for name, said in (("other", "made for something else"), ("twin", "another tail basis")):
        before = bytes_of(tmp_path / name)
        result = run("copy-cache", tmp_path / "a", tmp_path / name)
        assert result.exit_code == 1 and said in result.output
        assert bytes_of(tmp_path / name) == before
