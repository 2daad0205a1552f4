"""What make-shards takes: each format in its real layout, and the same shards whatever holds the images."""

import csv
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli import cli
from shards.formats.input_format import Source
from shards.formats.table import FORMATS, format_of
from shards.index.shard_index import ShardIndex

WNIDS = ("n01440764", "n01443537", "n01484850")


def encoded(n: int, kind: str = "JPEG") -> bytes:
    """A small image, another one for each number."""
    file = io.BytesIO()
    pixels = np.random.default_rng(n).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def class_folders(root: Path, each: int = 4) -> Path:
    """ImageNet's training images as they are unpacked."""
    for label, wnid in enumerate(WNIDS):
        for n in range(each):
            put(root / wnid / f"{wnid}_{n}.JPEG", encoded(100 * label + n))
    return root


def flat_val(root: Path, num: int = 6) -> dict[str, str]:
    """ImageNet's validation images as they are unpacked, side by side; name → wnid."""
    wnid_of = {f"ILSVRC2012_val_{n:08d}": WNIDS[(n * n) % 3] for n in range(1, num + 1)}
    for n, name in enumerate(wnid_of):
        put(root / f"{name}.JPEG", encoded(1000 + n))
    return wnid_of


def solution(wnid_of: dict[str, str]) -> str:
    """LOC_val_solution.csv: boxes after the class, lines in no order."""
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 " for name, wnid in reversed(list(wnid_of.items()))]
    return "\n".join(["ImageId,PredictionString", *rows]) + "\n"


