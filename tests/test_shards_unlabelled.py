"""Samples without a label: in an index of their own, beside labelled ones, and joined with them."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from shards.errors import ShardError
from shards.index import index_file
from shards.index.index_checks import require_labels
from shards.index.index_file import IndexMeta
from shards.index.shard_index import ShardIndex, open_index
from shards.tars.sample_rule import SampleRule
from shards.tars.scan import scan_shards
from shards.tars.writer import write_samples
from tests.test_shards_writer import encoded, tree


def written(folder: Path, labels: list[int | None], *, first: int = 0, **options: object) -> ShardIndex:
    """Shards of images with these labels."""
    samples = ((f"k{first + n:03d}", label, "png", encoded(first + n)) for n, label in enumerate(labels))
    return write_samples(samples, folder, samples_per_shard=4, **options)  # type: ignore[arg-type]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.mark.parametrize("labels", [[0, None, 1, None, None, 2], [None, None, None], [0, 1, 2]])
def test_labels_and_their_absence_come_back(labels: list[int | None], tmp_path: Path) -> None:
    index = written(tmp_path, labels)
    assert index.label_N.tolist() == [-1 if label is None else label for label in labels]
    assert index.num_unlabelled == labels.count(None)
    assert index.num_classes == (0 if set(labels) == {None} else 3)
    scanned = [*scan_shards(list(index.urls), rule=SampleRule(labels_optional=True))][-1].index
    assert scanned is not None
    assert scanned.fingerprint == index.fingerprint == open_index(str(tmp_path)).fingerprint
    assert pickle.loads(pickle.dumps(index)).label_N.tolist() == index.label_N.tolist()


def test_only_indexes_with_unlabelled_samples_say_so(tmp_path: Path) -> None:
    """An index whose samples all have a label is the file that it was before labels could be absent."""
    for name, labels in (("all", [0, 1]), ("some", [0, None])):
        head = json.loads(written(tmp_path / name, labels).path.read_bytes()[24:].split(b"\0")[0].split(b"  ")[0])
        assert ("num_unlabelled" in head["meta"]) == (name == "some")


def test_a_version_that_knows_no_unlabelled_samples_names_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, [0, None, 1]).path
    known = [field for field in IndexMeta.__struct_fields__ if field != "num_unlabelled"]
    older = index_file.msgspec.defstruct(
        "IndexMeta", [(name, IndexMeta.__annotations__[name]) for name in known[:5]], forbid_unknown_fields=True
    )
    monkeypatch.setattr(index_file, "IndexMeta", older)
    with pytest.raises(ShardError, match=r"made by a newer version: unknown fields \['num_unlabelled'\]") as refused:
        ShardIndex.load(path)
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize(("label", "said"), [(-1, 0), (-2, 2), (-1, 1), (0, 1)])
def test_an_index_that_counts_its_unlabelled_samples_wrongly_is_refused(label: int, said: int, tmp_path: Path) -> None:
    index = written(tmp_path, [0, 1, 2])
    label_N = np.array([label, label, 1], np.int32)
    arrays = {name: getattr(index, name) for name in ("tar_bytes_S", "first_S", "offset_N", "size_N", "crc32c_N")}
    others = ("suffix_N", "key_bytes", "key_first_S", "key_end_N", "shard_digest_S32")
    arrays |= {"label_N": label_N} | {name: getattr(index, name) for name in others}
    meta = {"names": list(index.names), "class_names": [], "num_classes": 3, "places": [], "fingerprint": ""}
    index_file.write_index_file(index.path, meta | ({"num_unlabelled": said} if said else {}), arrays)
    with pytest.raises(ShardError, match=r"label_N|num_unlabelled"):
        ShardIndex.load(index.path)


def test_a_scan_takes_samples_without_a_label_only_when_asked(tmp_path: Path) -> None:
    index = written(tmp_path, [0, None, 1, 1])
    with pytest.raises(ShardError, match=r"expected a label in .cls.*--no-labels"):
        list(scan_shards(list(index.urls)))
    index.path.unlink()
    code, output = run("check-shards", tmp_path, "--no-labels", "--workers", 0)
    assert code == 0
    assert "4 samples of 2 classes, 1 of them without a label, in 1 shard" in output
    code, output = run("check-shards", tmp_path, "--workers", 0)
    assert (code, "checked against" in output) == (0, True), "the index says what may lack a label"


def test_a_folder_of_any_depth_becomes_shards_without_labels(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (source / "flat.png").write_bytes(encoded(999))
    code, output = run("make-shards", source, tmp_path / "out", "--no-labels", "--workers", 0)
    assert code == 0, output
    assert "22 samples without labels in 1 shard" in output
    index = open_index(str(tmp_path / "out"))
    assert (index.num_unlabelled, index.num_classes, index.names) == (22, 0, ("unlabelled-000000.tar",))
    code, output = run("make-shards", source, tmp_path / "out", "--no-labels", "--workers", 0)
    assert (code, "already complete" in output) == (0, True)


@pytest.mark.parametrize(
    "flag", [["--labels", "x.csv"], ["--first-label", 1], ["--split", 0.1], ["--format", "folders"]]
)
def test_flags_that_say_something_of_labels_are_refused_beside_no_labels(flag: list[object], tmp_path: Path) -> None:
    code, output = run("make-shards", tree(tmp_path / "in"), tmp_path / "out", "--no-labels", *flag)
    assert (code, "drop" in output) == (2, True)


def test_names_of_a_file_are_the_classes_of_unlabelled_images(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("ant\nbee\n")
    assert (
        run("make-shards", tree(tmp_path / "in"), tmp_path / "out", "--no-labels", "--class-names", tmp_path / "names")[
            0
        ]
        == 0
    )
    index = open_index(str(tmp_path / "out"))
    assert (index.class_names, index.num_classes) == (("ant", "bee"), 2)
    assert index.taught(3, ("x", "y", "z")) is index, "classes of its own stay"


def test_classes_of_a_teacher_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    index = written(tmp_path / "shards", [None, None])
    taught = index.taught(3, ("ant", "bee", "cow"))
    assert (taught.num_classes, taught.class_names) == (3, ("ant", "bee", "cow"))
    assert taught.fingerprint == index.fingerprint
    again = pickle.loads(pickle.dumps(taught))
    assert (again.num_classes, again.class_names, again.fingerprint) == (3, ("ant", "bee", "cow"), index.fingerprint)
    shutil.copytree(tmp_path / "shards", tmp_path / "copy")
    taught.save(tmp_path / "copy" / "shards.index")
    assert ShardIndex.load(tmp_path / "copy" / "shards.index").num_classes == 0


def test_sets_joined_are_the_samples_of_each_in_order(tmp_path: Path) -> None:
    one = written(tmp_path / "a", [0, 1, 2, 0, 1], class_names=("ant", "bee", "cow"))
    two = written(tmp_path / "b", [None] * 6, first=5, prefix="unlabelled")
    both = open_index(f"{tmp_path / 'a'}::{tmp_path / 'b'}")
    assert (both.num_classes, both.class_names, both.num_unlabelled) == (3, ("ant", "bee", "cow"), 6)
    assert both.rows_S.tolist() == [4, 1, 4, 2]
    keys = [both.key(shard, row) for shard in range(4) for row in range(both.num_rows(shard))]
    assert keys == [f"k{n:03d}" for n in range(11)]
    assert [both.find(key) for key in keys] == [(s, r) for s in range(4) for r in range(both.num_rows(s))]
    assert both.label_N.tolist() == [*one.label_N.tolist(), *two.label_N.tolist()]
    scanned = [*scan_shards(list(both.urls), class_names=both.class_names, rule=SampleRule(labels_optional=True))][
        -1
    ].index
    assert scanned is not None and scanned.fingerprint == both.fingerprint
    assert pickle.loads(pickle.dumps(both)).fingerprint == both.fingerprint


def test_what_needs_labels_says_so(tmp_path: Path) -> None:
    index = written(tmp_path, [0, None, 1])
    with pytest.raises(
        ShardError, match="evaluation needs the label of every sample, expected 3 labels, got 1 without"
    ):
        require_labels(index, index.path, "evaluation")
    require_labels(replace(index, label_N=np.zeros(3, np.int32)), index.path, "evaluation")


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("evaluate", ["--weights", "none.safetensors", "--shards"]),
        ("train-teacher", ["--model", "resnet18", "--out", "t", "--shards"]),
        ("train-student", ["--shards", "labelled", "--distill", "none", "--out", "s", "--val-shards"]),
        ("ablate", ["--shards", "labelled", "--cache", "none.zarr", "--out", "s", "--val-shards"]),
    ],
)
def test_commands_that_need_labels_refuse_shards_without(
    command: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "labelled", [0, 1] * 20)
    written(tmp_path / "some", [0, 1, None])
    code, output = run(command, *flags, "some")
    assert code == 1
    assert "needs the label of every sample, expected 3 labels, got 1 without one" in output
