"""The index: what a scan finds is kept, found again and never believed when it is damaged or of other shards."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from shards.errors import ShardError
from shards.index.index_checks import SUFFIXES
from shards.index.shard_index import ShardIndex, index_path, open_index
from shards.index.sources import expand_shards
from shards.tars.sample_rule import SampleRule
from shards.tars.scan import scan_shards
from shards.tars.shard_scan import scan_file
from shards.tars.writer import write_samples
from tests.damage import DOCUMENTS

IMAGES = {"jpg": b"\xff\xd8\xff", "jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF\0\0\0\0WEBP"}


def image(n: int, suffix: str = "png") -> bytes:
    return IMAGES[suffix] + b"%d" % n * (n % 50 + 1)


def make(folder: Path, count: int = 10, per_shard: int = 4, prefix: str = "shard") -> ShardIndex:
    samples = ((f"c{n % 3}/n{n:03d}", n % 3, SUFFIXES[n % 4], image(n, SUFFIXES[n % 4])) for n in range(count))
    return write_samples(samples, folder, samples_per_shard=per_shard, class_names=("cat", "dog", "emu"), prefix=prefix)


def tar_of(files: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    file.seek(0)
    return file


def put(path: Path, files: dict[str, bytes]) -> str:
    path.write_bytes(tar_of(files).getvalue())
    return str(path)


def scan(urls: list[str], num_classes: int | None = None, class_names: tuple[str, ...] = (), **rule: Any) -> ShardIndex:
    events = scan_shards(urls, num_classes=num_classes, class_names=class_names, rule=SampleRule(**rule))
    index = [*events][-1].index
    assert index is not None
    return index


# What it holds.


@pytest.mark.slow
def test_the_index_says_where_each_image_is(tmp_path: Path) -> None:
    index = make(tmp_path)
    assert (index.num_shards, index.num_samples, index.rows_S.tolist()) == (3, 10, [4, 4, 2])
    assert (index.num_classes, index.class_names) == (3, ("cat", "dog", "emu"))
    for n in range(10):
        shard, row = divmod(n, 4)
        data = Path(index.urls[shard]).read_bytes()
        at = int(index.offset_N[n])
        assert index.key(shard, row) == f"c{n % 3}/n{n:03d}"
        assert data[at : at + int(index.size_N[n])] == image(n, SUFFIXES[n % 4])
        assert index.crc32c_N[n] == google_crc32c.value(image(n, SUFFIXES[n % 4]))
        assert (index.label_N[n], index.suffix_N[n]) == (n % 3, n % 4)


def test_find_is_the_inverse_of_key(tmp_path: Path) -> None:
    index = make(tmp_path, 60, 7)
    for shard in range(index.num_shards):
        for row in range(index.num_rows(shard)):
            assert index.find(index.key(shard, row)) == (shard, row)


@pytest.mark.parametrize("key", ["c1/n00", "1/n001", "c1/n001c2/n002", "", "c1/n999", "x" * 99])
def test_find_refuses_parts_and_joints_of_keys(key: str, tmp_path: Path) -> None:
    index = make(tmp_path)
    with pytest.raises(ShardError, match=r"no sample has the key"):
        index.find(key)


def test_find_names_similar_keys(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"similar: 'c1/n004', 'c1/n001', 'c1/n007'|similar: 'c1/n001'"):
        make(tmp_path).find("c1/n00x")


@pytest.mark.parametrize(("shard", "row"), [(0, 4), (2, 2), (0, -1), (-1, 0), (3, 0)])
def test_rows_outside_a_shard_are_errors(shard: int, row: int, tmp_path: Path) -> None:
    """A negative row must not read the neighbour's sample."""
    with pytest.raises(IndexError, match=f"row {row} of shard {shard}"):
        make(tmp_path).key(shard, row)


# The file.


def test_save_and_load_is_the_identity(tmp_path: Path) -> None:
    index = make(tmp_path)
    loaded = ShardIndex.load(tmp_path / "shards.index")
    assert loaded.fingerprint == index.fingerprint
    for name in ("urls", "names", "class_names", "num_classes"):
        assert getattr(loaded, name) == getattr(index, name)
    for name in ("tar_bytes_S", "first_S", "offset_N", "size_N", "crc32c_N", "label_N", "suffix_N"):
        assert getattr(loaded, name).dtype == getattr(index, name).dtype
        assert np.array_equal(getattr(loaded, name), getattr(index, name))