def tar_of(path: Path, files: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def zip_of(path: Path, folder: Path, top: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(folder)}")
    return path


class UnflaggedName(zipfile.ZipInfo):
    """A member whose name is written as it is, without the flag of UTF-8: so `zip` of Linux and macOS do."""

    encoding = "utf-8"

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - zipfile's
        return self.filename.encode(self.encoding), 0


def make(source: Path, dest: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["make-shards", str(source), str(dest), "--workers", "1", *words])


def made(source: Path, dest: Path, *words: str) -> str:
    result = make(source, dest, *words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(source: Path, dest: Path, *words: str) -> str:
    result = make(source, dest, *words)
    assert result.exit_code in (1, 2), result.output
    assert len(result.output) < 800 and "Traceback" not in result.output
    return result.output


def labels_of(folder: Path) -> dict[str, int | str]:
    """Key → class name, or label where there are no names."""
    index = ShardIndex.load(folder / "shards.index")
    rows = [(s, r) for s in range(index.num_shards) for r in range(index.num_rows(s))]
    labels = {index.key(s, r): int(index.label_N[index.row_number(s, r)]) for s, r in rows}
    return {key: index.class_names[label] if index.class_names else label for key, label in labels.items()}


# The same images, whatever holds them.


def outer_tar(folder: Path, at: Path) -> Path:
    inner = {}
    for name in sorted(path.name for path in folder.iterdir()):
        files = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        inner[f"{name}.tar"] = tar_of(at / "inner" / f"{name}.tar", files).read_bytes()
    return tar_of(at / "ILSVRC2012_img_train.tar", inner)


def _plain_tar(folder: Path, at: Path, top: str = "./photos/") -> Path:
    files = {f"{top}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*.JPEG")}
    twins = {f"{top}n01440764/._a.JPEG": b"\0\5\26\7", f"{top}._photos": b"x", "._photos": b"x"}
    return tar_of(at / "photos.tar", twins | files, tarfile.PAX_FORMAT)


HOLDERS: dict[str, Callable[[Path, Path], Path]] = {
    "tar of tars": outer_tar,
    "tar of a folder": _plain_tar,
    "zip": lambda folder, at: zip_of(at / "a.zip", folder),
    "zip of a folder, stored": lambda folder, at: zip_of(at / "a.zip", folder, "photos/", zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_same_images_make_the_same_shards_whatever_holds_them(holder: str, tmp_path: Path) -> None:
    """The bytes of ImageNet's tar of tars are those of its class folders; nothing is unpacked."""
    folder = class_folders(tmp_path / "train")
    made(folder, tmp_path / "expected", "--samples-per-shard", "5")
    (tmp_path / "at").mkdir()
    archive = HOLDERS[holder](folder, tmp_path / "at")
    before = sorted(path.name for path in archive.parent.iterdir())
    made(archive, tmp_path / "out", "--samples-per-shard", "5")
    assert sorted(path.name for path in archive.parent.iterdir()) == before
    for path in (tmp_path / "expected").iterdir():
        if not path.name.startswith("."):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert "kept" not in made(archive, tmp_path / "out", "--samples-per-shard", "5"), "the same command goes on"


@pytest.mark.parametrize(
    ("system", "encoding"), [(3, "utf-8"), (0, "cp437"), (3, "cp437")], ids=["Unix", "DOS", "neither"]
)
def test_names_in_a_zip_are_those_that_its_writer_meant(system: int, encoding: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for n, label in enumerate(("église", "ant")):
            info = UnflaggedName(f"{label}/0.JPEG")
            info.create_system, info.encoding = system, encoding
            archive.writestr(info, encoded(n))
    made(tmp_path / "a.zip", tmp_path / "out")
    assert ShardIndex.load(tmp_path / "out" / "shards.index").class_names == ("ant", "église")


@pytest.mark.parametrize("damage", ["cut", "flip", "gzip", "text", "missing"])
def test_damaged_archives_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "train")
    for path in (outer_tar(folder, tmp_path), zip_of(tmp_path / "a.zip", folder, method=zipfile.ZIP_STORED)):
        data = path.read_bytes()
        if damage == "cut":
            path.write_bytes(data[: len(data) * 2 // 3])
        elif damage == "flip":
            at = data.index(b"\xff\xda") + 200
            path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        elif damage == "gzip":
            path.write_bytes(b"\x1f\x8b\x08" + data)
        elif damage == "text":
            path.write_bytes(b"a page, no archive" * 100)
        else:
            path.unlink()
        if damage == "flip" and path.suffix == ".tar":
            continue  # a tar has no checksum of its members
        assert path.name in refused(path, tmp_path / "out")


def test_a_zip_that_was_written_as_a_stream_is_read(tmp_path: Path) -> None:
    """Its local headers have neither sizes nor checksums."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for n in range(4):
            archive.writestr(f"{'ab'[n % 2]}/{n}.jpg", encoded(n))
    put(tmp_path / "a.zip", bytes(pipe.data))
    made(tmp_path / "a.zip", tmp_path / "out")
    assert labels_of(tmp_path / "out") == {"a/0": "a", "b/1": "b", "a/2": "a", "b/3": "b"}


# Lists of labels.

NAMES = {f"img_{n:03d}.jpg": ("cat", "dog")[n % 2] for n in range(8)}
LISTS = {
    "header": "file,label\n" + "".join(f"{name},{label}\n" for name, label in NAMES.items()),
    "other header": "picture,animal\n" + "".join(f"{name},{label}\n" for name, label in NAMES.items()),
    "no header": "".join(f"{name},{label}\n" for name, label in NAMES.items()),
    "reversed columns": "label,filename\n" + "".join(f"{label},{name}\n" for name, label in NAMES.items()),
    "more columns": "id,width,breed\n" + "".join(f"{name[:-4]},24,{label}\n" for name, label in NAMES.items()),
    "quotes": "".join(f'"{name}","{label}"\r\n' for name, label in NAMES.items()),
    "tabs": "path\tclass\n" + "".join(f"data/train/{name}\t{label}\n" for name, label in NAMES.items()),
    "blanks": "".join(f"./{name} {label}\n" for name, label in NAMES.items()),
    "semicolons": "\ufeff" + "".join(f"{name};{label}\n" for name, label in NAMES.items()),
    "more lines": "".join(f"{name},{label}\n" for name, label in (NAMES | {"gone.jpg": "cow"}).items()),
}


def flat(root: Path) -> Path:
    for n, name in enumerate(NAMES):
        put(root / name, encoded(n))
    return root


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_labels_are_read_as_people_write_them(name: str, tmp_path: Path) -> None:
    put(tmp_path / "flat" / "labels.csv", LISTS[name])
    said = made(flat(tmp_path / "flat"), tmp_path / "out", "--labels", str(tmp_path / "flat" / "labels.csv"))
    assert labels_of(tmp_path / "out") == {key[:-4]: label for key, label in NAMES.items()}
    assert ("1 line of images that are not here" in said) == (name == "more lines")


@pytest.mark.parametrize(("first", "flag"), [(0, None), (1, "1"), (1, "0")])
def test_labels_may_be_numbers_and_where_they_begin_is_never_guessed(
    first: int, flag: str | None, tmp_path: Path
) -> None:
    source = flat(tmp_path / "flat")
    lines = "".join(f"{name},{n % 2 + first}.0\n" for n, name in enumerate(NAMES))
    put(tmp_path / "list.csv", lines)
    words = ["--labels", str(tmp_path / "list.csv")]
    if first:
        assert "--first-label 1" in refused(source, tmp_path / "out", *words)
    made(source, tmp_path / "out", *words, *(["--first-label", flag] if flag else []))
    shift = 1 if flag == "0" else 0
    assert list(labels_of(tmp_path / "out").values()).count(1 + shift) == 4
    assert set(labels_of(tmp_path / "out").values()) == {shift, 1 + shift}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a line for each image"),
        ("img_000.jpg,cat\n", "7 of 8 images"),
        ("".join(f"{name},{n}\n" for n, name in enumerate(NAMES, 1)), "count the lines"),
        ("".join(f"{name},{label}\n" for name, label in NAMES.items()) + "img_000.jpg,dog\n", "in line 1 'cat'"),
        ("a,b,c\n1,2,3\n", "8 of 8 images"),
        ("file,label,class\n" + "".join(f"{name},1,2\n" for name in NAMES), "rename the columns"),
        ("file,label\n" + "".join(f"{name}\n" for name in NAMES), "columns"),
        ("\n".join("12" for _ in NAMES), "meta.mat"),
    ],
)
def test_lists_that_could_be_wrong_are_refused(text: str, message: str, tmp_path: Path) -> None:
    put(tmp_path / "list.csv", text)
    said = refused(flat(tmp_path / "flat"), tmp_path / "out", "--labels", str(tmp_path / "list.csv"))
    assert message in said and "list.csv" in said, said


def test_names_that_differ_by_leading_zeros_are_two_classes(tmp_path: Path) -> None:
    """As numbers they were one."""
    source = flat(tmp_path / "flat")
    labels = {image.name: ("7", "07", "007")[n % 3] for n, image in enumerate(sorted(source.rglob("*.*")))}
    put(tmp_path / "list.csv", "".join(f"{name},{label}\n" for name, label in labels.items()))
    assert "3 classes" in made(source, tmp_path / "out", "--labels", str(tmp_path / "list.csv"))
    assert set(labels_of(tmp_path / "out").values()) == {"7", "07", "007"}


def test_images_side_by_side_without_a_list_are_told_of_it(tmp_path: Path) -> None:
    flat_val(tmp_path / "val")
    said = refused(tmp_path / "val", tmp_path / "out")
    assert "6 files side by side" in said and "--labels FILE" in said


# ImageNet's validation set.


def devkit(folder: Path, wnid_of: dict[str, str]) -> Path:
    """The ground truth, numbered in an order of its own, and meta.mat with the numbers, with an inner node."""
    from scipy.io import savemat

    numbers = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2, "n00001740": 4}
    rows = [(number, wnid, wnid, 2 if number == 4 else 0) for wnid, number in numbers.items()]
    dtype = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=dtype).reshape(-1, 1)})
    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    put(path, "".join(f"{numbers[wnid]}\n" for wnid in wnid_of.values()))
    return path


def val_txt(folder: Path, wnid_of: dict[str, str]) -> Path:
    """The list that comes with Caffe: numbers in the order of the sorted wnids."""
    path = folder / "val.txt"
    put(path, "".join(f"{name}.JPEG {WNIDS.index(wnid)}\n" for name, wnid in wnid_of.items()))
    return path


@pytest.mark.parametrize("holder", ["folder", "tar"])
@pytest.mark.parametrize("kind", ["LOC_val_solution", "val.txt", "devkit"])
def test_imagenets_validation_set_is_read_with_each_of_its_lists(kind: str, holder: str, tmp_path: Path) -> None:
    wnid_of = flat_val(tmp_path / "val")
    put(tmp_path / "LOC_val_solution.csv", solution(wnid_of))
    path = {
        "LOC_val_solution": lambda: tmp_path / "LOC_val_solution.csv",
        "val.txt": lambda: val_txt(tmp_path, wnid_of),
        "devkit": lambda: devkit(tmp_path / "data", wnid_of),
    }[kind]()
    source = tmp_path / "val"
    if holder == "tar":
        files = {file.name: file.read_bytes() for file in source.iterdir()}
        source = tar_of(tmp_path / "ILSVRC2012_img_val.tar", files)
    put(tmp_path / "wnids.txt", "\n".join(WNIDS))
    made(source, tmp_path / "out", "--labels", str(path), "--class-names", str(tmp_path / "wnids.txt"))
    assert labels_of(tmp_path / "out") == wnid_of


def test_the_ground_truth_is_refused_without_the_devkit(tmp_path: Path) -> None:
    """Its numbers are not the sorted order: every label would be wrong, and nothing would say so."""
    wnid_of = flat_val(tmp_path / "val")
    path = devkit(tmp_path / "data", wnid_of)
    (tmp_path / "data" / "meta.mat").unlink()
    assert "meta.mat" in refused(tmp_path / "val", tmp_path / "out", "--labels", str(path))


# Roots with train/ and val/.


def kaggle(root: Path, *, inside: bool) -> Path:
    """Kaggle's download; the list lies beside ILSVRC/, which is what `inside` gives."""
    place = root / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(place / "train")
    wnid_of = flat_val(place / "val")
    put(place / "test" / "ILSVRC2012_test_00000001.JPEG", encoded(5))
    put(root / "LOC_val_solution.csv", solution(wnid_of))
    put(root / "LOC_synset_mapping.txt", "n01440764 tench\n")
    for split in ("train_cls", "val"):
        put(root / "ILSVRC" / "ImageSets" / "CLS-LOC" / f"{split}.txt", "ILSVRC2012_val_00000001 1\n")
    put(root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.xml", "<a/>")
    return root / "ILSVRC" if inside else root


@pytest.mark.parametrize("kind", ["ILSVRC/", "above it", "zip", "own"])
def test_a_root_with_train_and_val_makes_both(kind: str, tmp_path: Path) -> None:
    if kind == "own":
        source = class_folders(tmp_path / "photos" / "train").parent
        class_folders(source / "val", each=2)
        shutil.rmtree(source / "val" / WNIDS[1])
        put(source / "README.txt", "photos")
    else:
        source = kaggle(tmp_path / "kaggle", inside=kind == "ILSVRC/")
        source = zip_of(tmp_path / "imagenet.zip", source) if kind == "zip" else source
    said = made(source, tmp_path / "out")
    train, val = (ShardIndex.load(tmp_path / "out" / split / "shards.index") for split in ("train", "val"))
    assert train.class_names == val.class_names == WNIDS, "one order of classes"
    assert (train.num_samples, val.num_samples) == (12, 4 if kind == "own" else 6)
    if kind == "own":
        assert f"without an image: 1 of 3 classes: '{WNIDS[1]}'" in said
    else:
        assert "passed over: test" in said
        wnid_of = flat_val(tmp_path / "again")
        assert labels_of(tmp_path / "out" / "val") == wnid_of


PARTS = [
    *(("train", "val"), ("train", "test"), ("Train", "Valid"), ("training", "validation"), ("training", "testing")),
    *(("train", "dev"), ("train", "Test")),
]


@pytest.mark.parametrize(("train", "val"), PARTS)
def test_the_parts_of_a_set_are_known_by_their_usual_names(train: str, val: str, tmp_path: Path) -> None:
    """`train` and `test` were two classes, on which a teacher was trained."""
    source = class_folders(tmp_path / "photos" / train).parent
    class_folders(source / val, each=2)
    said = made(source, tmp_path / "out")
    sets = [ShardIndex.load(tmp_path / "out" / split / "shards.index") for split in ("train", "val")]
    assert [(index.class_names, index.num_samples) for index in sets] == [(WNIDS, 12), (WNIDS, 6)]
    assert (f"{val} is the validation set" in said) == (val.lower() in ("test", "testing"))


def test_val_comes_before_test_and_a_test_without_labels_is_no_validation_set(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "photos" / "train").parent
    class_folders(source / "val", each=2)
    class_folders(source / "test", each=3)
    assert "passed over: test" in made(source, tmp_path / "out")
    assert ShardIndex.load(tmp_path / "out" / "val" / "shards.index").num_samples == 6
    shutil.rmtree(source / "val")
    shutil.rmtree(source / "test")
    put(source / "test" / "1.jpg", encoded(1))
    said = refused(source, tmp_path / "again")
    assert f"{source}/train" in said and "--split 0.2" in said
    assert made(source / "train", tmp_path / "again", "--split", "0.2"), "as advised"


NO_CLASSES = [("seg_train", "seg_test"), ("seg_pred", "seg_test"), ("test", "val"), ("Training set", "Test set")]


@pytest.mark.parametrize("names", [*NO_CLASSES, PARTS[1]])
def test_parts_of_a_set_are_no_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    """Whether they hold classes or, as in Kaggle's competitions, images side by side."""
    for name in names:
        put(tmp_path / "photos" / name / "1.jpg", encoded(len(name)))
        put(tmp_path / "photos" / ".git" / "x", "")
    said = refused(tmp_path / "photos", tmp_path / "out")
    assert all(repr(name) in said for name in names) and "name them train and val" in said
    assert "2 classes" in made(tmp_path / "photos", tmp_path / "out", "--format", "folders")
    put(tmp_path / "photos" / "bus" / "1.jpg", encoded(99))
    assert "3 classes" in made(tmp_path / "photos", tmp_path / "vehicles"), "a train beside a bus is a class"


@pytest.mark.parametrize("names", [("freight train", "passenger train"), ("a_test", "b_test"), ("train", "Bus")])
def test_classes_that_share_the_word_of_one_part_are_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    """Kinds of trains were refused as the parts of a set; `distill` has no flag that says otherwise."""
    for name in names:
        put(tmp_path / "photos" / name / "1.jpg", encoded(len(name)))
    assert "2 classes" in made(tmp_path / "photos", tmp_path / "out")


def test_who_holds_no_images_out_is_told_before_training(tmp_path: Path) -> None:
    """It was said after a quarter of an hour, by train-teacher: "these are its own training images"."""
    source = class_folders(tmp_path / "photos")
    assert "--split 0.2" in made(source, tmp_path / "alone")
    assert "held out" not in made(source, tmp_path / "both", "--split", "0.2")
    assert "held out" not in made(source, tmp_path / "v" / "val")
    assert "held out" not in made(source, tmp_path / "v" / "train"), "val is beside it"
    assert "held out" not in made(source, tmp_path / "more", "--no-labels")


@pytest.mark.parametrize("below", ["", "train"])
def test_shards_as_a_source_are_called_what_they_are(below: str, tmp_path: Path) -> None:
    """With --ignore-unknown, as distill packs, there was "no folder per class", or train and val were misnamed."""
    source = class_folders(tmp_path / "photos" / "train").parent
    class_folders(source / "val", each=2)
    made(source, tmp_path / "data")
    shards = tmp_path / "data" / ("" if below else "train")
    for flags in ((), ("--ignore-unknown",)):
        said = refused(shards, tmp_path / "again", *flags)
        assert "got shards" in said and f"train-teacher --shards {tmp_path}/data/train" in said


def test_train_and_val_without_classes_are_not_told_to_be_named_so(tmp_path: Path) -> None:
    """Images of Kaggle's competitions often lie side by side."""
    for name in ("train", "val"):
        for n in range(3):
            put(tmp_path / "photos" / name / f"{n}.jpg", encoded(n))
    said = refused(tmp_path / "photos", tmp_path / "out")
    assert "photos/train: expected one folder per class, got 3 files side by side" in said and "name them" not in said


def test_one_image_as_a_source_is_called_what_it_is(tmp_path: Path) -> None:
    """A JPEG was a tar with a "bad checksum"."""
    put(tmp_path / "a.JPG", encoded(1))
    assert "got one image" in refused(tmp_path / "a.JPG", tmp_path / "out")


def test_a_class_of_validation_alone_is_one_that_training_lacks(tmp_path: Path) -> None:
    """Nobody gave class names; they are those of the training folder."""
    source = class_folders(tmp_path / "photos" / "train").parent
    class_folders(source / "val")
    put(source / "val" / "n09999999" / "1.jpg", encoded(1))
    assert "n09999999: this folder is not among the 3 classes of train" in refused(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "no_labels", "unsup"])
def test_a_class_that_is_called_unlabelled_is_doubted(name: str, tmp_path: Path) -> None:
    for source in (tmp_path / "photos", tmp_path / "both" / "train"):
        put(class_folders(source) / name / "1.jpg", encoded(1))
    class_folders(tmp_path / "both" / "val")
    for source in ("photos", "both"):
        said = made(tmp_path / source, tmp_path / "out" / source)
        assert f"{name!r} is taken as a class" in said and "--no-labels" in said


@pytest.mark.parametrize("below", ["", "images"])
def test_a_list_beside_the_images_is_named(below: str, tmp_path: Path) -> None:
    """The folder was called one class, and the list, where it was named, FILE."""
    source = tmp_path / "photos"
    for n in range(4):
        put(source / below / f"{n}.jpg", encoded(n))
    put(source / "labels.csv", "name,label\n" + "".join(f"{n}.jpg,{'ab'[n % 2]}\n" for n in range(4)))
    advice = ["--labels", f"{source}/labels.csv"]
    assert " ".join(advice) in refused(source, tmp_path / "out")
    assert "2 classes" in made(source, tmp_path / "out", *advice), "as advised"
    put(source / "more.txt", "")
    assert "--labels FILE" in refused(source, tmp_path / "x")


def test_one_folder_too_much_or_classes_of_classes_are_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "a" / "photos")
    said = refused(tmp_path / "a", tmp_path / "out")
    assert f"give {tmp_path}/a/photos" in said and "one folder per class" not in said, "not what it is not"
    class_folders(tmp_path / "b" / "animals")
    class_folders(tmp_path / "b" / "pets")
    assert "in folders below the classes" in made(tmp_path / "b", tmp_path / "two")
    for name in WNIDS:
        put(tmp_path / "c" / name / "images" / "0.JPEG", encoded(1))
    assert "below the classes" not in made(tmp_path / "c", tmp_path / "three")


def test_hidden_and_helper_folders_are_passed_over_and_counted(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "train")
    made(source, tmp_path / "expected")
    put(source / WNIDS[0] / ".ipynb_checkpoints" / "a-checkpoint.JPEG", encoded(3))
    put(source / "__MACOSX" / WNIDS[0] / "a.JPEG", encoded(3))
    put(source / "@eaDir" / "a.JPEG", encoded(3))
    put(source / ".git" / "HEAD", "ref")
    put(source / WNIDS[0] / "._a.JPEG", "x")
    said = made(source, tmp_path / "out")
    assert "4 × hidden or helper folder" in said and "1 × file of a file manager" in said
    tar = "shard-000000.tar"
    assert (tmp_path / "out" / tar).read_bytes() == (tmp_path / "expected" / tar).read_bytes()


# The table.


def test_the_format_is_said_and_can_be_named(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "photos" / "train").parent
    class_folders(source / "val")
    assert "train/ and val/" in made(source, tmp_path / "both")
    assert "one folder per class" in made(source, tmp_path / "one", "--format", "folders")
    assert "expected one of parquet, splits, labels, folders" in refused(source, tmp_path / "x", "--format", "tiles")
    assert "--labels FILE" in refused(source, tmp_path / "x", "--format", "labels")
    assert "--first-label" in refused(source / "val", tmp_path / "x", "--first-label", "1")
    assert list(FORMATS)[-1] == "folders", "it suits everything: the last that is tried"
    assert format_of(Source(path=source))[0].name == "splits"


def test_classes_and_their_counts_are_the_result(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "train")
    shutil.rmtree(source / WNIDS[2])
    put(source / WNIDS[2] / "0.JPEG", encoded(77))
    said = made(source, tmp_path / "out")
    for wnid, num in zip(WNIDS, (4, 4, 1), strict=True):
        assert f"{wnid}          {num}" in said
    assert "4.0 times as many samples as the smallest" in said
    put(source / WNIDS[2] / "1.JPEG", encoded(78))
    put(source / WNIDS[2] / "2.JPEG", encoded(79))
    assert "times as many" not in made(source, tmp_path / "balanced"), "4, 4 and 3"
    for n in range(40):
        put(tmp_path / "many" / f"c{n:02}" / "0.JPEG", encoded(n))
    put(tmp_path / "many" / "c07" / "1.JPEG", encoded(100))
    said = made(tmp_path / "many", tmp_path / "forty")
    assert "c07" in said and "34 classes between" in said
    rows = csv.reader(said.splitlines(), delimiter=" ")
    assert sum(1 for row in rows if len(row) > 2 and row[2].startswith("c") and len(row[2]) == 3) == 6


# A part for validation.


def test_a_part_is_held_out_by_the_key_alone(tmp_path: Path) -> None:
    """Each class gives its share, few images move when others come or go, and no class lacks one of the parts."""
    for label, num in (("ant", 60), ("bee", 30), ("cow", 2)):
        for n in range(num):
            put(tmp_path / "in" / label / f"{n}.JPEG", encoded(1000 * num + n))
    made(tmp_path / "in", tmp_path / "out", "--split", "0.2")
    parts = {split: set(labels_of(tmp_path / "out" / split)) for split in ("train", "val")}
    assert not parts["train"] & parts["val"] and len(parts["train"] | parts["val"]) == 92
    held = {label: sum(key.startswith(label) for key in parts["val"]) for label in ("ant", "bee", "cow")}
    assert held == {"ant": 12, "bee": 6, "cow": 1}
    for n in range(0, 60, 3):
        (tmp_path / "in" / "ant" / f"{n}.JPEG").unlink()
    for n in range(100, 110):
        put(tmp_path / "in" / "bee" / f"{n}.JPEG", encoded(90_000 + n))
    made(tmp_path / "in", tmp_path / "again", "--split", "0.2")
    for split, keys in parts.items():
        later = set(labels_of(tmp_path / "again" / split))
        other = parts["val" if split == "train" else "train"]
        moved = later & other
        assert len(moved) <= 4 and later & keys, "20 ants and 10 bees more or less move few others"


def test_a_source_with_a_validation_part_is_not_split_again(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "photos" / "train").parent
    class_folders(source / "val")
    assert "has a validation part already" in refused(source, tmp_path / "out", "--split", "0.1")
    for wrong in ("0", "1", "nan"):
        assert make(source, tmp_path / "out", "--split", wrong).exit_code == 2


@pytest.mark.parametrize(
    ("names", "similar"),
    [
        (("Cat", "cat", "dog"), "'Cat' and 'cat'"),
        (("hot dog", "hot_dog", "Hot-Dog"), "'Hot-Dog' and 'hot dog' and 'hot_dog'"),
        (("M\u00fcll", "Mu\u0308ll"), "'Mu\u0308ll' and 'M\u00fcll'"),
        (("c", "c++", "c#", "cc", "1", "01"), ""),
        (tuple("aAbBcCdDeE"), "'C' and 'c'; and 2 more such groups"),
    ],
)
@pytest.mark.parametrize("of", ["folders", "list"])
def test_classes_that_look_alike_are_named(names: tuple[str, ...], similar: str, of: str, tmp_path: Path) -> None:
    """Folders of another case, or a hand that wrote a class in two ways; they stay two classes."""
    lines = []
    for n, name in enumerate(names):
        for m in range(2):
            put(tmp_path / "in" / (name if of == "folders" else "") / f"{n}-{m}.jpg", encoded(10 * n + m))
            lines.append(f"{n}-{m}.jpg,{name}\n")
    put(tmp_path / "labels.csv", "path,label\n" + "".join(lines))
    said = made(
        tmp_path / "in", tmp_path / "out", *(() if of == "folders" else ("--labels", str(tmp_path / "labels.csv")))
    )
    assert similar in said and ("classes with similar names" in said) == bool(similar)
    assert len(ShardIndex.load(tmp_path / "out" / "shards.index").class_names) == len(names)


def test_a_renamed_class_is_named_where_its_shards_are(tmp_path: Path) -> None:
    """It said that the tree has 3 classes or other names."""
    source = class_folders(tmp_path / "in")
    made(source, tmp_path / "out")
    (source / WNIDS[1]).rename(source / "goldfish")
    said = refused(source, tmp_path / "out")
    assert f"1 of 3 classes new: goldfish, 1 of 3 classes gone: {WNIDS[1]}" in said
