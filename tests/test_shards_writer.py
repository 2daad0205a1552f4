"""make-shards: the same bytes for the same tree, whatever the process count and however often it was killed."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from shards.errors import ShardError
from shards.index.reader import ShardReader
from shards.index.shard_index import ShardIndex, open_index
from shards.tars import writer
from shards.tars.image_shards import WriteEvent, fitting_shards, write_shards
from shards.tars.journal import JOURNAL_NAME
from shards.tars.writer import write_samples
from tests.test_teacher_cache_faults import killed_at_replace


def encoded(n: int = 0, kind: str = "PNG", size: tuple[int, int] = (9, 8)) -> bytes:
    """A small image, another one for each number."""
    file = io.BytesIO()
    Image.new("RGB", size, (n % 256, n // 256, 7)).save(file, kind)
    return file.getvalue()


PNG = encoded()


def tree(root: Path, per_class: int = 7) -> Path:
    """Three classes with images, one level or two deep."""
    for label, name in enumerate(("ant", "bee", "cow")):
        for n in range(per_class):
            folder = root / name / ("deep" if n % 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"i{n}.png").write_bytes(encoded(100 * label + n, size=(9 + n, 8)))
    return root


def write(source: Path, dest: Path, **options: int) -> list[WriteEvent]:
    return list(write_shards(source, dest, **({"samples_per_shard": 6, "seed": 1} | options)))


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file a user sees."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_every_image_of_the_tree_is_in_the_shards_once(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    *progress, last = write(source, tmp_path / "out")
    index = last.index
    assert index is not None
    assert (index.class_names, index.num_classes, index.num_samples) == (("ant", "bee", "cow"), 3, 21)
    assert index.rows_S.tolist() == [5, 5, 5, 6], "sizes differ by at most one"
    found = {}
    with ShardReader(open_index(str(tmp_path / "out"))) as reader:
        for shard in range(index.num_shards):
            for row in range(index.num_rows(shard)):
                label = int(index.label_N[index.first_S[shard] + row])
                found[index.key(shard, row)] = (index.class_names[label], reader.image_bytes(shard, row))
    paths = list(source.rglob("*.png"))
    assert found == {
        str(path.relative_to(source).with_suffix("")): (path.relative_to(source).parts[0], path.read_bytes())
        for path in paths
    }
    assert [event.samples_done for event in progress][-1] == 21
    assert [event.shards_done for event in progress] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("num_samples", "expected"), [(24, 24), (2_000, 2_000), (5_000, 625), (8_000, 1000), (1_281_167, 1000)]
)
def test_shards_are_as_large_as_suits_the_set(num_samples: int, expected: int) -> None:
    """One shard of everything is one unit of stage 1: nothing to share, and all of it lost by a kill."""
    assert fitting_shards(num_samples) == expected


def test_a_folder_that_was_begun_keeps_its_size_of_shards(tmp_path: Path) -> None:
    """The same command goes on where it was stopped, also when the default has changed since."""
    write(tree(tmp_path / "in"), tmp_path / "out")
    *_, last = write_shards(tmp_path / "in", tmp_path / "out", samples_per_shard=None, seed=1)
    assert last.index is not None and last.index.rows_S.tolist() == [5, 5, 5, 6]


def test_the_bytes_do_not_depend_on_processes_or_time(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    write(source, tmp_path / "one", workers=1)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    write(copy, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 6, "four tars, the index and the class names"


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    prints = {write(source, tmp_path / f"{seed}", seed=seed)[-1].index.fingerprint for seed in (1, 2)}  # type: ignore[union-attr]
    assert len(prints) == 2
    index = open_index(str(tmp_path / "1"))
    keys = [index.key(s, r) for s in range(index.num_shards) for r in range(index.num_rows(s))]
    assert keys != sorted(keys)


def test_writing_imports_no_torch_and_leaves_webdataset_whole(tmp_path: Path) -> None:
    """torch takes seconds to import, and each worker of make-shards would do it."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom shards import write_samples\n"
        f"write_samples([('k', 0, 'png', {PNG!r})], Path({str(tmp_path / 'out')!r}))\n"
        "early = sorted({'torch', 'webdataset'} & set(sys.modules))\n"
        "import webdataset\nwebdataset.WebDataset, webdataset.writer.TarWriter\n"
        "sys.exit(early or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "files",
    [
        {"__init__": "from .tars import TarWriter", "tars": "class TarWriter: pass"},
        {
            "__init__": "level = 9\nfrom .writer import TarWriter",
            "writer": "from . import level\nclass TarWriter: pass",
        },
        {"__init__": "from .tars import TarWriter", "tars": "class TarWriter: pass", "writer": ""},
    ],
)
def test_another_layout_of_webdataset_is_imported_whole(files: dict[str, str], tmp_path: Path) -> None:
    """A version that is allowed may keep the class elsewhere, or need its package for it."""
    (tmp_path / "webdataset").mkdir()
    for name, text in files.items():
        (tmp_path / "webdataset" / f"{name}.py").write_text(text)
    program = (
        f"import sys\nfrom shards.tars.writer import _tar_writer\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "writer = _tar_writer()\nimport webdataset\nassert webdataset.TarWriter is writer"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_webdataset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ModuleNotFoundError, match="webdataset"):
        writer._tar_writer.__wrapped__()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the last tar open
def test_the_tars_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    """The library that wrote them, read with its own tools, sees the same samples in the same order."""
    import webdataset

    source = tree(tmp_path / "in")
    index = write(source, tmp_path / "out")[-1].index
    assert index is not None
    dataset = webdataset.WebDataset(list(index.urls), shardshuffle=False)
    samples = [(sample["__key__"], int(sample["cls"])) for sample in dataset]
    expected = [
        (index.key(s, r), int(index.label_N[index.first_S[s] + r]))
        for s in range(index.num_shards)
        for r in range(index.num_rows(s))
    ]
    assert samples == expected


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    write(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert [event.kept for event in write(source, tmp_path / "out")] == [True] * 4 + [False]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == before


@pytest.mark.parametrize("what", ["delete", "cut", "flip", "index", "journal_tail", "journal"])
def test_a_run_repairs_what_is_not_as_it_was_made(what: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    out = tmp_path / "out"
    write(source, out)
    expected = digests(out)
    victim = out / "shard-000002.tar"
    data = victim.read_bytes()
    if what == "delete":
        victim.unlink()
    elif what == "cut":
        victim.write_bytes(data[:2000])
    elif what == "flip":
        at = data.index(PNG) + 50
        victim.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif what == "index":
        (out / "shards.index").unlink()
    elif what == "journal_tail":
        (out / JOURNAL_NAME).write_bytes((out / JOURNAL_NAME).read_bytes()[:-20])
    else:
        (out / JOURNAL_NAME).unlink()
    kept = [event.kept for event in write(source, out)][:4]
    assert digests(out) == expected
    assert kept.count(False) == {"index": 0, "journal": 4}.get(what, 1)


KILLED = """
import sys
from pathlib import Path
from shards.tars.image_shards import write_shards
for event in write_shards(Path(sys.argv[1]), Path(sys.argv[2]), samples_per_shard=6, seed=1):
    print(event.shards_done, flush=True)
    if event.shards_done == int(sys.argv[3]):
        sys.stdin.read()
"""


@pytest.mark.slow
def test_killed_equals_uninterrupted(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    write(source, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(source), str(out), "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"1\n", b"2\n"]
        process.send_signal(signal.SIGKILL)
    (out / ".shard-000002.tar.1234.partial").write_bytes(b"half a tar")
    assert not (out / "shards.index").exists()
    events = write(source, out)
    assert [event.kept for event in events] == [True, True, False, False, False]
    assert digests(out) == digests(tmp_path / "whole")
    assert not list(out.glob(".*.partial"))


@pytest.mark.slow
def test_nothing_half_written_stays_wherever_the_kill_came(tmp_path: Path) -> None:
    """Before each renaming: of the journal, the tars, the names of the classes and the index."""
    source = tree(tmp_path / "in")
    write(source, tmp_path / "whole")
    killed = 0
    for count in range(8):  # of the process that writes the tars, and of the one that writes all others
        out = tmp_path / str(count)
        ended = killed_at_replace(partial(write, source, out), count)
        killed += ended == -signal.SIGKILL
        write(source, out)
        assert digests(out) == digests(tmp_path / "whole") and not list(out.glob("*.partial")), (count, ended)
    assert ended == 0 and killed >= 3, "each of its own renamings"


def test_other_settings_or_a_changed_tree_do_not_overwrite(tmp_path: Path) -> None:
    """A cache may have been made from these shards."""
    source = tree(tmp_path / "in")
    out = tmp_path / "out"
    write(source, out)
    before = digests(out)
    with pytest.raises(ShardError, match="seed: existing shards: 1; requested: 2"):
        write(source, out, seed=2)
    with pytest.raises(ShardError, match="samples_per_shard: existing shards: 6; requested: 7"):
        write(source, out, samples_per_shard=7)
    (source / "ant" / "i0.png").write_bytes(encoded(999))
    with pytest.raises(ShardError, match="holds shards of other images: 1 of 21 images changed: ant/i0"):
        write(source, out)
    assert digests(out) == before


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    first = write_shards(source, tmp_path / "out", samples_per_shard=6, seed=1)
    next(first)
    with pytest.raises(ShardError, match="another make-shards works here"):
        write(source, tmp_path / "out")
    assert len(list(first)) == 4


def test_foreign_tars_are_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other.tar").touch()
    with pytest.raises(ShardError, match=r"holds other tars already \(other\.tar"):
        write(source, tmp_path / "out")
    with pytest.raises(ShardError, match=r"holds other tars already \(other\.tar"):
        write_samples([("k", 0, "png", PNG)], tmp_path / "out")


def test_names_with_dots_and_long_or_foreign_names_become_keys(tmp_path: Path) -> None:
    names = ["a.b.png", "a%2Eb.png", "ä ö.PNG", "x" * 180 + ".png"]
    (tmp_path / "in" / "v1.0").mkdir(parents=True)
    for n, name in enumerate(names):
        (tmp_path / "in" / "v1.0" / name).write_bytes(encoded(n))
    index = write(tmp_path / "in", tmp_path / "out", class_names=("v1.0", "v2.0"))[-1].index
    assert index is not None
    keys = {index.key(0, row) for row in range(4)}
    assert keys == {"v1.0/a%2Eb", "v1.0/a%252Eb", "v1.0/ä ö", "v1.0/" + "x" * 180}


def test_the_suffix_in_the_shard_is_what_the_bytes_are(tmp_path: Path) -> None:
    """ImageNet holds a PNG that is called .JPEG."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name, kind in (("one.JPEG", "PNG"), ("two.JFIF", "JPEG"), ("three.webp", "WEBP")):
        (tmp_path / "in" / "a" / name).write_bytes(encoded(5, kind))
    index = write(tmp_path / "in", tmp_path / "out", class_names=("a", "b"))[-1].index
    assert index is not None
    with ShardReader(index) as reader:
        assert {reader.name(0, row) for row in range(3)} == {"a/one.png", "a/two.jpg", "a/three.webp"}


def test_what_file_managers_leave_behind_is_ignored(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    for place in (source, source / "ant", source / "bee" / "deep"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._i0.png"):
            (place / name).write_bytes(b"x")
    index = write(source, tmp_path / "out")[-1].index
    assert index is not None
    assert index.num_samples == 21


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("ant/notes.txt", b"x", r"ant/notes\.txt: expected an image"),
        ("ant/.hidden", b"x", r"ant/\.hidden: expected an image"),
        ("ant/.png", PNG, r"ant/\.png: expected an image"),
        ("top.png", PNG, r"top\.png: expected only class folders here"),
        ("ant/empty.png", b"", r"ant/empty\.png: expected a JPEG, PNG or WebP image: the file is empty"),
        ("ant/page.jpg", b"<html>", r"ant/page\.jpg: expected a JPEG, PNG or WebP image: it is a text file"),
        (
            "ant/movie.gif",
            b"GIF89a",
            r"ant/movie\.gif: expected a JPEG, PNG or WebP image, got a \.gif picture",
        ),
        ("ant/i0.jpg", PNG, r"ant/i0\.jpg and ant/i0\.png would have one key, 'ant/i0'"),
        ("ant/two\nlines.png", PNG, "control characters"),
        ("empty/deep/.DS_Store", b"", "empty: expected images, got none"),
    ],
)
def test_a_tree_with_anything_else_is_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(data)
    with pytest.raises(ShardError, match=message):
        write(source, tmp_path / "out")
    assert not (tmp_path / "out" / "shards.index").exists()


def test_missing_trees_broken_links_and_loops_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="got no folder"):
        write(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ShardError, match="one folder per class, got none"):
        write(tmp_path / "nothing", tmp_path / "out")
    source = tree(tmp_path / "in")
    (source / "ant" / "broken.png").symlink_to(tmp_path / "gone")
    with pytest.raises(ShardError, match=r"broken\.png: cannot be read"):
        write(source, tmp_path / "out")
    (source / "ant" / "broken.png").unlink()
    (source / "ant" / "loop").symlink_to(source / "ant")
    with pytest.raises(ShardError, match="a link to a folder that holds it"):
        write(source, tmp_path / "out")


def test_an_image_that_changes_while_shards_are_made_is_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "in")
    events = write_shards(source, tmp_path / "out", samples_per_shard=6, seed=1)
    next(events)
    for path in source.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(ShardError, match=r"expected \d+ bytes as listed, got \d+, it changed meanwhile"):
        list(events)


@pytest.mark.parametrize("name", ["samples_per_shard", "workers"])
def test_wrong_numbers_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        write(tree(tmp_path / "in"), tmp_path / "out", **{name: 0})


def test_samples_keep_their_order_and_shards(tmp_path: Path) -> None:
    index = write_samples(
        ((f"k{n}", n % 2, "png", PNG + bytes([n])) for n in range(7)), tmp_path, samples_per_shard=3, prefix="train"
    )
    assert isinstance(index, ShardIndex)
    assert index.names == ("train-000000.tar", "train-000001.tar", "train-000002.tar")
    assert [index.key(s, r) for s in range(3) for r in range(index.num_rows(s))] == [f"k{n}" for n in range(7)]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (("a.b", 0, "png", PNG), "first dot"),
        (("a", 2, "png", PNG), r"label in \[0, 2\)"),
        (("a", 0, "gif", PNG), "suffix 'gif'"),
        (("a", 0, "png", b"no image"), "expected a JPEG"),
        (("", 0, "png", PNG), "key.suffix"),
    ],
)
def test_samples_that_no_scan_would_accept_are_not_written(
    sample: tuple[str, int, str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match=message):
        write_samples([sample], tmp_path, num_classes=2)
    assert not list(tmp_path.iterdir())


def test_no_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="expected samples to write, got none"):
        write_samples([], tmp_path)


def test_a_full_or_closed_disk_is_an_error_that_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tree(tmp_path / "in")
    out = tmp_path / "out"
    events = write_shards(source, out, samples_per_shard=6, seed=1)
    next(events)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ShardError, match=r"shard-000001\.tar: cannot be written: .*No space left"):
            list(events)
    assert [path.name for path in out.glob("*") if not path.name.startswith(".make")] == ["shard-000000.tar"]
    assert [event.kept for event in write(source, out)] == [True, False, False, False, False]


def test_labels_are_places_among_the_classes_given(tmp_path: Path) -> None:
    """A folder with some of a teacher's classes, or a validation set that lacks one, keeps the labels of the whole."""
    names = ("zoo", "cow", "bee", "ant")
    last = list(write_shards(tree(tmp_path / "in"), tmp_path / "out", samples_per_shard=99, seed=1, class_names=names))[
        -1
    ]
    assert last.index is not None and last.index.class_names == names and last.index.num_classes == 4
    assert sorted(set(last.index.label_N.tolist())) == [1, 2, 3]
    for wrong, message in (
        (("ant", "bee"), "cow: this folder is not among the 2 class names"),
        (("ant", "bee", "cow", "ant"), "once"),
    ):
        with pytest.raises((ShardError, ValueError), match=message):
            list(write_shards(tmp_path / "in", tmp_path / "o2", samples_per_shard=9, seed=1, class_names=wrong))