def test_every_flipped_byte_of_the_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    whole = (tmp_path / "shards.index").read_bytes()
    path = tmp_path / "copy.index"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(ShardError, match=r"copy\.index: the index is damaged"):
            ShardIndex.load(path)


def test_every_cut_of_the_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    whole = (tmp_path / "shards.index").read_bytes()
    path = tmp_path / "copy.index"
    for data in [*(whole[:n] for n in range(0, len(whole), 13)), whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(ShardError, match=r"copy\.index: the index is damaged"):
            ShardIndex.load(path)


@pytest.mark.parametrize("name", ["../a.tar", "/etc/a.tar", "b/a.tar", "..", ".", "", "a\0.tar", "http://h/a.tar"])
def test_a_shard_of_an_index_is_a_name_and_no_path(name: str, tmp_path: Path) -> None:
    """Who wrote the index, checksums included, chooses no place that is read or written."""
    make(tmp_path)
    path, document = tmp_path / "shards.index", DOCUMENTS["index"]
    whole = path.read_bytes()
    head = document.load(whole, path)
    head["meta"]["names"][1] = name
    path.write_bytes(document.seal(head, whole, path))
    with pytest.raises(ShardError, match=r"shards\.index.*names: expected base names of shards"):
        ShardIndex.load(path)


def test_the_head_of_an_index_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    """Its length is a number of four bytes, in a file that need not take any room on the disk."""
    path = tmp_path / "shards.index"
    make(tmp_path)
    with path.open("r+b") as file:
        file.seek(16)
        file.write((1 << 31).to_bytes(4, "little"))
        file.truncate(3 << 30)
    with pytest.raises(ShardError, match=r"expected a head of at most 268435456 bytes, got 21474\d+"):
        ShardIndex.load(path)


def test_a_pickled_index_is_the_index(tmp_path: Path) -> None:
    index = open_index(str(tmp_path)) if make(tmp_path) else None
    assert index is not None
    data = pickle.dumps(index)
    copy = pickle.loads(data)
    assert (copy.fingerprint, copy.urls) == (index.fingerprint, index.urls)
    assert len(data) < 2000, "a loaded index travels as its path"
    unsaved = scan(list(index.urls))
    assert pickle.loads(pickle.dumps(unsaved)).fingerprint == unsaved.fingerprint


def test_a_worker_refuses_an_index_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", 12)
    data = pickle.dumps(open_index(str(tmp_path / "a")))
    shutil.copy(tmp_path / "b" / "shards.index", tmp_path / "a" / "shards.index")
    with pytest.raises(ShardError, match="replaced while it was in use"):
        pickle.loads(data)


# The fingerprint.


def test_the_fingerprint_depends_on_content_and_not_on_place(tmp_path: Path) -> None:
    index = make(tmp_path / "a")
    assert make(tmp_path / "b").fingerprint == index.fingerprint
    shutil.move(tmp_path / "a", tmp_path / "moved")
    moved = open_index(str(tmp_path / "moved"))
    assert moved.fingerprint == index.fingerprint
    assert all(Path(url).is_file() for url in moved.urls)


BASE = {"a.cls": b"0", "a.png": image(1), "b.cls": b"1", "b.png": image(2)}
CHANGES = {
    "key": {"a.cls": b"0", "a.png": image(1), "c.cls": b"1", "c.png": image(2)},
    "where_keys_end": {"ab.cls": b"0", "ab.png": image(1), "c.cls": b"1", "c.png": image(2)},
    "label": BASE | {"b.cls": b"0"},
    "one_byte_of_an_image": BASE | {"b.png": image(2)[:-1] + b"!"},
    "image_size": BASE | {"b.png": image(2) + b"2"},
    "suffix": {"a.cls": b"0", "a.png": image(1), "b.cls": b"1", "b.jpg": image(2)},
    "order": {"b.cls": b"1", "b.png": image(2), "a.cls": b"0", "a.png": image(1)},
    "one_sample_less": {"a.cls": b"0", "a.png": image(1)},
    "place_in_the_tar": {"a.png": image(1), "a.cls": b"0", "b.cls": b"1", "b.png": image(2)},
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_the_fingerprint_sees_every_change_of_content(name: str, tmp_path: Path) -> None:
    before = scan([put(tmp_path / "s.tar", BASE)], num_classes=2).fingerprint
    assert scan([put(tmp_path / "s.tar", CHANGES[name])], num_classes=2).fingerprint != before


def test_the_fingerprint_sees_names_classes_and_order_of_shards(tmp_path: Path) -> None:
    one = put(tmp_path / "one.tar", BASE)
    two = put(tmp_path / "two.tar", {"c.cls": b"1", "c.png": image(3)})
    other = str(shutil.copy(one, tmp_path / "other.tar"))
    prints = [
        scan([one, two], num_classes=2),
        scan([two, one], num_classes=2),
        scan([one], num_classes=2),
        scan([other], num_classes=2),
        scan([one], num_classes=3),
        scan([one], class_names=("x", "y")),
        scan([one], class_names=("x", "z")),
    ]
    assert len({index.fingerprint for index in prints}) == len(prints)


# What a scan accepts and refuses.


def test_layouts_of_others_are_read(tmp_path: Path) -> None:
    """timm's ImageNet shards (cls, jpg, json), img2dataset's (jpg, json, txt; the label in .json), upper-case names."""
    timm = {"n01/a_1.cls": b"7", "n01/a_1.jpg": image(1, "jpg"), "n01/a_1.json": b'{"label": 7, "size": [1, 2]}'}
    img2dataset = {"000000001.jpg": image(1, "jpg"), "000000001.json": b'{"y": 5}', "000000001.txt": b"a caption"}
    loud = {"./x/A.CLS": b" 3\n", "./x/A.JPEG": image(2, "jpg")}
    assert scan([put(tmp_path / "a.tar", timm)], num_classes=1000).label_N.tolist() == [7]
    assert scan([put(tmp_path / "b.tar", img2dataset)], label_key="y").label_N.tolist() == [5]
    index = scan([put(tmp_path / "c.tar", loud)])
    assert (index.key(0, 0), index.label_N.tolist(), index.num_classes) == ("./x/A", [3], 4)


REFUSED = {
    "no_image": ({"a.cls": b"0", "b.cls": b"0", "b.png": image(1)}, {}, "sample 'a': expected an image"),
    "no_label": ({"a.png": image(1)}, {}, r"expected a label in \.cls, got only \.png; .*make-shards"),
    "two_images": (BASE | {"b.jpg": image(1, "jpg")}, {}, "expected one image in the sample, got 'b.png'"),
    "a_member_twice": ({"a.cls": b"0", "a.CLS": b"0", "a.png": image(1)}, {}, r"expected one \.cls"),
    "a_sample_in_two_places": (
        {"a.cls": b"0", "a.png": image(1), "b.cls": b"0", "b.png": image(2), "a.txt": b""},
        {},
        "'a' side by side",
    ),
    "an_unknown_suffix": (BASE | {"b.npy": b""}, {}, r"suffixes jpg, .*got suffix 'npy'"),
    "a_pickle": (BASE | {"b.pyd": b""}, {}, "got suffix 'pyd'"),
    "a_dot_in_the_name": ({"a.v2.png": image(1), "a.v2.cls": b"0"}, {}, "first dot"),
    "no_suffix": (BASE | {"readme": b""}, {}, "of the form key.suffix"),
    "a_hidden_file": (BASE | {"dir/.png": image(1)}, {}, "of the form key.suffix"),
    "a_label_that_is_no_number": (BASE | {"b.cls": b"dog"}, {}, "an ASCII integer, got b'dog'"),
    "a_negative_label": (BASE | {"b.cls": b"-1"}, {}, "an ASCII integer"),
    "an_empty_label": (BASE | {"b.cls": b""}, {}, "an ASCII integer"),
    "a_label_out_of_range": (BASE | {"b.cls": b"2"}, {"num_classes": 2}, r"a label in \[0, 2\), got 2"),
    "a_label_out_of_the_names": (BASE | {"b.cls": b"2"}, {"class_names": ("x", "y")}, r"\[0, 2\)"),
    "an_empty_image": (BASE | {"b.png": b""}, {}, "expected a JPEG, PNG or WebP image: the file is empty"),
    "a_page_instead_of_an_image": (BASE | {"b.png": b"<html>"}, {}, "it is a text file"),
    "broken_json": (BASE | {"b.json": b'{"a":'}, {}, "expected JSON"),
    "json_that_is_no_text": (BASE | {"b.json": b"\xff\xfe\xfa"}, {}, "expected JSON"),
    "no_label_in_json": (BASE | {"b.json": b"{}"}, {"label_key": "y"}, "integer label under 'y'|expected a label"),
    "a_label_in_json_that_is_no_integer": (
        {"a.png": image(1), "a.json": b'{"y": "cat"}'},
        {"label_key": "y"},
        "integer label under 'y'",
    ),
    "labels_that_disagree": (
        {"a.cls": b"0", "a.json": b'{"y": 1}', "a.png": image(1)},
        {"label_key": "y"},
        "disagree on the label",
    ),
    "an_empty_shard": ({}, {}, "holds no samples"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_scan_refuses(name: str, tmp_path: Path) -> None:
    files, options, message = REFUSED[name]
    url = put(tmp_path / "s.tar", files)
    with pytest.raises(ShardError, match=message) as caught:
        scan([url], **options)
    assert str(caught.value).startswith(url)


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    urls = [put(tmp_path / f"{n}.tar", {f"{k}.cls": b"0", f"{k}.png": image(1)}) for n, k in enumerate("aba")]
    with pytest.raises(ShardError, match=r"2\.tar: key 'a' is also in .*0\.tar"):
        scan(urls)


def test_equal_hashes_of_different_keys_are_no_duplicates(tmp_path: Path) -> None:
    from dataclasses import replace

    from shards.tars.assemble import assemble

    scans = [
        replace(scan_file(tar_of({f"{k}.cls": b"0", f"{k}.png": image(1)}), f"{k}.tar", SampleRule(), k),
                key_hash_N=np.zeros(1, np.uint64))
        for k in "ab"
    ]  # fmt: skip
    assert assemble(["a.tar", "b.tar"], scans).num_samples == 2


def test_the_scan_does_not_depend_on_the_process_count(tmp_path: Path) -> None:
    index = make(tmp_path, 30, 4)
    events = list(scan_shards(index.urls, class_names=index.class_names, workers=3))
    assert events[-1].index is not None
    assert events[-1].index.fingerprint == index.fingerprint
    assert [event.shards_done for event in events] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert events[-1].num_samples == 30
    assert events[-1].num_bytes == int(index.tar_bytes_S.sum())


def test_another_sample_count_than_indexed_is_named(tmp_path: Path) -> None:
    index = make(tmp_path / "a")
    make(tmp_path / "b", 9)
    shutil.copy(tmp_path / "b" / "shard-000002.tar", tmp_path / "a")
    with pytest.raises(ShardError, match=r"shard-000002\.tar: expected 2 samples .* got 1"):
        list(scan_shards(index.urls, expected=index))


# Which shards a pattern names.


def test_patterns_name_files_directories_ranges_and_lists(tmp_path: Path) -> None:
    index = make(tmp_path, 12, 4)
    urls = list(index.urls)
    assert expand_shards(str(tmp_path)) == urls
    assert expand_shards(urls[1]) == urls[1:2]
    assert expand_shards(f"{tmp_path}/shard-{{000000..000002}}.tar") == urls
    assert expand_shards(f"{tmp_path}/shard-00000{{2,0}}.tar") == [urls[2], urls[0]]
    assert expand_shards("::".join(urls[:2])) == urls[:2]
    assert expand_shards(f"file://{urls[0]}") == urls[:1]
    assert expand_shards("s3://b/x-{00..02}.tar") == [f"s3://b/x-0{n}.tar" for n in range(3)]
    assert expand_shards("https://h/x.tar?token=1") == ["https://h/x.tar?token=1"]


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("pipe:curl http://x/a.tar", ValueError, "pipe: .* refused"),
        ("ftp://x/a.tar", ValueError, "s3://"),
        ("s3://bucket/folder/", ValueError, "ending in .tar"),
        ("a.tar.gz", ValueError, "ending in .tar"),
        ("", ValueError, "empty"),
        ("s3://a/x.tar::", ValueError, "empty"),
        ("a-{0..3.tar", ValueError, "balanced braces"),
        ("a-{0..99999999}.tar", ValueError, "at most"),
        ("missing.tar", ShardError, "no such shard"),
        ("s3://a/x.tar::s3://b/x.tar", ShardError, "two shards are called 'x.tar'"),
    ],
)
def test_patterns_that_are_refused(pattern: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        expand_shards(pattern)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"expected \*\.tar files"):
        expand_shards(str(tmp_path))


def test_train_and_validation_in_one_folder_have_their_own_indexes(tmp_path: Path) -> None:
    """As in timm's ImageNet shards."""
    for prefix, count in (("train", 8), ("validation", 4)):
        make(tmp_path / prefix, count, 4, prefix)
        for path in (tmp_path / prefix).glob("*.tar"):
            shutil.move(path, tmp_path)
    patterns = [f"{tmp_path}/train-{{000000..000001}}.tar", f"{tmp_path}/validation-000000.tar", str(tmp_path)]
    names = [index_path(pattern).name for pattern in patterns]
    assert names == ["train.index", "validation-000000.index", "shards.index"]
    for pattern, count in zip(patterns[:2], (8, 4), strict=True):
        scan(expand_shards(pattern)).save(index_path(pattern))
        assert open_index(pattern).num_samples == count


def test_the_index_of_a_folder_serves_the_range_that_covers_it(tmp_path: Path) -> None:
    make(tmp_path)
    assert open_index(f"{tmp_path}/shard-{{000000..000002}}.tar").num_samples == 10


def test_opening_refuses_other_shards_sizes_and_missing_indexes(tmp_path: Path) -> None:
    index = make(tmp_path)
    with pytest.raises(
        ShardError, match=r"covers other shards .* expected 2, got 3; .*\['shard-000002.tar'\].*check-shards"
    ):
        open_index(f"{tmp_path}/shard-{{000000..000001}}.tar")
    with open(index.urls[1], "ab") as file:
        file.write(b"\0")
    with pytest.raises(ShardError, match=r"shard-000001\.tar: expected \d+ bytes .*got \d+"):
        open_index(str(tmp_path))
    (tmp_path / "shards.index").unlink()
    with pytest.raises(ShardError, match=r"no such index; run check-shards"):
        open_index(str(tmp_path))


def test_an_index_saved_elsewhere_knows_where_its_shards_are(tmp_path: Path) -> None:
    index = make(tmp_path / "a")
    index.save(tmp_path / "elsewhere.index")
    assert ShardIndex.load(tmp_path / "elsewhere.index", follow_places=True).urls == index.urls
    beside = [str(tmp_path / name) for name in index.names]
    assert list(ShardIndex.load(tmp_path / "elsewhere.index").urls) == beside, "a stranger's file names no other place"


def test_contradicting_classes_are_refused(tmp_path: Path) -> None:
    url = put(tmp_path / "s.tar", BASE)
    with pytest.raises(ValueError, match="--num-classes: expected 2"):
        scan([url], num_classes=5, class_names=("x", "y"))


def test_json_numbers_and_lists_are_no_labels(tmp_path: Path) -> None:
    for value in (True, 1.5, [1], None):
        url = put(tmp_path / "s.tar", {"a.png": image(1), "a.json": json.dumps({"y": value}).encode()})
        with pytest.raises(ShardError, match="integer label under 'y'"):
            scan([url], label_key="y")


def test_a_scan_with_decoding_finds_images_that_are_cut_inside_an_intact_shard(tmp_path: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    whole = buffer.getvalue()
    good = put(tmp_path / "good.tar", {"a.cls": b"0", "a.jpg": whole})
    cut = put(tmp_path / "cut.tar", {"b.cls": b"0", "b.jpg": whole[:-200]})
    assert scan([good], decode=True).num_samples == 1
    assert scan([cut]).num_samples == 1
    with pytest.raises(ShardError, match=r"cut\.tar: offset 1024: member 'b\.jpg'"):
        scan([good, cut], decode=True)


def test_an_index_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    index = make(tmp_path)
    with pytest.raises(ShardError, match=r"none/shards\.index: the index cannot be written"):
        index.save(tmp_path / "none" / "shards.index")
