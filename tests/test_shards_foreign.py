"""Shards of others: what lies beside samples is refused by name, or passed over and counted when asked for."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli import cli
from shards.errors import ShardError
from shards.index.shard_index import ShardIndex, open_index
from shards.tars.sample_rule import SampleRule
from shards.tars.scan import scan_shards
from tests.test_shards_shard_index import image, put, tar_of

PLAIN = {"a.png": image(1), "a.cls": b"0", "b.png": image(2), "b.cls": b"1"}
EXTRA = {"README": b"hello", "a.png": image(1), "a.cls": b"0", "a.bbox.json": b"[]", "a.npy": b"\x93NUMPY",
         "b.png": image(2), "b.cls": b"1", "b.bbox.json": b"[]"}  # fmt: skip
DOTTED = {"n01.0001.png": image(1), "n01.0001.cls": b"0", "n01.0002.png": image(2), "n01.0002.cls": b"1"}


def check(path: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["check-shards", str(path), "--workers", "1", *words])


def keys(path: Path) -> list[str]:
    index = ShardIndex.load(path.with_suffix(".index"))
    return [index.key(0, row) for row in range(index.num_rows(0))]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (EXTRA, "--ignore-unknown"),
        ({**PLAIN, "b.bbox.json": b"[]"}, "where keys have dots give --key-dots; to pass over such members "
                                          "give --ignore-suffix bbox.json, or --ignore-unknown"),
        ({**PLAIN, "b.npy": b""}, "--ignore-suffix npy, or --ignore-unknown"),
        (DOTTED, "--key-dots"),
        ({"a.png": image(1), "a.json": b"{}"}, "--label-key"),
    ],
)  # fmt: skip
def test_the_refusal_names_the_flag_that_would_take_it(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    put(tmp_path / "x.tar", files)
    result = check(tmp_path / "x.tar")
    assert result.exit_code == 1 and said in result.output.replace("\n", " "), result.output


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize(
    ("suffixes", "counted"),
    [
        ([f"{n:06}" for n in range(40)], "80 × name with several dots"),
        ([f"v{n}-final" for n in range(3)], "6 × name with several dots"),
        (["bbox", "seg"], "1 × .seg.png"),
    ],
)
def test_an_advice_is_given_once_for_all_members_and_shards_that_need_it(
    suffixes: list[str], counted: str, num_shards: int, tmp_path: Path
) -> None:
    """Each key with dots had an advice of its own, each shard repeated it, and lines were cut in the middle of it."""
    (tmp_path / "x").mkdir()
    for shard in range(num_shards):
        files = {f"{shard}.{name}.{end}": image(0) for name in suffixes for end in ("cls", "png")}
        put(tmp_path / "x" / f"{shard}.tar", files)
    result = check(tmp_path / "x")
    told, _, error = result.output.partition("error: ")
    assert result.exit_code == 1 and counted in (told if num_shards > 1 else error), result.output
    assert [part.count("--key-dots") for part in (told, error)] == [int(num_shards > 1), 1], result.output
    assert error.rstrip().endswith("--ignore-unknown") and len(error) <= 620
    head = f"{2 * len(suffixes)} members are of no sample, the first '0.{suffixes[0]}.cls' at offset 0: "
    assert head in (told if num_shards > 1 else error)


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (["--ignore-unknown"], "1 × .npy, 1 × without a suffix, 2 × .bbox.json"),
        (["--ignore-suffix", ".bbox.json", "--ignore-suffix", "npy", "--ignore-unknown"], "2 × .bbox.json"),
    ],
)
def test_what_is_passed_over_is_counted_and_changes_nothing(words: list[str], counts: str, tmp_path: Path) -> None:
    put(tmp_path / "x.tar", EXTRA)
    result = check(tmp_path / "x.tar", *words)
    assert result.exit_code == 0, result.output
    said = next(line for line in result.output.splitlines() if line.startswith("passed over"))
    assert all(count in said for count in counts.split(", "))
    assert keys(tmp_path / "x.tar") == ["a", "b"]
    assert check(tmp_path / "x.tar", *words).exit_code == 0, "and it can be checked again"


def test_a_suffix_that_is_not_ignored_is_still_refused(tmp_path: Path) -> None:
    put(tmp_path / "x.tar", EXTRA)
    result = check(tmp_path / "x.tar", "--ignore-suffix", "bbox.json")
    assert result.exit_code == 1 and "README" in result.output


def test_keys_with_dots_end_at_the_last_one(tmp_path: Path) -> None:
    put(tmp_path / "x.tar", DOTTED)
    assert check(tmp_path / "x.tar", "--key-dots").exit_code == 0
    assert keys(tmp_path / "x.tar") == ["n01.0001", "n01.0002"]


@pytest.mark.parametrize("names", [("a.png", "b.png", "a.cls", "b.cls"), ("a.cls", "b.cls", "b.png", "a.png")])
def test_an_unsorted_shard_is_called_unsorted(names: tuple[str, ...]) -> None:
    """Not "no label": the label comes later."""
    from shards.tars.shard_scan import scan_file

    with pytest.raises(ShardError, match="not sorted by name"):
        scan_file(tar_of({name: PLAIN[name] for name in names}), "x.tar", SampleRule(), "x.tar")


@pytest.mark.parametrize(("pack", "what"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_tar_under_a_plain_name_is_not_called_damaged(pack: object, what: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(pack(tar_of(PLAIN).getvalue()))  # type: ignore[operator]
    with pytest.raises(ShardError, match=f"compressed with {what}.*decompress it"):
        list(scan_shards([str(tmp_path / "x.tar")]))


@pytest.mark.parametrize("rule", [SampleRule(num_classes=2), SampleRule(class_numbers={"ant": 0})])
def test_classes_in_the_rule_of_a_scan_are_refused_instead_of_ignored(rule: SampleRule) -> None:
    with pytest.raises(ValueError, match="would be ignored; give num_classes or class_names"):
        next(scan_shards(["a.tar"], rule=rule))


def test_a_new_index_keeps_the_class_names(tmp_path: Path) -> None:
    put(tmp_path / "x.tar", PLAIN)
    (tmp_path / "classes.txt").write_text("cat\ndog\nemu\n")
    assert check(tmp_path / "x.tar", "--class-names", str(tmp_path / "classes.txt")).exit_code == 0
    put(tmp_path / "x.tar", {**PLAIN, "c.png": image(3), "c.cls": b"2"})
    assert check(tmp_path / "x.tar", "--overwrite").exit_code == 0
    assert ShardIndex.load(tmp_path / "x.index").class_names == ("cat", "dog", "emu")
    result = check(tmp_path / "x.tar", "--overwrite", "--num-classes", "7")
    assert "they are dropped for --num-classes 7" in result.output
    assert ShardIndex.load(tmp_path / "x.index").num_classes == 7


def test_many_broken_shards_are_few_lines(tmp_path: Path) -> None:
    urls = [put(tmp_path / f"x{n}.tar", {**PLAIN, f"{'long' * 30}{n}.npy": b""}) for n in range(9)]
    with pytest.raises(ShardError) as caught:
        list(scan_shards(urls))
    assert len(str(caught.value)) <= 600 and len(str(caught.value).splitlines()) <= 6
    assert "9 of 9 shards" in str(caught.value) and "and 6 more" in str(caught.value)


def _shard(path: Path, samples: list[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for n, members in enumerate(samples):
            for suffix, data in members.items():
                for name, content in ((f"._{n:03}.{suffix}", b"\0\5\26\7"), (f"{n:03}.{suffix}", data)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("number", []),
        ("quoted", ["--label-key", "label"]),
        ("float", ["--label-key", "label"]),
        ("nested", ["--label-key", "class.id"]),
        ("name", ["--label-key", "label", "--class-names"]),
        ("name in cls", ["--class-names"]),
    ],
)
def test_labels_of_others_are_read_as_they_write_them(kind: str, words: list[str], tmp_path: Path) -> None:
    """Names, numbers in quotes, numbers of pandas, nested ones; and macOS's twins are passed over in every mode."""
    names = ("ant", "bee", "cow")
    json_of = {
        "quoted": lambda n: {"label": str(n)},
        "float": lambda n: {"label": float(n)},
        "nested": lambda n: {"class": {"id": n}},
        "name": lambda n: {"label": names[n]},
    }
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    samples = []
    for n in range(6):
        if kind in json_of:
            label = {"json": json.dumps(json_of[kind](n % 3)).encode()}
        else:
            label = {"cls": names[n % 3].encode() if kind == "name in cls" else b"%d" % (n % 3)}
        samples.append({"png": image.getvalue(), **label})
    (tmp_path / "s").mkdir()
    _shard(tmp_path / "s" / "a.tar", samples)
    (tmp_path / "names.txt").write_text("\n".join(names))
    flags = [*words, *([str(tmp_path / "names.txt")] if "--class-names" in words else [])]
    done = CliRunner().invoke(cli, ["check-shards", str(tmp_path / "s"), *flags, "--workers", "1"])
    assert done.exit_code == 0 and "12 × file of macOS" in done.output, done.output
    assert open_index(str(tmp_path / "s")).label_N.tolist() == [0, 1, 2] * 2
    if "name" in kind:
        (tmp_path / "s" / "shards.classes.json").unlink()
        (tmp_path / "s" / "shards.index").unlink()
        refused = CliRunner().invoke(cli, ["check-shards", str(tmp_path / "s"), *words[:-1]])
        assert refused.exit_code == 1 and "--class-names" in refused.output, refused.output


def test_labels_from_1_and_gaps_are_said(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    for name, labels in (("one", (1, 2, 3)), ("gap", (0, 1, 3))):
        (tmp_path / name).mkdir()
        _shard(tmp_path / name / "a.tar", [{"png": image.getvalue(), "cls": b"%d" % label} for label in labels])
        said = CliRunner().invoke(cli, ["check-shards", str(tmp_path / name), "--workers", "1"]).output
        assert ("do the labels begin at 1?" in said) == (name == "one"), said
        assert ("1 of 4 classes without a sample: 2" in said) == (name == "gap"), said
