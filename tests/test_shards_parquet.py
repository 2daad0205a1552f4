"""Parquet in the layout of the Hugging Face hub becomes shards, a row group at a time."""

import json
from pathlib import Path

import pytest

from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex
from tests.test_shards_formats import encoded, labels_of, made, refused

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
NAMES = ("ant", "bee", "cow")


def write(path: Path, first: int, num: int, *, label: str = "label", named: bool = True, group: int = 4) -> None:
    """As `Dataset.push_to_hub` writes it: images as structs, features in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = range(first, first + num)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": encoded(n), "path": f"{n}.jpg"} for n in rows], kind)
    labels = pyarrow.array([n % 3 for n in rows], pyarrow.int64())
    features = {"image": {"_type": "Image"}, label: {"names": list(NAMES), "_type": "ClassLabel"}}
    table = pyarrow.table({"image": images, label: labels})
    if named:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=group)


def contents(folder: Path) -> dict[str, bytes]:
    index = ShardIndex.load(folder / "shards.index")
    with ShardReader(index) as reader:
        rows = [(s, r) for s in range(index.num_shards) for r in range(index.num_rows(s))]
        return {index.key(s, r): reader.image_bytes(s, r) for s, r in rows}


def test_the_layout_of_the_hub_makes_both_splits(tmp_path: Path) -> None:
    for n in range(2):
        write(tmp_path / "in" / "data" / f"train-{n:05}-of-00002-0123abcd.parquet", 15 * n, 15)
    write(tmp_path / "in" / "data" / "validation-00000-of-00001.parquet", 100, 6)
    said = made(tmp_path / "in", tmp_path / "out", "--samples-per-shard", "7")
    assert "Parquet files" in said and "30 samples of 3 classes in 5 shards" in said
    found = contents(tmp_path / "out" / "train")
    expected = {f"train-{n // 15:05}-of-00002-0123abcd/{n % 15:07}": (encoded(n), NAMES[n % 3]) for n in range(30)}
    assert found == {key: data for key, (data, _) in expected.items()}
    assert labels_of(tmp_path / "out" / "train") == {key: name for key, (_, name) in expected.items()}
    assert len(contents(tmp_path / "out" / "val")) == 6
    again = made(tmp_path / "in", tmp_path / "two", "--samples-per-shard", "7", "--workers", "2")
    assert again and all(
        (tmp_path / "two" / "train" / path.name).read_bytes() == path.read_bytes()
        for path in (tmp_path / "out" / "train").glob("*.tar")
    )


def test_a_row_group_is_read_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random reads would decode a row group for each image."""
    write(tmp_path / "a.parquet", 0, 60, group=10)
    reads = []
    real = parquet.ParquetFile.read_row_group

    def counted(self: object, number: int, **words: object) -> object:
        reads.append(number)
        return real(self, number, **words)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    made(tmp_path / "a.parquet", tmp_path / "out", "--samples-per-shard", "20")
    assert len(contents(tmp_path / "out")) == 60 and len(reads) <= 9
    index = ShardIndex.load(tmp_path / "out" / "shards.index")
    keys = [index.key(0, row) for row in range(20)]
    assert keys != sorted(keys), "mixed inside a shard"


def test_class_names_of_the_user_renumber_those_of_the_file(tmp_path: Path) -> None:
    """A teacher of more classes in another order: the names decide, not the numbers."""
    write(tmp_path / "a.parquet", 0, 6)
    (tmp_path / "names.txt").write_text("cow\nfox\nbee\nant\n")
    made(tmp_path / "a.parquet", tmp_path / "out", "--class-names", str(tmp_path / "names.txt"))
    assert list(labels_of(tmp_path / "out").values()).count("ant") == 2
    assert labels_of(tmp_path / "out")["a/0000002"] == "cow"
    (tmp_path / "names.txt").write_text("cow\nbee\nAnt\n")
    said = refused(tmp_path / "a.parquet", tmp_path / "x", "--class-names", str(tmp_path / "names.txt"))
    assert "got 'ant'" in said


def test_bad_rows_are_named_and_other_columns_refused(tmp_path: Path) -> None:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    cells = [{"bytes": encoded(n), "path": None} for n in range(4)] + [{"bytes": None, "path": "gone.jpg"}]
    table = pyarrow.table({"image": pyarrow.array(cells, kind), "label": [0, 1, 0, 1, 0]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert "a/0000004: cannot be read: the row holds no bytes" in refused(tmp_path / "a.parquet", tmp_path / "out")
    made(tmp_path / "a.parquet", tmp_path / "out", "--skip-bad", str(tmp_path / "bad.txt"))
    assert set(labels_of(tmp_path / "out").values()) == {0, 1}
    write(tmp_path / "b.parquet", 0, 5, label="kind", named=False)
    assert "got image, kind" in refused(tmp_path / "b.parquet", tmp_path / "x")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 cut")
    assert "c.parquet: expected a Parquet file" in refused(tmp_path / "c.parquet", tmp_path / "x")
    parquet.write_table(table.slice(0, 2).set_column(1, "label", [[-1, -1]]), tmp_path / "d.parquet")
    assert "test sets without labels" in refused(tmp_path / "d.parquet", tmp_path / "x")
